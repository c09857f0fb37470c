"""The report of `benchmarks.profile`, from its raw results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.common.measuring import disturbance
from benchmarks.common.tables import (
    Bound,
    Line,
    header_text,
    lines_table,
    paragraphs,
    ratio,
    table,
)
from benchmarks.profile.figures import nodes, of, of_batch, of_code
from benchmarks.profile.report_against import against_text
from benchmarks.profile.versions import NOW

TITLE = "Where the time goes"
MOST_OUTSIDE = Bound(0.10, at_least=False)
LEAST_THROUGH_HTTP = Bound(0.85)
_ONNXRUNTIME = "onnxruntime"
#: Ops below that share of the time are summed up.
_SMALL = 0.01

_INTRODUCTION = """\
About a second of decoding with a clock on the inside of the engine's thread: each part is without
the parts that it calls, and all of them together are the whole time. Texts grow from one prompt of
8 tokens, top-k 50."""
_OPS = """\
The time in onnxruntime by op, from its own profile. Noting each op costs time, so the sum is above
the time in the table before: what counts are the shares."""
_HTTP = """\
Through HTTP, clients and server share the cores, so what the clients work counts against the
server."""
_SERVERS = "Streams under other HTTP servers, the same app and the same clients:"


def markdown(results: dict[str, Any]) -> str:
    entries = [*results["steps"], *results["http"], *results["servers"]]
    return paragraphs(
        _INTRODUCTION,
        header_text(results["header"]),
        disturbance(entries),
        steps_text(of_code(results["steps"], NOW)),
        ops_text(of_code(results["ops"], NOW)),
        http_text(results),
        servers_text(results["servers"]),
        *(against_text(results, commit) for commit in results["versions"] if commit != NOW),
    )


def plots(results: dict[str, Any]) -> dict[str, Any]:
    del results
    return {}


# -- the engine ---------------------------------------------------------------------------


def steps_text(entries: Sequence[dict[str, Any]]) -> str:
    if not entries:
        return ""
    batches = list(dict.fromkeys(entry["batch"] for entry in entries))
    parts = sorted(
        {name for entry in entries for name in entry["parts"]},
        key=lambda name: -max(e["parts"].get(name, 0) / e["step_ms"] for e in entries),
    )
    header = ("ms per decode step", *(f"B={batch}" for batch in batches))
    rows = [[name, *(_part(entries, batch, name) for batch in batches)] for name in parts]
    whole = [of_batch(entries, batch, lambda entry: entry["step_ms"]).text(2) for batch in batches]
    lines = [
        Line(
            f"sampling and bookkeeping, B={batch}",
            of_batch(entries, batch, outside),
            MOST_OUTSIDE,
            percent=True,
        )
        for batch in batches
    ]
    return paragraphs(table(header, [*rows, ["**together**", *whole]]), lines_table(lines))


def outside(entry: dict[str, Any]) -> float:
    """Share of a step that is not spent in onnxruntime."""
    return float(1 - entry["parts"][_ONNXRUNTIME] / entry["step_ms"])


def _part(entries: Sequence[dict[str, Any]], batch: int, name: str) -> str:
    milliseconds = of_batch(entries, batch, lambda entry: entry["parts"].get(name, 0.0))
    share = of_batch(entries, batch, lambda entry: entry["parts"].get(name, 0.0) / entry["step_ms"])
    return f"{milliseconds.median:.2f} ({share.median:.1%})"


def ops_text(entries: Sequence[dict[str, Any]]) -> str:
    if not entries:
        return ""
    sums = [sum(ms for ms, _ in entry["ops"].values()) for entry in entries]
    shares = {
        op: [
            entry["ops"].get(op, [0, 0])[0] / whole
            for entry, whole in zip(entries, sums, strict=True)
        ]
        for entry in entries
        for op in entry["ops"]
    }
    large = [op for op, values in shares.items() if max(values) >= _SMALL]
    large.sort(key=lambda op: -max(shares[op]))
    header = ("op", "nodes", *(f"B={entry['batch']}" for entry in entries))
    rows = [
        [
            op,
            nodes(entries, op),
            *(_share(entry, op, whole) for entry, whole in zip(entries, sums, strict=True)),
        ]
        for op in large
    ]
    rest = [
        f"{whole - sum(entry['ops'].get(op, [0, 0])[0] for op in large):.2f}"
        for entry, whole in zip(entries, sums, strict=True)
    ]
    whole_row = ["**together**", "", *(f"{whole:.2f}" for whole in sums)]
    return paragraphs(_OPS, table(header, [*rows, ["others", "", *rest], whole_row]))


def _share(entry: dict[str, Any], op: str, whole: float) -> str:
    milliseconds = entry["ops"].get(op, [0, 0])[0]
    return f"{milliseconds:.2f} ({milliseconds / whole:.1%})"


# -- HTTP ---------------------------------------------------------------------------------


def http_text(results: dict[str, Any]) -> str:
    entries = of_code(results["http"], NOW)
    if not entries:
        return ""
    median, _, least, most = results["outputs"]
    title = (
        f"{results['clients']} clients in a closed loop, texts of {least} to {most} tokens, about "
        f"{median}. {_HTTP}"
    )
    alone = of(entries, "way", "engine", "tokens_per_second")
    rows = [("engine alone", alone.text(0), "-", "-")]
    rows += [_http_row(entries, "way", way) for way in ("whole", "streamed")]
    lines = [
        Line(
            f"HTTP {way} / engine",
            ratio(of(entries, "way", way, "tokens_per_second"), alone),
            LEAST_THROUGH_HTTP,
            percent=True,
        )
        for way in ("whole", "streamed")
    ]
    return paragraphs(title, table(_HTTP_HEADER, rows), lines_table(lines))


_HTTP_HEADER = ("", "tokens per second", "event loop per token", "clients per token")


def _http_row(entries: Sequence[dict[str, Any]], key: str, name: str) -> tuple[str, str, str, str]:
    speed = of(entries, key, name, "tokens_per_second")
    loop, clients = (_microseconds(entries, key, name, n) for n in ("event_loop_us", "clients_us"))
    return name, speed.text(0), loop, clients


def _microseconds(entries: Sequence[dict[str, Any]], key: str, name: str, value: str) -> str:
    if any(entry[value] is None for entry in entries if entry[key] == name):
        return "-"
    return f"{of(entries, key, name, value).median:.0f} us"


def servers_text(entries: Sequence[dict[str, Any]]) -> str:
    if not entries:
        return ""
    names = list(dict.fromkeys(entry["server"] for entry in entries))
    rows = [_http_row(entries, "server", name) for name in names]
    first = of(entries, "server", names[0], "tokens_per_second")
    lines = [
        Line(f"{name} / {names[0]}", ratio(of(entries, "server", name, "tokens_per_second"), first))
        for name in names[1:]
    ]
    return paragraphs(_SERVERS, table(_HTTP_HEADER, rows), lines_table(lines))
