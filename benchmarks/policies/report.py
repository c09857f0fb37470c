"""The report of `benchmarks.policies`, made from its raw results. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.common import tables
from benchmarks.policies import drawing
from benchmarks.policies.figures import Place, Selection
from benchmarks.policies.plan import AGING, BASE, EQUAL, MIXED, OPTIMUM, POLICIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Eviction policies"

#: The comparison that is shown in full.
MODELS, SHARE = 1_000, 0.1
#: A difference that counts.
NOTABLE = 0.1
#: Policies that a server could have, other than what it has.
OTHERS = tuple(name for name in POLICIES if name not in (BASE, OPTIMUM, AGING))
#: What the table of costs has beside LRU: more would not fit.
_COSTED = ("SLRU", "SIEVE", "S3-FIFO")


def markdown(results: dict[str, Any]) -> str:
    found = Selection(results)
    shown = [one for one in found.places if _is_shown(one)]
    return tables.paragraphs(
        _method(results),
        tables.header_text(results["header"]),
        "### Misses",
        f"{MODELS:,} models, a cache for {SHARE:.0%} of them, equal sizes. Changes are against "
        f"{BASE}: -10% is a tenth fewer misses.",
        _misses(found, shown),
        "![Misses by size of the cache](benchmarks/policies-misses.svg)",
        *_all_places(found),
        *_mixed(found),
        "### What that is worth",
        _worth_text(results),
        _worth(found, shown, results),
        _lru_needs_text(found, shown),
    )


def plots(results: dict[str, Any]) -> dict[str, Figure]:
    return {"misses": drawing.misses(Selection(results))}


def _is_shown(place: Place) -> bool:
    return (place.models, place.cache, place.sizes) == (MODELS, SHARE, EQUAL)


def _method(results: dict[str, Any]) -> str:
    costs = results["costs"]
    return tables.paragraphs(
        "Caches simulated over drawn traces: no model is run, and a seed gives the same figures "
        "anywhere. A request holds a lease on its model until its last token, and what is leased "
        "is not evicted. A model that is not there is loaded, one at a time, and its requests "
        "wait; so each model that is asked for comes into the cache, whatever the policy. "
        f"{results['rate']:g} requests a second with Poisson arrivals, answers as long as tweets. "
        "A third of each trace fills the cache and does not count. LRU does, request by request, "
        "what the server's own `ModelCache` does (a property test). SLRU (segmented LRU) protects "
        "what was asked for again, up to four fifths of the cache. Belady knows what will come: "
        "the fewest misses that there can be with equal sizes, but for what loads and leases "
        "change.",
        "The costs are those of other sections: a miss makes the first token "
        f"{costs['miss_ms']:g} ms later ([cold start](#cold-start)); a model counts "
        f"{costs['model_bytes'] / 1e6:.0f} MB, and answers with {costs['hot_ms']:g} ms to the "
        f"first token and {costs['token_ms']:.1f} ms for each other one "
        "([scale](#scale-by-simulation)).",
        "Popularity is Zipf with exponent 1 unless a name says otherwise. *long answers*: eight "
        "times as long. *sessions*: somebody asks one model five times on average, some 20 s "
        "apart. *drift*: each model has an hour of the day at which it is asked for the most; a "
        "trace is three days. *changing popularity*: every 100 requests a popular model changes "
        "places with any other. *crawler*: 5% or 20% of the requests go through all models, one "
        "after the other, all the time. *sweeps*: as many, but all at once, four times as fast as "
        "all others together, with rests in between. *loop*: one after the other, of a tenth more "
        "models than there is room for.",
    )


def _misses(found: Selection, places: Sequence[Place]) -> str:
    rows = []
    for place in places:
        base = found.at(place, BASE)
        assert base is not None
        changes = [_percent(found.change(place, name)) for name in (*OTHERS, OPTIMUM)]
        hits = f"{base['hits'] / base['requests']:.1%}"
        rows.append((place.trace, hits, f"{_per_1000(base):.0f}", *changes))
    header = ("trace", f"{BASE}: hits", "misses per 1,000 requests", *OTHERS, OPTIMUM)
    return tables.table(header, rows)


def _all_places(found: Selection) -> list[str]:
    """Least and greatest change over all sizes of caches and numbers of models."""
    places = [one for one in found.places if one.sizes == EQUAL]
    traces = list(dict.fromkeys(one.trace for one in places))
    rows = []
    for trace in traces:
        chosen = [one for one in places if one.trace == trace]
        rows.append((trace, *(_range(found.changes(chosen, name)) for name in OTHERS)))
    counts = sorted({one.models for one in places})
    shares = sorted({one.cache for one in places})
    findings = "\n".join(f"- {_finding(found, places, name)}" for name in OTHERS)
    if len(counts) * len(shares) == 1:
        return [findings]
    text = (
        f"The same for {_listed(f'{count:,}' for count in counts)} models and caches for "
        f"{_listed(f'{share:.0%}' for share in shares)} of them, the least to the greatest change "
        f"against {BASE}:"
    )
    return [text, tables.table(("trace", *OTHERS), rows), findings]


def _finding(found: Selection, places: Sequence[Place], policy: str) -> str:
    realistic = [one for one in places if one.trace not in ("uniform", "loop")]
    changes = found.changes(realistic, policy)
    better = sum(change <= -NOTABLE for change in changes)
    worse = [place for place in realistic if (found.change(place, policy) or 0) > 0.005]
    text = (
        f"{policy}: of {len(changes)} comparisons without *uniform* and *loop*, at least "
        f"{NOTABLE:.0%} fewer misses than {BASE} in {better}, more misses in {len(worse)}"
    )
    if worse:
        worst = max(worse, key=lambda place: found.change(place, policy) or 0)
        text += (
            f", at most {_percent(found.change(worst, policy))} ({worst.trace}, "
            f"{worst.models:,} models, cache {worst.cache:.0%})"
        )
    return text + "."


def _mixed(found: Selection) -> list[str]:
    places = [one for one in found.places if one.sizes == MIXED]
    if not places:
        return []
    names = (*OTHERS, AGING, OPTIMUM)
    rows = []
    for place in places:
        base = found.at(place, BASE)
        assert base is not None
        cells = [
            f"{_percent(found.change(place, name))} / "
            f"{_percent(found.change(place, name, 'bytes_loaded'))}"
            for name in names
        ]
        rows.append((place.trace, f"{place.cache:.0%}", f"{_per_1000(base):.0f}", *cells))
    header = ("trace", "cache", f"{BASE}: misses per 1,000", *names)
    text = (
        "Seven in ten models are 124M parameters in int8, the others 355M in int8 or 124M in "
        "fp32, whatever their popularity; the cache has that share of all their bytes. Misses / "
        "bytes loaded, both against LRU. GDSF counts every miss alike and so prefers to keep "
        f"small models; {AGING} is GDSF with a miss that costs what the model weighs. *{OPTIMUM}* "
        "evicts the greatest product of size and time to the next use, which is no bound."
    )
    return ["### Mixed sizes", text, tables.table(header, rows)]


def _worth_text(results: dict[str, Any]) -> str:
    costs, early = results["costs"], results["early"]
    return (
        f"{MODELS:,} models, a cache for {SHARE:.0%} of them. *waits*: how long a request of the "
        "simulation waits for its model on average, hits included. Then what another policy saves "
        "of a request, on average: in milliseconds to its first token, with a load that makes it "
        f"{costs['miss_ms']:g} ms later, as measured -> with one that makes it "
        f"{early['miss_ms']:g} ms later and does the rest in the background, which is assumed; "
        f"and in milliseconds of a core, of which such a load takes {early['core_ms']:g} and an "
        f"answer of 28 tokens {costs['hot_ms'] + 27 * costs['token_ms']:.0f}."
    )


def _worth(found: Selection, places: Iterable[Place], results: dict[str, Any]) -> str:
    costs, early = results["costs"], results["early"]
    rows = []
    for place in places:
        base = found.at(place, BASE)
        assert base is not None
        cells = []
        for name in _COSTED:
            saved = found.loads(place, BASE) - found.loads(place, name)
            first = f"{_ms(saved * costs['miss_ms'])} -> {_ms(saved * early['miss_ms'])}"
            cells.append(f"{first}, core {_ms(saved * early['core_ms'])}")
        waits = f"{base['wait_ms']:.0f}"
        rows.append((place.trace, waits, *cells, _times(found.lru_needs(place, "SLRU"))))
    header = (
        "trace",
        f"{BASE}: waits, ms",
        *(f"{name} saves, ms" for name in _COSTED),
        "cache for as few misses: LRU / SLRU",
    )
    return tables.table(header, rows)


def _lru_needs_text(found: Selection, places: Iterable[Place]) -> str:
    known = [need for one in places if (need := found.lru_needs(one, "SLRU")) is not None]
    if not known:
        return ""
    return (
        "The last column: how many times as much memory LRU needs for as few misses as SLRU has; "
        "*-* where nothing that was simulated has them."
    )


def _per_1000(entry: dict[str, Any]) -> float:
    return 1000 * float(entry["misses"]) / float(entry["requests"])


def _percent(change: float | None) -> str:
    if change is None:
        return "-"
    text = f"{change:+.0%}"
    return "0%" if text in ("+0%", "-0%") else text


def _ms(value: float) -> str:
    return f"{round(value, 1) or 0.0:.1f}"


def _range(changes: Sequence[float]) -> str:
    return f"{_percent(min(changes))} to {_percent(max(changes))}" if changes else "-"


def _times(factor: float | None) -> str:
    return "-" if factor is None else f"{factor:.2f}x"


def _listed(names: Iterable[str]) -> str:
    """a, b and c"""
    *rest, last = names
    return f"{', '.join(rest)} and {last}" if rest else last
