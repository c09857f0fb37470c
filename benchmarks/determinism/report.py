"""The report of `benchmarks.determinism`, made from its raw results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.common import tables
from benchmarks.common.measuring import failures
from benchmarks.common.tables import Bound

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Determinism"

#: Of gpt2serve, in every column.
TARGET = Bound(1.0)
_OURS = "gpt2serve"
#: Systems whose sequences of one batch share a generator.
_ONE_GENERATOR = ("transformers", "optimum", "ctranslate2")
_COLUMNS = ("together", "restarted", "again", "greedy")
#: How each system is given the seeds; by the beginning of its name.
_SEEDS = {
    "gpt2serve": "a seed for each request, over HTTP",
    "transformers": "`torch.manual_seed` before each batch, with its first request's seed; the "
    "batch is padded on the left",
    "optimum": "as transformers",
    "ctranslate2": "`set_random_seed` before each batch, with its first request's seed; a thread "
    "takes it when it draws for the first time and keeps its generator from then on (`random.cc`; "
    "[#1757](https://github.com/OpenNMT/CTranslate2/issues/1757))",
    "llama.cpp": "a seed for each sequence of one context; a sequence takes the next request as "
    "soon as it has ended one",
}


def markdown(results: dict[str, Any]) -> str:
    entries = results["systems"]
    return tables.paragraphs(
        _method(results),
        tables.header_text(results["header"]),
        failures(results["failed"]),
        _table(entries, results["batch"]),
        "\n".join(f"- {line}" for line in _findings(entries)),
        "How each system is given the seeds: " + "; ".join(_seeds(entries)) + ".",
    )


def plots(results: dict[str, Any]) -> dict[str, Figure]:
    """None: a table says it all."""
    del results
    return {}


def _method(results: dict[str, Any]) -> str:
    return (
        f"{results['requests']} requests, each with a prompt of its own of 1 to 24 words and a "
        f"seed of its own, top_k {results['top_k']}, temperature 1, at most {results['tokens']} "
        "new tokens. The model is the sample `samples/george-washington`, which was trained, so "
        "texts end by themselves and at different times. Every system answered all requests one "
        f"after another, then {results['batch']} at a time; then its process was started anew, "
        f"and it answered them {results['batch']} at a time in another order. A text counts as "
        "identical if it is, to the last token, the one that the same request with the same seed "
        "got in the first pass, alone.\n\n"
        "Two more columns tell why texts differ, where they do. *Alone again*: a quarter of the "
        "requests one after another, after the restart, in the other order. *Greedy*: the "
        f"likeliest token each time, no seeds, {results['batch']} at a time against alone. Greedy "
        "texts that differ show that the arithmetic depends on the batch; greedy texts that are "
        "all identical show only that its rounding changed no likeliest token."
    )


def _table(entries: Sequence[dict[str, Any]], batch: int) -> str:
    header = (
        "identical to the texts alone",
        f"{batch} at a time",
        "restarted, other order",
        "alone again",
        f"greedy, {batch} at a time",
        "different texts",
        "target 100%",
    )
    return tables.table(header, map(_row, entries))


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    shares = [_share(entry[column]) for column in _COLUMNS]
    verdict = "-"
    if entry["system"].startswith(_OURS):
        verdict = "PASS" if all(map(TARGET.holds, shares)) else "MISS"
    cells = [percent(entry[column]) for column in _COLUMNS]
    return entry["system"], *cells, str(entry["different_texts"]), verdict


def _share(counts: Mapping[str, int]) -> float:
    return counts["identical"] / counts["of"]


def percent(counts: Mapping[str, int]) -> str:
    """Never 100% unless all are identical, nor 0% unless none is."""
    share = _share(counts)
    text = f"{share:.1%}"
    if text == "100.0%":
        return "100%" if share == 1 else ">99.9%"
    if text == "0.0%":
        return "0%" if share == 0 else "<0.1%"
    return text


def _findings(entries: Sequence[dict[str, Any]]) -> list[str]:
    return [f"{entry['system']}: {_finding(entry)}." for entry in entries]


def _finding(entry: dict[str, Any]) -> str:
    same = {column: _share(entry[column]) == 1 for column in _COLUMNS}
    if all(same.values()):
        return "every text was the same in all passes"
    reasons = []
    if not same["again"]:
        reasons.append(
            "texts differ alone too, so they depend on what was drawn before, in other requests"
        )
    if not same["greedy"]:
        reasons.append(
            "greedy texts differ, so the arithmetic depends on the batch: products of matrices of "
            "another shape are added up in another order"
        )
    if same["again"] and not (same["together"] and same["restarted"]):
        reasons.append(_drawing(entry["system"]))
    return "; ".join(reasons)


def _drawing(system: str) -> str:
    if system.startswith(_ONE_GENERATOR):
        return (
            "alone a seed names a text, but the sequences of a batch draw from one generator, so "
            "a text depends on which requests share its batch and on its place among them"
        )
    return (
        "alone a seed names a text, but not in a batch, although each sequence has its own seed: "
        "rounding that depends on the batch can change what is drawn"
    )


def _seeds(entries: Sequence[dict[str, Any]]) -> list[str]:
    names = [entry["system"] for entry in entries]
    return [
        f"{kind}, {how}"
        for kind, how in _SEEDS.items()
        if any(name.startswith(kind) for name in names)
    ]
