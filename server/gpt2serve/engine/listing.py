"""Which models there are, and how the engine has them."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from gpt2serve.engine.core import EngineCore
from gpt2serve.engine.gate import Gate
from gpt2serve.engine.status import WARM_STATES, Known, ModelStatus, models_in, statuses
from gpt2serve.engine.store import ModelStore
from gpt2serve.errors import (
    Gpt2ServeError,
    InvalidModelId,
    InvalidRequest,
    ModelNotFound,
    PackageError,
    StoreUnavailable,
)

#: Looked through at a time for those that somebody may see.
_IDS_AT_ONCE = 1000


class Listing:
    """What `Engine.list_models`, `list_ids` and `status` promise. Thread-safe."""

    def __init__(
        self,
        store: ModelStore,
        core: EngineCore,
        gate: Gate,
        *,
        clock: Callable[[], float],
        local: bool,
    ) -> None:
        """`local`: a look at a model takes no network."""
        self._store = store
        self._core = core
        self._gate = gate
        self._clock = clock
        self._local = local

    def status(self, model: str) -> ModelStatus:
        (found,) = self._statuses([self._look(model)])
        return found

    def models(
        self,
        after: str,
        limit: int,
        search: str,
        state: str | None,
        allowed: Callable[[str], bool] | None,
    ) -> list[ModelStatus]:
        among = None if state is None else self._models_in(state)
        page = partial(self._store.list, search=search, among=among)
        models = _those_allowed(page, after, limit, allowed)
        return self._statuses([self._glance(model) for model in models])

    def ids(self, after: str, limit: int, allowed: Callable[[str], bool] | None) -> list[str]:
        return _those_allowed(self._store.list, after, limit, allowed)

    def _models_in(self, state: str) -> set[str]:
        if state not in WARM_STATES:
            raise InvalidRequest("state", f"must be one of {', '.join(WARM_STATES)}")
        models = self._core.models
        return self._gate.ask(lambda: models_in(models, state, self._clock()))

    def _glance(self, model: str) -> Known:
        """As much as can be told without a network.

        What was deleted since the index was made is told too: a page that is short without being
        the last would end the listing.
        """
        if not self._local:
            return Known(model, self._store.peek(model), card=self._store.card(model))
        try:
            return self._look(model)
        except Gpt2ServeError:
            return Known(model)

    def _look(self, model: str) -> Known:
        try:
            package = self._store.resolve(model)
            return Known(model, package, card=self._store.card(model))
        except (ModelNotFound, InvalidModelId):
            raise
        except StoreUnavailable as error:
            return Known(model, self._store.peek(model), str(error), self._store.card(model))
        except PackageError as error:
            # It must not hide all others in a list.
            return Known(model, error=str(error))

    def _statuses(self, known: list[Known]) -> list[ModelStatus]:
        """One way to the engine thread and back for all of them."""
        core = self._core
        return self._gate.ask(
            lambda: statuses(
                core.models, core.fetcher, known, now=self._clock(), unix_time=time.time()
            )
        )


def _those_allowed(
    page: Callable[[str, int], list[str]],
    after: str,
    limit: int,
    allowed: Callable[[str], bool] | None,
) -> list[str]:
    """The first `limit` ids behind `after` that are allowed, of what `page(after, limit)` gives."""
    if allowed is None:
        return page(after, limit)
    found: list[str] = []
    while len(found) < limit:
        ids = page(after, _IDS_AT_ONCE)
        found += filter(allowed, ids)
        if len(ids) < _IDS_AT_ONCE:
            break
        after = ids[-1]
    return found[:limit]
