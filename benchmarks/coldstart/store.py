"""A store with many models of one, and tiny ones that push them out of the model cache."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.coldstart.eviction import EVICTORS
from benchmarks.common.formats import SAMPLE, export
from benchmarks.common.measuring import say
from benchmarks.common.model import Assets

_TINY = "small/original"


def large_ids(count: int) -> list[str]:
    return [f"large/m{number:02}" for number in range(count)]


def build(assets: Assets, store: Path, precision: str, large: Sequence[str]) -> int:
    """The models `large` and all `EVICTORS` in `store`; the bytes in memory of a large one.

    They are hard links to one package each, so the page cache holds one copy: a model is new to
    the server, but not to the system. Made anew each time: the exporter may have changed.
    """
    from gpt2serve.package import package_path, read_manifest

    shutil.rmtree(store, ignore_errors=True)
    say(f"making a store of {len(large)} models in {precision}")
    export(SAMPLE, store, _TINY, precision)
    package = package_path(assets.store, assets.model, "cpu", precision)
    _link(package, store, large)
    _link(package_path(store, _TINY, "cpu", precision), store, EVICTORS)
    return read_manifest(package).bytes_needed


def _link(package: Path, store: Path, models: Iterable[str]) -> None:
    for model in models:
        shutil.copytree(package, store / model / package.name, copy_function=os.link)
