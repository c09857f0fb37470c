"""What a list of a million models costs a replica that is asked for it, for docs/scaling.md.

    python -m benchmarks.experiments.many_ids --package models/george-washington/cpu-int8

The catalog and the search index, with ids that are made up in place of a store's listing, and
10,000 manifests, as the server remembers them of models that were asked for. A thread that wants to
wake every 2 ms stands for the engine's: it shows for how long others are kept from running.
"""

from __future__ import annotations

import argparse
import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from gpt2serve.engine.stores.backend import page_of
from gpt2serve.engine.stores.catalog import Catalog
from gpt2serve.engine.stores.known_models import REMEMBERED
from gpt2serve.engine.stores.search import SearchIndex
from gpt2serve.package import MANIFEST_FILE, decode_manifest

TICK = 0.002
_Result = TypeVar("_Result")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ids", type=int, default=1_000_000)
    parser.add_argument("--package", type=Path, help="whose manifest is remembered many times")
    args = parser.parse_args()
    catalog = Catalog(
        lambda: ids(args.ids), refresh=0.0, clock=time.monotonic, on_renewed=lambda _: None
    )
    keys = told(f"list of {args.ids:,} ids", catalog.keys)
    told("the list anew, beside the old one", catalog._renew)
    told("a page of 1,000", lambda: page_of(keys, "org500/model-0000500", 1_000))
    index = told("search index, ids only", lambda: SearchIndex(keys, {}))
    told("a search that finds 20", lambda: index.find("00004", limit=20))
    told("a search that finds nothing", lambda: index.find("xqzxqz"))
    if args.package is not None:
        raw = (args.package / MANIFEST_FILE).read_bytes()
        told(
            f"{REMEMBERED:,} manifests of {len(raw):,} bytes",
            lambda: [decode_manifest(raw, "one") for _ in range(REMEMBERED)],
        )


def ids(count: int) -> Iterator[str]:
    """In the order of a bucket's listing."""
    return (f"org{number // 1000:03}/model-{number:07}" for number in range(count))


def told(title: str, call: Callable[[], _Result]) -> _Result:
    gc.collect()
    before, begin = resident(), time.perf_counter()
    with Ticker() as ticker:
        result = call()
        took = time.perf_counter() - begin
    gc.collect()
    grown = (resident() - before) / 1e6
    print(f"{title:40} {took * 1e3:9.1f} ms  {grown:+7.0f} MB  others wait {ticker.worst:5.0f} ms")
    return result


class Ticker:
    """`worst`: milliseconds by which the thread was late, at most."""

    def __enter__(self) -> Ticker:
        self.worst = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tick)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _tick(self) -> None:
        while not self._ended.is_set():
            due = time.perf_counter() + TICK
            time.sleep(TICK)
            self.worst = max(self.worst, (time.perf_counter() - due) * 1e3)


def resident() -> int:
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in x]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
