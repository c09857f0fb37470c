"""Which models get another home when replicas come or go, by Envoy itself, for docs/scaling.md.

    python -m benchmarks.experiments.envoy_moves      # make test-cluster installs Envoy

Envoy with k8s/envoy/envoy.yaml and replicas that only say who they are: every model is asked for
once with each number of replicas. Then the same with a ring in place of the Maglev table. A lost
replica is the last one: fleets are compared, and each grows from the one before.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from benchmarks.cluster.fleet import SERVICE
from benchmarks.cluster.name_server import NameServer
from benchmarks.cluster.router import Router
from benchmarks.common.servers import EVERYWHERE, free_port, wait_until

#: Each pair is compared in both directions.
PAIRS = ((2, 4), (3, 4), (9, 10), (20, 21), (20, 40), (100, 101))
#: Seconds from when Envoy calls a replica healthy until all its requests are spread anew.
SETTLE = 3.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=int, default=4_000)
    parser.add_argument("--ring-size", type=int, default=16_384, help="minimum_ring_size")
    args = parser.parse_args()
    for title, change in (("Maglev", _nothing), ("ring", _ring(args.ring_size))):
        homes = asyncio.run(_homes(args.models, change))
        print(f"\n{title}, {args.models:,} models")
        print("| replicas | models that move | at least | others', if the last are lost | most |")
        print("|---|---|---|---|---|")
        for few, many in PAIRS:
            print(_line(homes[few], homes[many], few, many))


def _line(before: Sequence[int], after: Sequence[int], few: int, many: int) -> str:
    """`most`: the models of the replica that has most, of the average."""
    pairs = list(zip(before, after, strict=True))
    moved = sum(one != other for one, other in pairs) / len(pairs)
    stayers = [one for one, other in pairs if other <= few and one != other]
    most = max(Counter(after).values()) * many / len(after)
    return (
        f"| {few} and {many} | {moved:.1%} | {1 - few / many:.1%} "
        f"| {len(stayers) / len(pairs):.1%} | {most:.2f}x |"
    )


async def _homes(models: int, change: Callable[[dict[str, Any]], None]) -> dict[int, list[int]]:
    """For each number of replicas the replica of each model."""
    counts = sorted({count for pair in PAIRS for count in pair})
    port, names = free_port(EVERYWHERE), NameServer(SERVICE)
    replicas = [await _replica(number, port) for number in range(1, counts[-1] + 1)]
    names.say([_address(1)])
    with tempfile.TemporaryDirectory() as folder:
        router = await asyncio.to_thread(
            lambda: Router(Path(folder), replica_port=port, name_server=names.port, change=change)
        )
        try:
            found = {}
            for count in counts:
                names.say(_address(number) for number in range(1, count + 1))
                await asyncio.to_thread(_wait_for, router, count)
                await asyncio.sleep(SETTLE)
                found[count] = await _ask(router.url, models)
                assert set(found[count]) <= set(range(1, count + 1))
            return found
        finally:
            router.close()
            names.close()
            for replica in replicas:
                await replica.cleanup()


def _wait_for(router: Router, count: int) -> None:
    wait_until(lambda: len(router.healthy()) == count, 60)


async def _ask(url: str, models: int) -> list[int]:
    """One after the other: what runs at the same time is spread, not only hashed."""
    found = []
    async with aiohttp.ClientSession() as session:
        for model in range(models):
            headers = {"x-gateway-model-name": f"org/model-{model}"}
            async with session.get(url, headers=headers) as answer:
                found.append(int(await answer.text()))
    return found


async def _replica(number: int, port: int) -> web.AppRunner:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=str(number))

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, _address(number), port).start()
    return runner


def _address(number: int) -> str:
    return f"127.0.1.{number}"


def _nothing(_: dict[str, Any]) -> None: ...


def _ring(size: int) -> Callable[[dict[str, Any]], None]:
    name = "envoy.load_balancing_policies.ring_hash"

    def change(config: dict[str, Any]) -> None:
        clusters = {cluster["name"]: cluster for cluster in config["static_resources"]["clusters"]}
        (policy,) = clusters["replicas"]["load_balancing_policy"]["policies"]
        hashing = policy["typed_extension_config"]["typed_config"]["consistent_hashing_lb_config"]
        extension = name.replace("envoy.", "envoy.extensions.", 1)
        policy["typed_extension_config"] = {
            "name": name,
            "typed_config": {
                "@type": f"type.googleapis.com/{extension}.v3.RingHash",
                "minimum_ring_size": size,
                "consistent_hashing_lb_config": hashing,
            },
        }

    return change


if __name__ == "__main__":
    main()
