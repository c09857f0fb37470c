"""The whole engine, around fake models, with requests of several owners."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt2serve import Engine, SamplingParams
from gpt2serve.engine.kv_buffers import bytes_per_token
from gpt2serve.engine.loader import LoadResult
from gpt2serve.engine.messages import Submit
from gpt2serve.engine.request import Request
from gpt2serve.engine.stream import TokenStream
from gpt2serve.errors import Overloaded
from tests.engine_fakes import DIMENSIONS, PATIENCE, FakeModels, FakeRunner, make_request
from tests.unit.model_life import publish
from tests.unit.test_engine_core import Gate

FOREVER = 1e6


def test_an_owner_has_no_more_of_the_queue_than_it_leaves(
    opened: Callable[..., Engine],
    models: FakeModels,
) -> None:
    gate = Gate()
    models.make = lambda _: gate
    engine = opened(max_queue=8)
    engine.start()

    async def scenario() -> None:
        prepared = engine.prepare("a", "x", SamplingParams(max_new_tokens=2))

        def submit(owner: str) -> TokenStream:
            return engine.submit(prepared, wants_tokens=False, owner=owner)

        def fill(owner: str) -> list[TokenStream]:
            """As many requests as there is room for."""
            streams = []
            for _ in range(20):
                try:
                    streams.append(submit(owner))
                except Overloaded as error:
                    refusals.append(str(error))
                    break
            return streams

        refusals: list[str] = []
        flood = fill("flood")
        assert len(flood) == 4
        (refusal,) = refusals
        assert refusal.startswith("4 requests of yours are being worked on or waiting already")
        second, third = fill("second"), fill("third")
        assert (len(second), len(third)) == (2, 1)
        rest = fill("")
        assert len(rest) == 1, "nobody in particular may have the last place"
        assert fill("fourth") == []
        assert refusals[-1] == "8 requests are being worked on or waiting already."
        gate.open.set()
        for stream in (*flood, *second, *third, *rest):
            await asyncio.wait_for(stream.result(), PATIENCE)
        assert len(fill("flood")) == 4, "places did not come back"

    asyncio.run(scenario())


@pytest.mark.parametrize(("owners", "gets_in"), [(("hot", "cold"), True), (("", ""), False)])
def test_who_has_nothing_does_not_wait_for_the_kv_cache_of_who_has_all(
    opened: Callable[..., Engine],
    models: FakeModels,
    owners: tuple[str, str],
    gets_in: bool,
) -> None:
    # Room for two sequences of "a", or for one long one of "b". "a" never has less than one.
    chunk, ticks = 16, itertools.count()
    engine = opened(
        start=False,
        kv_cache_bytes=bytes_per_token(DIMENSIONS, "float32") * (2 * 32 + chunk + 4),
        prefill_chunk=chunk,
        model_max_wait=FOREVER,
        clock=lambda: next(ticks) / 100,
    )
    core = engine._core  # its thread is not started: the test goes through the steps itself

    def submit(model: str, tokens: int, owner: str) -> Request:
        package = engine._store.resolve(model)
        request = make_request(
            [2, 3, 4], package=package, max_tokens=tokens, min_tokens=tokens, owner=owner
        )
        engine._gate.admitted += 1
        engine._gate.owned[owner] += 1
        core._handle(Submit(request))
        if core.models.cache.state(package.key, 0.0) == "loading":
            core._handle(LoadResult(package, 0.0, FakeRunner(), 50))
        return request

    hot = [submit("a", 20, owners[0]), submit("a", 28, owners[0])]
    core._step()
    cold = submit("b", 60, owners[1])
    for _ in range(200):
        if cold.ended:
            break
        if sum(not request.ended for request in hot) < 2:
            hot.append(submit("a", 20, owners[0]))
        core._step()
        core.check_integrity()
    assert cold.ended is gets_in


def test_two_owners_get_the_same_time_whatever_number_of_models_each_has(
    folder: Path,
    opened: Callable[..., Engine],
    models: FakeModels,
) -> None:
    ticks = itertools.count()
    publish(folder, "org/d")
    engine = opened(start=False, clock=lambda: next(ticks) / 1000)
    core = engine._core
    rows: dict[str, int] = {"many": 0, "one": 0}

    def submit(model: str, owner: str) -> None:
        package = engine._store.resolve(model)
        request = make_request(
            [2, 3], package=package, max_tokens=60, min_tokens=60, owner=owner, seed=1
        )
        core._handle(Submit(request))
        if core.models.cache.state(package.key, 0.0) == "loading":
            core._handle(LoadResult(package, 0.0, FakeRunner(), 50))

    for model in ("a", "b", "c"):
        submit(model, "many")
    submit("org/d", "one")
    charge = core.shares.charge

    def counted(owners: dict[str, int], seconds: float) -> None:
        for owner, count in owners.items():
            rows[owner] += count
        charge(owners, seconds)

    core.shares.charge = counted  # type: ignore[assignment, method-assign]
    for _ in range(100):
        core._step()
        core.check_integrity()
    assert abs(rows["many"] - rows["one"]) <= 2
