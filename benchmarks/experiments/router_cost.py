"""What a request and a streamed token cost Envoy with k8s/envoy/envoy.yaml, for docs/scaling.md.

    python -m benchmarks.experiments.router_cost --store models/ --model george-washington

A real replica behind a real router. The processor time of Envoy's process is counted, not that of
clients or of the replica, so other work on the machine changes little. Bodies name the model, so
they are parsed. `make models test-cluster` makes what it needs.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from benchmarks.cluster.fleet import Fleet

CLIENTS = 16
#: As many as a sample's context has room for, and one.
MANY, ONE = 200, 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, default=Path("models"))
    parser.add_argument("--model", default="george-washington")
    parser.add_argument("--requests", type=int, default=2_000)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--connections", type=int, default=2_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Fleet(args.store, Path(folder), 1) as fleet:
        cost = Cost(fleet.router.process.pid)
        print(f"Envoy, no connections: {cost.megabytes():.0f} MB")
        ask = Asker(fleet.router.url, args.model)
        whole = cost.of(args.requests, lambda: ask.all(args.requests, ONE, stream=False))
        print(f"a request with a whole answer: {whole * 1e6:.0f} us of a core")
        short = cost.of(args.streams, lambda: ask.all(args.streams, ONE, stream=True))
        long = cost.of(args.streams, lambda: ask.all(args.streams, MANY, stream=True))
        print(f"a stream of one token: {short * 1e6:.0f} us")
        print(f"each token more: {(long - short) / (MANY - ONE) * 1e6:.1f} us")
        before = cost.megabytes()
        grown = asyncio.run(_idle(fleet.router.ports["http"], args.connections, cost)) - before
        print(f"an idle connection of a client: {grown / args.connections * 1e3:.0f} kB")
        begin = cost.seconds()
        time.sleep(10)
        print(f"doing nothing: {(cost.seconds() - begin) / 10:.1%} of a core")


class Cost:
    """Of a process and its children."""

    def __init__(self, pid: int) -> None:
        process = psutil.Process(pid)
        self._processes = [process, *process.children(recursive=True)]

    def seconds(self) -> float:
        times = [process.cpu_times() for process in self._processes]
        return float(sum(one.user + one.system for one in times))

    def megabytes(self) -> float:
        return float(max(process.memory_info().rss for process in self._processes)) / 1e6

    def of(self, count: int, work: Callable[[], Coroutine[Any, Any, None]]) -> float:
        """Seconds of each of `count`."""
        before = self.seconds()
        asyncio.run(work())
        return (self.seconds() - before) / count


class Asker:
    def __init__(self, url: str, model: str) -> None:
        self._url, self._model = url, model

    async def all(self, count: int, tokens: int, *, stream: bool) -> None:
        body = {"model": self._model, "prompt": "We", "stream": stream}
        body |= {"max_new_tokens": tokens, "min_new_tokens": tokens}
        left = iter(range(count))

        async def client(session: aiohttp.ClientSession) -> None:
            for _ in left:
                async with session.post(f"{self._url}/generate", json=body) as answer:
                    assert answer.status == 200, await answer.text()
                    await answer.read()

        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(client(session) for _ in range(CLIENTS)))


async def _idle(port: int, count: int, cost: Cost) -> float:
    """Megabytes with so many connections, each of which has had an answer."""
    head = b"GET /healthz HTTP/1.1\r\nHost: router\r\n\r\n"
    connections = []
    for _ in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head)
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        connections.append(writer)
    megabytes = cost.megabytes()
    for writer in connections:
        writer.close()
    return megabytes


if __name__ == "__main__":
    main()
