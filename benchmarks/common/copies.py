"""Many models of one: for servers and caches, which know a model by its id and its files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from benchmarks.common.model import Assets
from gpt2serve.package import MANIFEST_FILE


def model_ids(count: int) -> list[str]:
    """bench/m000, bench/m001, ..."""
    return [f"bench/m{number:03}" for number in range(count)]


def many(
    assets: Assets, count: int, formats: Iterable[str], folder: Path, *, copy: bool = False
) -> list[Assets]:
    """`count` models with the ids of `model_ids`, in `folder`, in these formats.

    formats: names of `model.FORMATS`, and "checkpoint"; `assets` must have been prepared with
    them. Files are hard links, so that a thousand models take no space; with `copy` they are
    different files on the disk, which a page cache or a disk cannot mistake for each other.
    What is there already stays, unless it differs. All are on one file system.

        FOLDER/store/<id>/cpu-int8/    FOLDER/checkpoints/<id>/    FOLDER/ct2/<id>/int8/
        FOLDER/onnx/<id>/              FOLDER/gguf/<id>.gguf
    """
    kinds = list(formats)
    made = [_placed(folder, model) for model in model_ids(count)]
    for one in made:
        for kind in kinds:
            for source, target in _pairs(kind, assets, one):
                _make(source, target, copy=copy)
    return made


def _placed(folder: Path, model: str) -> Assets:
    return Assets(
        checkpoint=folder / "checkpoints" / model,
        store=folder / "store",
        ct2=folder / "ct2" / model,
        onnx=folder / "onnx" / model,
        gguf=folder / "gguf" / f"{model}.gguf",
        model=model,
    )


def _pairs(kind: str, old: Assets, new: Assets) -> list[tuple[Path, Path]]:
    """Files or folders, from and to."""
    name, _, precision = kind.partition("-")
    match name:
        case "package":
            variant = f"{'cuda' if precision == 'fp16' else 'cpu'}-{precision}"
            return [(old.store / old.model / variant, new.store / new.model / variant)]
        case "ct2":
            return [(old.ct2 / precision, new.ct2 / precision)]
        case "checkpoint" | "onnx" | "gguf":
            return [(getattr(old, name), getattr(new, name))]
    raise ValueError(f"There is no format {kind}.")


def _make(source: Path, target: Path, *, copy: bool) -> None:
    if not source.is_dir():
        _make_file(source, target, copy=copy)
        return
    for file in source.iterdir():
        _make_file(file, target / file.name, copy=copy)


def _make_file(source: Path, target: Path, *, copy: bool) -> None:
    if target.exists():
        if _is_made(source, target, copy=copy):
            return
        target.unlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.name == MANIFEST_FILE:
        # It names its model. The folder's name is <org>/<name>/<variant>.
        manifest = json.loads(source.read_text(encoding="utf-8"))
        manifest["id"] = "/".join(target.parts[-4:-2])
        target.write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    elif copy:
        shutil.copy2(source, target)
    else:
        target.hardlink_to(source)


def _is_made(source: Path, target: Path, *, copy: bool) -> bool:
    if source.name == MANIFEST_FILE:
        return False
    if not copy:
        return target.samefile(source)
    here, there = target.stat(), source.stat()
    same_content = (here.st_size, here.st_mtime_ns) == (there.st_size, there.st_mtime_ns)
    return same_content and here.st_ino != there.st_ino
