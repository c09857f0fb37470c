"""The report of the comparison: what each server sustains, and latency against load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.common import measuring, tables
from benchmarks.common.tables import Line, Measured
from benchmarks.load.outcome import UNFINISHED
from benchmarks.load.rounds import (
    Entries,
    closed_rates,
    codes,
    measured_systems,
    of,
    over_rounds,
    paired,
    points,
    sustained,
    sustained_rates,
)
from benchmarks.load.search import LEAST_SHARE, MOST_FAILED, MOST_TTFT_MS, STEPS_PER_DOUBLING
from benchmarks.load.summary import fell_behind
from benchmarks.load.systems import OURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Load"


def markdown(results: dict[str, Any]) -> str:
    entries, systems, plan = results["load"], measured_systems(results), results["plan"]
    failed, header = measuring.failures(results["failed"]), tables.header_text(results["header"])
    if not systems:
        return tables.paragraphs(header, failed)
    lines = ratio_lines(entries, systems)
    return tables.paragraphs(
        _what(plan, entries),
        header,
        failed,
        "What each server does at the highest rate that it sustains: requests and tokens per "
        "second, and latencies in milliseconds.",
        sustained_table(entries, systems),
        tables.lines_table(lines) if lines else "",
        finding(entries, systems),
        "![Latency against offered load](benchmarks/load-latency.svg)",
        f"{plan['clients']} clients that wait for their answers, and {plan['burst']} requests at "
        "once.",
        closed_table(entries, systems),
        "All loads by server, in milliseconds, each the median of the rounds that tried it. A "
        f"text that was cut off at the end ({UNFINISHED}) counts with what it had waited until "
        "then; the time per token is that of whole texts.",
        *(f"**{system}**\n\n{loads_table(entries, system)}" for system in systems),
        _caveats(entries),
        measuring.disturbance(list(entries)),
    )


def _what(plan: dict[str, Any], entries: Entries) -> str:
    prompts = [entry["prompt_tokens"] for entry in entries if entry["prompt_tokens"]]
    outputs = [entry["output_tokens"] for entry in entries if entry["output_tokens"]]
    step = 2 ** (1 / STEPS_PER_DOUBLING) - 1
    return tables.paragraphs(
        "GPT-2 124M on each server, driven over HTTP by a process of its own on the same cores: "
        "Poisson arrivals that do not wait for answers, texts like tweets (on average "
        f"{_average(prompts):.0f} tokens in and {_average(outputs):.0f} out, as many on each "
        "server), streamed. gpt2serve is asked through `POST /generate`, the others through "
        "OpenAI's `/v1/completions`. Latencies count from the time when a request was due.",
        f"A rate is sustained if the work done is at least {LEAST_SHARE:.0%} of the work that "
        f"came, 99 % of the first tokens come within {MOST_TTFT_MS / 1000:g} s, and at most "
        f"{MOST_FAILED:.0%} of the requests fail. The highest one is found in each round by "
        f"doubling and bisecting, on a grid of {step:.0%}; {plan['rounds']} "
        f"round{'s' if plan['rounds'] > 1 else ''}, points of {plan['least']:g} to "
        f"{plan['most']:g} s after {plan['warm_up']:g} s to warm up.",
    )


def _average(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _cell(measured: Measured | None, digits: int = 0) -> str:
    if measured is None:
        return "-"
    same = len(measured.values) == 1
    return f"{measured.median:.{digits}f}" if same else measured.text(digits)


def sustained_table(entries: Entries, systems: Sequence[str]) -> str:
    rows = []
    for system in systems:
        best = list(sustained(entries, system).values())
        tried = [entry["rate"] for entry in of(entries, "open", system)]
        rate = _cell(over_rounds(best, "requests_per_second"), 2)
        cells = [
            rate if best or not tried else f"< {min(tried):.2f}",
            _cell(over_rounds(best, "tokens_per_second")),
            *(
                _cell(over_rounds(best, key, rank))
                for key in ("ttft_ms", "end_to_end_ms")
                for rank in ("p50", "p99")
            ),
        ]
        rows.append([system, *cells])
    return tables.table(
        [
            "median (least-most)",
            "requests/s",
            "tokens/s",
            "first token p50",
            "p99",
            "end to end p50",
            "p99",
        ],
        rows,
    )


def ratio_lines(entries: Entries, systems: Sequence[str]) -> list[Line]:
    """This server in int8 against each other: sustained rate, and rate of the closed loop."""
    lines = []
    for system in systems:
        for name, rates in (("sustained", sustained_rates), ("closed loop", closed_rates)):
            ratio = paired(rates(entries, OURS), rates(entries, system))
            if ratio is not None and system != OURS:
                lines.append(Line(f"{OURS} / {system}, requests/s, {name}", ratio))
    return lines


def finding(entries: Entries, systems: Sequence[str]) -> str:
    """The comparison in a sentence: the peer that comes nearest."""
    ours = sustained_rates(entries, OURS)
    peers = {
        system: ratio
        for system in systems
        if not system.startswith("gpt2serve")
        and (ratio := paired(ours, sustained_rates(entries, system))) is not None
    }
    if not peers:
        return ""
    peer, ratio = min(peers.items(), key=lambda item: item[1].median)
    if ratio.low > 1:
        verdict = f"{OURS} sustains {ratio.median:.1f} times its rate"
    elif ratio.high < 1:
        verdict = f"it sustains {1 / ratio.median:.1f} times the rate of {OURS}"
    else:
        verdict = "these rounds do not tell the two apart"
    return f"Of the other projects {peer} comes nearest: {verdict}."


def closed_table(entries: Entries, systems: Sequence[str]) -> str:
    rows = []
    for system in systems:
        closed, burst = of(entries, "closed", system), of(entries, "burst", system)
        rows.append(
            [
                system,
                _cell(over_rounds(closed, "requests_per_second"), 2),
                _cell(over_rounds(closed, "tokens_per_second")),
                _cell(over_rounds(closed, "ttft_ms", "p50")),
                _cell(over_rounds(burst, "ttft_ms", "p50")),
                _cell(over_rounds(burst, "ttft_ms", "max")),
                _cell(over_rounds(burst, "end_to_end_ms", "max")),
            ]
        )
    header = ["median (least-most)", "clients: requests/s", "tokens/s", "first token p50"]
    header += ["burst: first token p50", "last one's", "all done"]
    return tables.table(header, rows)


def loads_table(entries: Entries, system: str) -> str:
    """All that one server was offered, the lowest rate first."""
    rows = []
    for group in points(entries, system):
        times = sum(entry["sustained"] for entry in group)
        rows.append(_load_row(f"{group[0]['rate']:.2f}", group, f"{times} of {len(group)}"))
    for kind, name in (("closed", "clients that wait"), ("burst", "at once")):
        rows.append(_load_row(name, of(entries, kind, system), "-"))
    ranks = "p50 / p90 / p99 / max"
    header = ["requests/s offered", "done", "tokens/s", "sustained", f"first token {ranks}"]
    header += [f"per token {ranks}", f"end to end {ranks}", "errors"]
    return tables.table(header, rows)


def _load_row(offered: str, group: Entries, sustained: str) -> list[str]:
    errors = ", ".join(f"{count} {code}" for code, count in codes(group).items())
    return [
        offered,
        _median(group, 2, "requests_per_second"),
        _median(group, 0, "tokens_per_second"),
        sustained,
        *(
            " / ".join(_median(group, digits, key, rank) for rank in ("p50", "p90", "p99", "max"))
            for key, digits in (("ttft_ms", 0), ("per_token_ms", 1), ("end_to_end_ms", 0))
        ),
        errors or "none",
    ]


def _median(group: Entries, digits: int, *keys: str) -> str:
    measured = over_rounds(group, *keys)
    return "-" if measured is None else f"{measured.median:.{digits}f}"


def _caveats(entries: Entries) -> str:
    """What the reader should know of the clients and of the numbers of requests."""
    opened = [entry for entry in entries if entry["kind"] == "open"]
    if not opened:
        return ""
    few = min(entry["requests"] for entry in opened)
    busy = max(entry["cpu_seconds"] / entry["wall_seconds"] for entry in opened)
    late = sum(fell_behind(entry) for entry in opened)
    text = (
        f"A point had {few} requests or more; where there are fewer than a hundred, p99 is close "
        f"to the slowest one. The clients took at most {busy:.0%} of one core."
    )
    if late:
        text += f" In {late} of {len(opened)} points they sent late: those latencies are too long."
    return text


def plots(results: dict[str, Any]) -> dict[str, Figure]:
    from benchmarks.load.curves import latency

    return {"latency": latency(results)}
