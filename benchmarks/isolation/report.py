"""The report of `benchmarks.isolation`, made from its raw results. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.common import measuring, tables
from benchmarks.common import plots as style
from benchmarks.common.tables import Bound, Line, Measured
from benchmarks.isolation.plan import LEAVING, LONG_OTHER, LONG_SAME, QUIET, STORM

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Isolation"

#: What a storm of cold loads may do to the median time per token of a hot model.
MOST_SLOWDOWN = Bound(2.0, at_least=False)
#: The engine's code for a request that was not needed any more.
ABORTED = "aborted"
_FIGURES = ("p50", "p90", "p99", "max", "mean")

Entry = dict[str, Any]


def markdown(results: dict[str, Any]) -> str:
    entries = results["measured"]
    return tables.paragraphs(
        _what(results["plan"]),
        tables.header_text(results["header"]),
        measuring.disturbance(entries),
        without_gaps(entries),
        gaps_table(entries),
        "![Milliseconds between two tokens, by situation](benchmarks/isolation-gaps.svg)",
        tables.lines_table(lines(entries)),
        disturbers_table(entries),
        coldness(entries),
        failures(entries),
        emptiness(entries),
    )


def _what(plan: dict[str, Any]) -> str:
    return (
        f"{plan['streams']} clients stream answers of {plan['tokens']} tokens from a hot, pinned "
        "model of 124M parameters (int8) without pause. Measured is the time between two tokens "
        f"as the client sees it. Each of {plan['rounds']} rounds has every situation for "
        f"{plan['seconds']:g} s, in turn; ratios are of the same round.\n\n"
        f"- {STORM}: {plan['storm_clients']} clients each ask, without pause, for one token of a "
        "model that nobody has asked this server for: its hashes are checked, it is loaded, and "
        "soon evicted.\n"
        f"- {LONG_SAME}, {LONG_OTHER}: a prompt of 1,000 tokens every {plan['long_every']:g} s, "
        "for the hot model or for another one in memory. It is prefilled in chunks between "
        "decode steps.\n"
        f"- {LEAVING}: {plan['leave_rate']:g} clients a second open a stream of "
        f"{plan['tokens']} tokens from the hot model and cut the connection after "
        f"{plan['leave_after']}."
    )


def situations(entries: Sequence[Entry]) -> list[str]:
    return list(dict.fromkeys(entry["situation"] for entry in entries))


def by_round(entries: Sequence[Entry], situation: str, figure: str) -> dict[int, float]:
    """Milliseconds between tokens; without the rounds in which no two tokens came."""
    return {
        entry["round"]: entry["gap_ms"][figure]
        for entry in entries
        if entry["situation"] == situation and "gap_ms" in entry
    }


def measured(entries: Sequence[Entry], situation: str, figure: str) -> Measured:
    """Once per round; empty if no round has it."""
    return Measured(tuple(by_round(entries, situation, figure).values()))


def ratio(entries: Sequence[Entry], situation: str, figure: str) -> Measured:
    """To the quiet situation of the same round, for the rounds that have both."""
    here, quiet = (by_round(entries, name, figure) for name in (situation, QUIET))
    both = [number for number in here if number in quiet]
    top, bottom = (Measured(tuple(one[number] for number in both)) for one in (here, quiet))
    return tables.ratio(top, bottom)


def without_gaps(entries: Sequence[Entry]) -> str:
    missing = [entry for entry in entries if "gap_ms" not in entry]
    if not missing:
        return ""
    where = ", ".join(f"{one['situation']} (round {one['round'] + 1})" for one in missing)
    return (
        f"**In {len(missing)} of {len(entries)} measurements no client of the hot model got two "
        f"tokens in time: {where}.** There is no figure for them; the others' stand below."
    )


def gaps_table(entries: Sequence[Entry]) -> str:
    rows = []
    for name in situations(entries):
        figures = [measured(entries, name, figure) for figure in _FIGURES]
        rows.append((name, *(one.text() if one.values else "-" for one in figures)))
    return tables.table(("ms between tokens: median (least-most)", *_FIGURES), rows)


def lines(entries: Sequence[Entry]) -> list[Line]:
    """Each situation against the quiet one of the same round."""
    made = []
    for name in situations(entries):
        if name == QUIET:
            continue
        for figure in ("p50", "mean", "p99"):
            ratios = ratio(entries, name, figure)
            bound = MOST_SLOWDOWN if (name, figure) == (STORM, "p50") else None
            if ratios.values:
                made.append(Line(f"{name} / quiet, {figure}", ratios, bound))
    return made


def disturbers_table(entries: Sequence[Entry]) -> str:
    """What the disturbance was, all rounds together."""
    rows = []
    for name in situations(entries):
        beside = [entry["beside"] for entry in entries if entry["situation"] == name]
        if name != QUIET:
            rows.append(
                (
                    name,
                    str(sum(one["requests"] for one in beside)),
                    _codes(beside),
                    str(sum(one["loads"] for one in beside)),
                    _median(beside, "load_ms"),
                    _median(beside, "first_ms"),
                )
            )
    header = ("beside the hot model", "requests", "ended as", "loads", "load ms", "first token ms")
    return tables.table(header, rows)


def _codes(beside: Sequence[Entry]) -> str:
    totals: dict[str, int] = {}
    for one in beside:
        for code, count in one["codes"].items():
            totals[code] = totals.get(code, 0) + count
    return ", ".join(f"{code} {count}" for code, count in sorted(totals.items()))


def _median(beside: Sequence[Entry], name: str) -> str:
    values = [one[name] for one in beside if one[name] is not None]
    return f"{Measured(tuple(values)).median:.0f}" if values else "-"


def coldness(entries: Sequence[Entry]) -> str:
    """Whether the models of the storm were as cold as it is said above."""
    storms = [entry["beside"] for entry in entries if entry["situation"] == STORM]
    asked = sum(storm["requests"] for storm in storms)
    again = asked - sum(storm["models"] for storm in storms)
    told = f"Of {asked} requests for cold models {again or 'none'} asked for a model again."
    over = sum(storm["cold_left"] == 0 for storm in storms)
    if over:
        told += (
            f" **In {over} of {len(storms)} storms there were no cold models left, so that the "
            "storm was over before its time.**"
        )
    return told


def failures(entries: Sequence[Entry]) -> str:
    requests = sum(entry["requests"] for entry in entries)
    failed = sum(entry["failed"] for entry in entries)
    if not failed:
        return f"Of {requests} requests for the hot model none failed."
    where = {entry["situation"]: entry["codes"] for entry in entries if entry["failed"]}
    return f"**{failed} of {requests} requests for the hot model failed: {where}.**"


def emptiness(entries: Sequence[Entry]) -> str:
    """Whether nothing went on for clients that were gone."""
    waits = [entry["empty_seconds"] for entry in entries]
    stuck = sum(wait is None for wait in waits)
    if stuck:
        return f"**After {stuck} of {len(waits)} measurements the engine was not empty again.**"
    return (
        "After each measurement the engine was empty again, at most "
        f"{max(waits):.2f} s after the last client. {_aborted(entries)}"
    )


def _aborted(entries: Sequence[Entry]) -> str:
    leaving = [entry for entry in entries if entry["situation"] == LEAVING]
    left = sum(entry["beside"]["codes"].get("left", 0) for entry in leaving)
    aborted = sum(entry["ends"].get(ABORTED, 0) for entry in leaving)
    return f"Of {left} requests whose clients left, the engine ended {aborted} early."


def plots(results: dict[str, Any]) -> dict[str, Figure]:
    entries = results["measured"]
    figure, (axes,) = style.new("A hot model's streams", "", "ms between two tokens", log="y")
    names = [name for name in situations(entries) if by_round(entries, name, "p50")]
    figures = ("p50", "p90", "p99", "max")
    width = 0.8 / len(figures)
    for number, name in enumerate(figures):
        heights = [measured(entries, situation, name).median for situation in names]
        places = [place + (number - 1.5) * width for place in range(len(names))]
        bars = axes.bar(places, heights, width, color=_SHADES[number], label=name)
        axes.bar_label(bars, fmt="%.0f", fontsize=7)
    axes.set_xticks(range(len(names)), [name.replace(", ", ",\n") for name in names], fontsize=8)
    axes.grid(visible=False, axis="x")
    axes.legend()
    return {"gaps": figure}


_SHADES = ("#7c2d12", "#c2410c", "#fb923c", "#fed7aa")
