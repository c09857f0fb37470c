"""How long `GET /models?search=` takes: the index alone, and a store in a folder.

python -m benchmarks.experiments.model_search --models 10000 --ids 100000
"""

from __future__ import annotations

import argparse
import random
import statistics
import string
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from gpt2serve import Engine
from gpt2serve.engine.stores.backend import sort_key
from gpt2serve.engine.stores.search import SearchIndex
from gpt2serve.package import (
    FORMAT_REVISION,
    GRAPH_FILE,
    MANIFEST_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    Dimensions,
    GenerationDefaults,
    KVLayout,
    Manifest,
    ModelCard,
    Source,
    encode_manifest,
    file_entry,
)

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
        median, most = milliseconds(partial(index.find, search, limit=20))
        print(f"  {name:40} {median:7.2f} ms (most {most:.2f})")


def write_store(store: Path, cards: dict[str, ModelCard]) -> None:
    """Packages that can be listed and described, though not loaded: their files are stubs."""
    stubs = store / ".stubs"
    stubs.mkdir()
    names = (GRAPH_FILE, WEIGHTS_FILE, TOKENIZER_FILE)
    for name in names:
        (stubs / name).write_bytes(b"{}")
    plain = Manifest(
        format_revision=FORMAT_REVISION,
        id="template",
        target="cpu",
        precision="int8",
        source=Source(name="stub", sha256="0" * 64, exporter_version="0"),
        dimensions=Dimensions(
            vocab_size=2, context_length=8, layers=1, heads=1, head_size=2, inner_size=8
        ),
        bos_token_id=0,
        eos_token_ids=(0,),
        inputs=(),
        outputs=(),
        kv=KVLayout(),
        generation_defaults=GenerationDefaults(),
        card=ModelCard(),
        bytes_needed=1,
        files={name: file_entry(stubs / name) for name in names},
    )
    for model, card in cards.items():
        package = store / model / "cpu-int8"
        package.mkdir(parents=True)
        for name in names:
            (package / name).hardlink_to(stubs / name)
        manifest = msgspec.structs.replace(plain, id=model, card=card)
        (package / MANIFEST_FILE).write_bytes(encode_manifest(manifest))


def measure_folder(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        write_store(store, made_up(count))
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
                median, most = milliseconds(partial(engine.list_models, search=search, limit=21))
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
