"""How the engine has a model, told in one word and some figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from gpt2serve.engine.fetcher import Fetcher
from gpt2serve.engine.model_cache import State
from gpt2serve.engine.residency import Residency
from gpt2serve.engine.store import Package
from gpt2serve.package import ModelCard

#: States of models that are in memory, or on their way there. All others are cold, or failed.
WARM_STATES = ("fetching", "loading", "resident")


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A model, its newest version unless said otherwise.

    state: cold, fetching, loading (or waiting for room), resident or failed. bytes: measured if
    it is resident, else expected; 0 if unknown. version: None if unknown. last_used: unix time of
    the last request since the start. error: why it failed last, while that is remembered.
    leases: requests that use it or wait for it, of all its versions. fetched_bytes and
    fetch_total_bytes: while fetching. old_versions: replaced ones that requests still use. card:
    title, handle and picture; None if unknown.
    """

    id: str
    state: str
    bytes: int
    version: str | None = None
    last_used: float | None = None
    error: str | None = None
    pinned: bool = False
    leases: int = 0
    fetched_bytes: int | None = None
    fetch_total_bytes: int | None = None
    old_versions: int = 0
    card: ModelCard | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """What the store says of a model: its package, or an error, or neither if that would take
    a look over the network; and what is known of its card."""

    model: str
    package: Package | None = None
    error: str | None = None
    card: ModelCard | None = None


def statuses(
    residency: Residency, fetcher: Fetcher, known: Sequence[Known], *, now: float, unix_time: float
) -> list[ModelStatus]:
    """In the engine thread. now: on the engine's clock, at `unix_time`."""
    keys = residency.keys_by_model(one.model for one in known)
    offset = unix_time - now
    return [_status(residency, fetcher, one, keys[one.model], now, offset) for one in known]


def models_in(residency: Residency, state: str, now: float) -> set[str]:
    """In the engine thread: models whose newest version is in this one of `WARM_STATES`."""
    cache = residency.cache
    return {
        residency.package_of(key).model
        for key, entry in cache.entries.items()
        if not entry.retired and cache.state(key, now) == state
    }


def _status(
    residency: Residency,
    fetcher: Fetcher,
    known: Known,
    keys: Sequence[str],
    now: float,
    offset: float,
) -> ModelStatus:
    cache, package, state, error = residency.cache, known.package, "cold", known.error
    entries = {key: entry for key in keys if (entry := cache.get(key)) is not None}
    current = [key for key, entry in entries.items() if not entry.retired]
    if package is None and current:
        package = residency.package_of(current[-1])
    expected = 0
    entry = None
    if package is not None:
        entry = entries.get(package.key)
        state = cache.state(package.key, now)
        error = error or cache.failure(package.key, now)
        expected = package.manifest.bytes_needed
    elif error is not None:
        state = "failed"
    progress = fetcher.progress(package.key) if package and state == "fetching" else None
    last_used = residency.last_used(known.model)
    return ModelStatus(
        id=known.model,
        state=state,
        bytes=entry.size if entry and entry.state is State.RESIDENT else expected,
        version=package.manifest.version if package else None,
        last_used=None if last_used is None else last_used + offset,
        error=error,
        pinned=known.model in residency.pins,
        leases=sum(entry.leases for entry in entries.values()),
        fetched_bytes=progress[0] if progress else None,
        fetch_total_bytes=progress[1] if progress else None,
        old_versions=sum(entry.retired for entry in entries.values()),
        card=known.card,
    )
