"""The models themselves: many links to the files of one, in each system's format."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common.copies import many, model_ids
from benchmarks.common.model import Assets
from benchmarks.models.plan import CHECKPOINT, CT2, PACKAGE
from gpt2serve.package import package_path, read_manifest

_WEIGHT_FILES = {CHECKPOINT: "model.safetensors", CT2: "model.bin"}


@dataclass(frozen=True)
class Library:
    """Where `models` lie. sizes: bytes that a loaded model takes, by format."""

    folder: Path
    models: tuple[str, ...]
    sizes: dict[str, int]

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def ct2(self) -> Path:
        return self.folder / "ct2"


def make(assets: Assets, count: int, formats: Iterable[str], folder: Path) -> Library:
    """`count` models of the one in `assets`, which must have these formats."""
    wanted = sorted({*formats, CHECKPOINT})
    many(assets, count, wanted, folder)
    sizes = {name: size_of(assets, name) for name in wanted}
    return Library(folder, tuple(model_ids(count)), sizes)


def size_of(assets: Assets, name: str) -> int:
    """Bytes of one model in memory: what our manifest says, of others the file of weights."""
    if name == PACKAGE:
        return read_manifest(package_path(assets.store, assets.model, "cpu", "int8")).bytes_needed
    folder = assets.ct2 / "int8" if name == CT2 else assets.checkpoint
    return (folder / _WEIGHT_FILES[name]).stat().st_size
