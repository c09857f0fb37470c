"""The report of `benchmarks.coldstart`, made from its raw results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.coldstart import drawing
from benchmarks.coldstart.cooling import ANOTHER_FILE
from benchmarks.coldstart.disk import READERS
from benchmarks.coldstart.figures import (
    COLD,
    WARM,
    measured,
    phases,
    sequential_rate,
    share,
    starts,
    systems,
)
from benchmarks.coldstart.names import CHECKED, HTTP, PACKED_FIRST
from benchmarks.common import tables
from benchmarks.common.measuring import disturbance, failures
from benchmarks.common.tables import Bound, Line, Measured
from benchmarks.peers import ENGINE_INT8

TITLE = "Cold start"

#: Milliseconds to the first token with the files in the page cache.
FIRST_TOKEN = Bound(60.0, at_least=False)
#: What a cold disk may add, as a multiple of the time that reading the files takes.
READING = Bound(1.5, at_least=False)
#: Thirty tokens, compared with the simple way.
NO_LATER = Bound(1.0, at_least=False)

_MEGABYTE = 1e6

plots = drawing.plots


def markdown(results: dict[str, Any]) -> str:
    return tables.paragraphs(
        _method(results),
        tables.header_text(results["header"]),
        disturbance(results["starts"]),
        failures(results["failed"]),
        "![Time to the first token by phase, with a warm and a cold page cache]"
        "(benchmarks/coldstart-phases.svg)",
        "### Page cache warm",
        _times(results, WARM),
        "### Page cache cold",
        _cold(results),
        _targets_and_ratios(results),
        "### Memory",
        _memory(results),
    )


def _method(results: dict[str, Any]) -> str:
    return (
        f"A model of GPT-2's size (124M) that is not in memory continues a prompt of "
        f"{results['prompt_tokens']} tokens. The clock runs from the call that needs the model to "
        f"the first token, and to token {results['tokens']}. The process has started, imported "
        "what it needs, and loaded and let go the same model once, so what happens once in a "
        f"process is not counted. Median (least-most) of {results['rounds']} rounds, in which "
        "each system starts in turn.\n\n"
        f"*{ENGINE_INT8}* and the other systems without an addition are called as libraries. "
        f"*{HTTP}* is `POST /generate` of a server, streamed. *{CHECKED}* is a model that the "
        "process has not loaded before: gpt2serve then compares its files with their checksums, "
        "once in the life of a process; the others compare nothing. "
        f"*{PACKED_FIRST}* is the simple way: the same engine, with one session that is packed "
        "before it computes anything. Tokenizers are in memory. "
        "gpt2serve's model is made cold as in life: other models push it out of a model cache "
        "with room for one. The others unload as their APIs offer. After that, libraries called "
        "from Python collect garbage and give memory that the allocator keeps back to the system, "
        "so that no load finds pages ready; the server and llama.cpp's process do as they do."
    )


def _times(results: dict[str, Any], cache: str) -> str:
    header = ("ms", "first token", f"token {results['tokens']}", "phases of the first token")
    rows = []
    for name in systems(results):
        chosen = starts(results, name, cache)
        parts = ", ".join(f"{part} {value:.1f}" for part, value in phases(chosen).items())
        first, done = measured(chosen, "first_ms"), measured(chosen, "done_ms")
        rows.append((name, first.text(), done.text(), parts))
    return tables.table(header, rows) + "\n\n" + _PHASES_TEXT


_PHASES_TEXT = (
    "*check*: comparing checksums; *session*: onnxruntime maps the weights and packs them for the "
    "processor, which gpt2serve does beside the first token unless it is told to do it first; "
    "*warm-up*: a run with one token; *model*, *context*: llama.cpp's weights, and its memory for "
    "texts; *load*: all of loading that the system tells no more of; *prefill*: reading the "
    "prompt, up to the first token; *rest*: the scheduler, threads, HTTP."
)


def _cold(results: dict[str, Any]) -> str:
    if not results["cold_by"]:
        return f"Not measured, since the page cache could not be emptied. {results['not_dropped']}"
    header = (
        "page cache cold",
        "in it before, MB",
        f"read by token {results['tokens']}, MB",
        "reading alone, ms",
        "reading alone, MB/s",
        f"{READERS} direct readers, MB/s",
        "share of what the disk gives",
    )
    rows = [_disk_row(results, name) for name in systems(results)]
    how = _DROPPED_TEXT
    if results["cold_by"] == ANOTHER_FILE:
        how = " ".join(part for part in (results["not_dropped"], _ANOTHER_FILE_TEXT) if part)
    return "\n\n".join([how, _times(results, COLD), _DISK_TEXT, tables.table(header, rows)])


_DROPPED_TEXT = (
    "Before each start the system's files were dropped from the page cache, and mincore(2) showed "
    "no page of them in it."
)
_ANOTHER_FILE_TEXT = (
    "The files were not dropped from the page cache; each start had other ones instead: copies "
    "made just before, written past the page cache where the file system can do that (O_DIRECT). "
    "The table below says how much of them mincore(2) showed in the page cache all the same: "
    "a start is cold only as far as that is nothing. To gpt2serve another file is a new one, so "
    "each of these starts compares hashes."
)
_DISK_TEXT = (
    "What was read is what mincore(2) showed in the page cache afterwards, less what it showed "
    "before. *Reading alone*: in the same round, just as cold, one reader reads the files from "
    f"beginning to end, as the file system reads ahead. *Direct*: {READERS} readers past the page "
    "cache (O_DIRECT), the best of three tries, once in a run. The greater of both is what the "
    "disk gives. The share is the time that it needs for the bytes that were read, divided by the "
    "time to the first token; bytes that were read later, of which there are few since a token "
    "needs all weights, count too. A virtual machine's disk may be cached by its host."
)


def _disk_row(results: dict[str, Any], name: str) -> tuple[str, ...]:
    chosen = starts(results, name, COLD)
    mega = 1 / _MEGABYTE
    size = results["file_bytes"][name]
    direct = results["direct_rates"][name]
    return (
        name,
        f"{measured(chosen, 'resident_bytes').high * mega:.0f}",
        f"{measured(chosen, 'read_bytes').median * mega:.0f} of {size * mega:.0f}",
        measured(chosen, "reading_ms").text(0),
        measured(chosen, sequential_rate(results, name)).scaled(mega).text(0),
        "refused" if direct is None else f"{direct * mega:.0f}",
        f"{measured(chosen, share(results, name)).median:.0%}",
    )


def _targets_and_ratios(results: dict[str, Any]) -> str:
    """Without what nothing was measured for."""
    lines = list(_ratios(results))
    found = [_targets(results), tables.lines_table(lines) if lines else ""]
    return tables.paragraphs("### Targets and ratios", *found) if any(found) else ""


def _targets(results: dict[str, Any]) -> str:
    rows = []
    for name in (HTTP, ENGINE_INT8):
        if chosen := starts(results, name, WARM):
            first = measured(chosen, "first_ms")
            verdict = "PASS" if FIRST_TOKEN.holds(first.median) else "MISS"
            wanted = f"<= {FIRST_TOKEN.value:.0f} ms"
            rows.append((f"{name}, page cache warm", f"{first.text()} ms", wanted, verdict))
    return tables.table(("first token", "median (least-most)", "target", ""), rows) if rows else ""


def _ratios(results: dict[str, Any]) -> Iterator[Line]:
    """What a cold disk adds, and how long the others take."""
    # Another file adds the comparison of hashes too, which the target is not about.
    target = None if results["cold_by"] == ANOTHER_FILE else READING
    for name in (HTTP, ENGINE_INT8):
        if starts(results, name, COLD):
            yield Line(f"{name}: (cold - warm) / reading alone", _added(results, name), target)
    simple, usual = starts(results, PACKED_FIRST, WARM), starts(results, ENGINE_INT8, WARM)
    if simple and usual:
        yield Line(
            f"token {results['tokens']}, warm: {ENGINE_INT8} / {PACKED_FIRST}",
            tables.ratio(measured(usual, "done_ms"), measured(simple, "done_ms")),
            NO_LATER,
        )
    for cache in (WARM, COLD):
        ours = starts(results, ENGINE_INT8, cache)
        for name in systems(results):
            others = starts(results, name, cache)
            if ours and others and not name.startswith("gpt2serve"):
                yield Line(
                    f"first token, {cache}: {name} / {ENGINE_INT8}",
                    tables.ratio(measured(others, "first_ms"), measured(ours, "first_ms")),
                )


def _added(results: dict[str, Any], name: str) -> Measured:
    warm, cold = starts(results, name, WARM), starts(results, name, COLD)
    added = tuple(
        float(one["first_ms"]) - float(other["first_ms"])
        for one, other in zip(cold, warm, strict=True)
    )
    return tables.ratio(Measured(added), measured(cold, "reading_ms"))


def _memory(results: dict[str, Any]) -> str:
    text = (
        "Resident memory of the process beyond what it had before its first model, mapped files "
        "included: with the model, a second and a half after its last token; and after it was let "
        "go. "
        "What is kept, a next load need not ask the system for. A model of gpt2serve's that is at "
        "work has up to 39 MB more, of its embedding, mapped from the file: the page cache's."
    )
    rows = []
    for name in systems(results):
        chosen = starts(results, name, WARM)
        loaded, kept = measured(chosen, "loaded_bytes"), measured(chosen, "kept_bytes")
        rows.append(
            (name, loaded.scaled(1 / _MEGABYTE).text(0), kept.scaled(1 / _MEGABYTE).text(0))
        )
    return text + "\n\n" + tables.table(("MB", "with the model", "let go"), rows)
