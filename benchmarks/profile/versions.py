"""The code that is measured: what is here, and beside it an earlier commit of this project."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.common import model
from benchmarks.common.formats import export
from benchmarks.common.measuring import say
from benchmarks.common.model import ROOT

NOW = "now"


@dataclass(frozen=True)
class Version:
    """name: `NOW`, or the commit. environment: makes Python import its code."""

    name: str
    store: Path
    environment: Mapping[str, str] = field(default_factory=dict)


def now(assets: model.Assets) -> Version:
    return Version(NOW, assets.store)


def earlier(revision: str, assets: model.Assets, cache: Path, precision: str) -> Version | None:
    """The server of a commit, and the model exported by its exporter; both are kept in `cache`.

    None, and a line that says so, if git does not know the commit, as in a shallow clone. Only
    the two packages are taken: it is measured by the benchmark that is here.
    """
    commit = _git("rev-parse", "--short", f"{revision}^{{commit}}")
    if not commit:
        say(f"without {revision}: git does not know it")
        return None
    folder = cache / "versions" / commit
    code, store = folder / "code", folder / "store"
    if not code.is_dir():
        _unpack(commit, code)
    paths = [str(ROOT), str(code / "server"), str(code / "export")]
    environment = {"PYTHONPATH": os.pathsep.join(paths)}
    if not (store / assets.model).is_dir():
        say(f"exporting the model as {commit} does")
        export(assets.checkpoint, store, assets.model, precision, environment)
    return Version(commit, store, environment)


def _unpack(commit: str, folder: Path) -> None:
    unfinished = folder.with_name(folder.name + ".unfinished")
    unfinished.mkdir(parents=True, exist_ok=True)
    archive = subprocess.run(
        ["git", "archive", commit, "server", "export"], cwd=ROOT, capture_output=True, check=True
    )
    subprocess.run(["tar", "-x", "-C", unfinished], input=archive.stdout, check=True)
    unfinished.rename(folder)


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""
