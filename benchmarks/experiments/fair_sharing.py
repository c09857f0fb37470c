"""What one key that floods the server costs another (docs/decisions/0019-keys-and-fair-sharing.md).

    python -m benchmarks.experiments.fair_sharing
    gpt2export samples/george-washington --store models
    python -m benchmarks.experiments.fair_sharing --store models --model george-washington

Of two owners one keeps `--flood` requests in flight, of a model or of many; the other sends one
request after the other. Prints the other's time to the first token and to the end, and the
engine's steps until the end: alone, with the two told apart, and as one, which is first come,
first served.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.common.copies import many, model_ids
from benchmarks.common.model import CACHE, assets_in, prepare
from benchmarks.models.plan import PACKAGE
from gpt2serve import Engine, SamplingParams
from gpt2serve.engine.events import TokenEvent
from gpt2serve.engine.observer import NoObserver, StepKind
from gpt2serve.errors import Overloaded
from gpt2serve.package import package_path, read_manifest

PROMPT = "My fellow citizens, the state of the union is"
#: What the other one asks for, and what the one who floods does.
SHORT = SamplingParams(max_new_tokens=30, min_new_tokens=30, do_sample=True, seed=1)
LONG = SamplingParams(max_new_tokens=60, min_new_tokens=60, do_sample=True, seed=1)


class Steps(NoObserver):
    """Counts the engine's steps, which do not depend on what else the machine does."""

    def __init__(self) -> None:
        self.count = 0

    def on_step(self, kind: StepKind, rows: int, seconds: float) -> None:  # noqa: ARG002
        self.count += 1


@dataclass
class Times:
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        columns = [[1e3 * t for t in self.first], [1e3 * t for t in self.whole], self.steps]
        return "".join(f"{value:9.0f}" for column in columns for value in _p(column))


def _p(times: Sequence[float]) -> tuple[float, float]:
    return statistics.median(times), statistics.quantiles(times, n=20)[-1]


class Bench:
    def __init__(self, engine: Engine, steps: Steps, requests: int) -> None:
        self.engine = engine
        self.steps = steps
        self.requests = requests
        #: Tokens that the flood got.
        self.flooded = 0

    async def ask(self, model: str, owner: str, params: SamplingParams) -> tuple[float, float]:
        """Seconds until the first token and until the end."""
        begin = time.perf_counter()
        prepared = await asyncio.to_thread(self.engine.prepare, model, PROMPT, params)
        stream = self.engine.submit(prepared, wants_tokens=True, owner=owner)
        first = 0.0
        try:
            async for events in stream.batches():
                first = first or time.perf_counter() - begin
                if params is LONG:
                    self.flooded += sum(isinstance(event, TokenEvent) for event in events)
        finally:
            stream.cancel()
        return first, time.perf_counter() - begin

    async def flood(self, models: Sequence[str], number: int, owner: str) -> None:
        while True:
            try:
                await self.ask(models[number % len(models)], owner, LONG)
            except Overloaded:
                await asyncio.sleep(0.05)

    @contextlib.asynccontextmanager
    async def flooded_by(
        self, models: Sequence[str], flood: int, owner: str
    ) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self.flood(models, n, owner)) for n in range(flood)]
        await asyncio.sleep(5)  # the models are there, and the batches are full
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def measure(self, model: str, owner: str) -> Times:
        times = Times()
        for _ in range(self.requests):
            before = self.steps.count
            first, whole = await self.ask(model, owner, SHORT)
            times.first.append(first)
            times.whole.append(whole)
            times.steps.append(self.steps.count - before)
        return times


async def run(
    engine: Engine, steps: Steps, models: Sequence[str], args: argparse.Namespace
) -> None:
    bench = Bench(engine, steps, args.requests)
    mine, others = models[0], models[1:]
    await bench.measure(mine, "")
    print(f"{'':34}{'first token, ms':>18}{'answer, ms':>18}{'answer, steps':>18}{'flood,':>11}")
    print(f"{'':34}" + f"{'p50':>9}{'p95':>9}" * 3 + f"{'tokens/s':>11}")
    print(f"{'alone':34}{await bench.measure(mine, 'other')}", flush=True)
    floods = {f"{len(others)} other models": others}
    if not args.room:
        floods = {"the same model": [mine], "another model": others[:1]} | floods
    for name, flooded in floods.items():
        for way, owners in (("as one", ("", "")), ("told apart", ("flood", "other"))):
            async with bench.flooded_by(flooded, args.flood, owners[0]):
                before, begin = bench.flooded, time.perf_counter()
                times = await bench.measure(mine, owners[1])
                rate = (bench.flooded - before) / (time.perf_counter() - begin)
            print(f"{f'{name}, {way}':34}{times}{rate:11.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flood", type=int, default=64, help="requests in flight")
    parser.add_argument("--models", type=int, default=20, help="of the widest flood")
    parser.add_argument("--room", type=int, help="memory for so many models; left out, for all")
    parser.add_argument("--requests", type=int, default=20, help="of the other owner, each time")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--store", type=Path, help="has the package of --model, in int8")
    parser.add_argument("--model", help="this one, not one of GPT-2's size")
    parser.add_argument("--cache", type=Path, default=CACHE)
    args = parser.parse_args()
    assets = assets_in(args.cache) if args.store else prepare(args.cache, [PACKAGE])
    if args.store:
        assets = replace(assets, store=args.store, model=args.model)
    folder = args.cache / "fair-sharing" / assets.model
    many(assets, args.models + 1, [PACKAGE], folder)
    steps = Steps()
    room: int | str = "60%"
    if args.room:
        package = read_manifest(package_path(folder / "store", model_ids(1)[0], "cpu", "int8"))
        room = args.room * package.bytes_needed
    options = {"device": "cpu", "threads": args.threads, "model_cache_bytes": room}
    with Engine(folder / "store", observer=steps, **options) as engine:
        asyncio.run(run(engine, steps, model_ids(args.models + 1), args))


if __name__ == "__main__":
    main()
