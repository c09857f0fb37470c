"""Random requests for far more models than there is room for; prints what memory they took.

    python -m tests.integration.random_traffic STORE ROOM REQUESTS

A process of its own, as memory that other tests have touched would hide what this takes.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from pathlib import Path

from gpt2serve import Engine, SamplingParams
from tests.engine_driver import MIB, Watcher, assert_idle, open_engine, resident_bytes

CLIENTS = 6
KV_BYTES = 48 * MIB


def main(store: Path, room: int, requests: int) -> dict[str, int]:
    watcher = Watcher()
    with open_engine(store) as probe:
        models = [status.id for status in probe.list_models(limit=1000)]
        size = max(status.bytes for status in probe.list_models(limit=1000))
        # What happens once in a process, such as the runtime's own memory, is not the cache's.
        probe.generate(models[0], "We", SamplingParams(max_new_tokens=40))
    engine = open_engine(
        store,
        model_cache_bytes=room * size,
        kv_cache_bytes=KV_BYTES,
        observer=watcher,
        model_max_wait=0.2,
    )
    engine.start()
    before = resident_bytes()
    highest, used, over = 0, 0, False
    working = threading.Event()
    working.set()

    def watch() -> None:
        nonlocal highest, used, over
        while working.is_set():
            stats = engine.stats()
            highest = max(highest, resident_bytes())
            used = max(used, stats.model_cache_used_bytes)
            over |= stats.model_cache_used_bytes > stats.model_cache_limit_bytes
            over |= stats.kv_cache_used_bytes > stats.kv_cache_limit_bytes
            time.sleep(0.005)

    watching = threading.Thread(target=watch)
    watching.start()
    clients = [
        threading.Thread(target=client, args=(engine, models, n, requests // CLIENTS))
        for n in range(CLIENTS)
    ]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    working.clear()
    watching.join()
    assert_idle(engine)
    after = resident_bytes()
    engine.close()
    return {
        "before": before,
        "highest": highest,
        "after": after,
        "used": used,
        "over": over,
        "model_budget": room * size,
        "kv_budget": KV_BYTES,
        "loads": watcher.loads.count(True),
        "finished": sum(summary.error is None for summary in watcher.finished),
    }


def client(engine: Engine, models: list[str], seed: int, requests: int) -> None:
    generator = random.Random(seed)
    for _ in range(requests):
        params = SamplingParams(
            max_new_tokens=generator.choice([2, 10, 40]),
            num_return_sequences=generator.choice([1, 1, 4]),
            do_sample=True,
            seed=generator.randrange(100),
        )
        engine.generate(generator.choice(models), "We the people", params)


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))  # noqa: T201
