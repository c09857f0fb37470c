"""How long `GET /models?search=` takes: the index alone, and a store in a folder.

python -m benchmarks.experiments.model_search --models 10000 --ids 100000
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import string
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from gpt2serve import Engine
from gpt2serve.engine.stores.backend import sort_key
from gpt2serve.engine.stores.search import SearchIndex
from gpt2serve.package import MANIFEST_FILE, ModelCard, encode_manifest
from tests.unit.engine_support import manifest, write_package

TIMES = 30
#: What somebody types who looks for one of many, and what costs most.
SEARCHES = {
    "one letter": "e",
    "a few letters": "ele",
    "everybody's": "huggingtweets",
    "one of all": "huggingtweets/k7",
    "words of a title": "model el",
    "in the middle of all, beginning none": "uggingtweet",
    "nobody's": "xqzxqz",
    "in all, and nobody's": "huggingtweets xqzxqz",
    "in all and many, together nowhere": "huggingtweets ele zzz",
}


def made_up(count: int) -> dict[str, ModelCard]:
    draw = random.Random(0)

    def word() -> str:
        return "".join(draw.choices(string.ascii_lowercase, k=draw.randint(3, 8)))

    cards = {}
    for number in range(count):
        handle = f"{word()}{draw.choice(['', '_', '-'])}{word()}{number % 100}"
        picture = f"http://images.example/profile_images/{number}/{word()}_400x400.jpg"
        card = ModelCard(
            title=f"{word()} {word()} \U0001f916", handle=f"@{handle}", picture=picture
        )
        cards[f"huggingtweets/{handle}"] = card
    return cards


def milliseconds(call: Callable[[], object]) -> tuple[float, float]:
    """Median and the most."""
    times = []
    for _ in range(TIMES):
        begin = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times), max(times)


def measure_index(count: int) -> None:
    cards = made_up(count)
    keys = sorted(map(sort_key, cards))
    begin = time.perf_counter()
    index = SearchIndex(keys, cards)
    took = time.perf_counter() - begin
    print(f"index of {len(keys):,} models: made in {took * 1e3:.0f} ms")
    for name, search in SEARCHES.items():
        median, most = milliseconds(lambda search=search: index.find(search, limit=20))
        print(f"  {name:40} {median:7.2f} ms (most {most:.2f})")


def measure_folder(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        template = write_package(store, "template")
        for model, card in made_up(count).items():
            package = store / model / template.name
            package.mkdir(parents=True)
            for file in template.iterdir():
                if file.name != MANIFEST_FILE:
                    (package / file.name).hardlink_to(file)
            (package / MANIFEST_FILE).write_bytes(encode_manifest(manifest(model, card=card)))
        shutil.rmtree(store / "template")
        begin = time.perf_counter()
        engine = Engine(store, store_refresh=3600.0)
        print(f"folder of {count:,} models: opened in {(time.perf_counter() - begin) * 1e3:.1f} ms")
        with engine:
            begin = time.perf_counter()
            engine.list_models(search="e", limit=21)
            print(f"  first search: {(time.perf_counter() - begin) * 1e3:.0f} ms")
            engine._store._finder.join()
            print(f"  all cards read after {time.perf_counter() - begin:.1f} s")
            for name, search in SEARCHES.items():
                median, most = milliseconds(
                    lambda search=search: engine.list_models(search=search, limit=21)
                )
                print(f"  {name:40} {median:7.2f} ms (most {most:.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=10_000, help="in a folder")
    parser.add_argument("--ids", type=int, default=100_000, help="in an index in memory")
    arguments = parser.parse_args()
    measure_index(arguments.ids)
    measure_folder(arguments.models)


if __name__ == "__main__":
    main()
