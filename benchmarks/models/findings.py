"""Sentences that follow from the numbers. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.models import selection
from benchmarks.models.plan import CHECKPOINT, CT2, GPT2SERVE, MEMORY_SHARE, PACKAGE
from benchmarks.models.selection import Selection
from benchmarks.models.throughput import peers

#: Of fewer requests p99 is the slowest.
_ENOUGH = 100
_SOFTWARE = {PACKAGE: "gpt2serve int8", CT2: "CTranslate2 int8", CHECKPOINT: "transformers fp32"}


def findings(results: dict[str, Any]) -> str:
    chosen = Selection(results["cells"], "cache")
    found = [
        *_range_of_ratios(chosen),
        *_capacity(results),
        *_resident(chosen),
        *few_requests(chosen.entries),
    ]
    return "\n".join(f"- {sentence}" for sentence in found)


def _range_of_ratios(chosen: Selection) -> Iterable[str]:
    found = [
        (ratio.median, peer, cache)
        for cache in chosen.places
        for peer in peers(chosen)
        if (ratio := chosen.ratio(GPT2SERVE.name, peer, cache, selection.tokens)) is not None
    ]
    if found:
        least, most = min(found), max(found)
        yield (
            f"Tokens a second, {GPT2SERVE.name} beside another system: {least[0]:.2f} times at "
            f"least ({least[1]}, cache for {least[2]}), {most[0]:.2f} times at most ({most[1]}, "
            f"cache for {most[2]})."
        )


def _capacity(results: dict[str, Any]) -> Iterable[str]:
    room = MEMORY_SHARE * results["memory_limit"]
    parts = [
        f"{int(room // results['sizes'][name])} of {software} ({results['sizes'][name] / 1e6:.0f} "
        "MB each)"
        for name, software in _SOFTWARE.items()
        if name in results["sizes"]
    ]
    yield (
        f"Models for which {MEMORY_SHARE:.0%} of this machine's "
        f"{results['memory_limit'] / 2**30:.0f} GiB suffice: {selection.listed(parts)}."
        + (" What takes more was not measured." if results["left_out"] else "")
    )


def _resident(chosen: Selection) -> Iterable[str]:
    """gpt2serve's budget is in bytes, and models take about what their manifests say."""
    held = [
        f"{'-'.join(str(count) for count in sorted({e['resident'] for e in entries}))} for {cache}"
        for cache in chosen.places
        if (entries := chosen.at(GPT2SERVE.name, cache))
    ]
    if held:
        yield f"{GPT2SERVE.name} counts bytes: at the end it held {selection.listed(held)} models."


def few_requests(entries: Sequence[dict[str, Any]]) -> Iterable[str]:
    few = [entry for entry in entries if entry["ok"] < _ENOUGH]
    if few:
        names = sorted({entry["system"] for entry in few})
        yield (
            f"{selection.listed(names)} answered fewer than {_ENOUGH} requests in a measurement "
            f"({min(entry['ok'] for entry in few)} at least): p99 is then the slowest, or nearly."
        )
