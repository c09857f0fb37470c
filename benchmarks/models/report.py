"""The section on many models, from the raw results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.common import tables
from benchmarks.common.measuring import disturbance, failures
from benchmarks.models import cliff, findings, throughput

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Many models"


def markdown(results: dict[str, Any]) -> str:
    return tables.paragraphs(
        _introduction(results),
        tables.header_text(results["header"]),
        failures(results["failed"]),
        throughput.section(results),
        findings.findings(results),
        cliff.section(results),
        disturbance([*results["cells"], *results["cliff"]]),
    )


def plots(results: dict[str, Any]) -> dict[str, Figure]:
    from benchmarks.models import drawing

    made = {}
    if results["cells"]:
        made["throughput"] = drawing.throughput(results)
    if results["cliff"]:
        made["cliff"] = drawing.cliff(results)
        made["hits"] = drawing.hits(results)
    return made


def _introduction(results: dict[str, Any]) -> str:
    return f"""\
{results["models"]} models of GPT-2's real size, popular as words are (Zipf with exponent \
{results["zipf"]:g}), and {results["clients"]} clients that each ask again when they have their \
whole answer: prompts and answers as long as those of tweets, about 30 tokens, never ended early. \
Each system runs alone on the machine, is filled with its most popular models, warmed up for \
moments and measured for {results["seconds"]:g} seconds, {results["rounds"]} times, each time in \
another order. Ray Serve has one replica with `@serve.multiplexed`, which keeps the models that it \
used last and loads beside what it answers; FastAPI has a dict that does the same, and a lock \
around everything. gpt2serve gets `--model-cache-bytes` for the same number of \
models, and once for as many bytes as the transformers models of the smallest cache take.

All models are hard links to the files of one, so every load finds its file in the page cache, \
for every system; with a disk in between, systems with larger files lose more. transformers and \
CTranslate2 check nothing when they load; gpt2serve compares the hash of each model's weights at \
its first load, and that is in its figures. A *hit* is a request that did not wait for its model \
to be loaded; requests and tokens a second are of answers that ended in the seconds \
measured, percentiles of those that were asked for in them, and *errors* are what was no answer. \
Memory is that of all processes of a server at the end: *if files differ* counts a page as often \
as it is mapped, which is what models take that are not links to one file (and libraries once a \
process); *here* counts each page once."""
