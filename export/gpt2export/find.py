"""From the command line's words to checkpoints with ids.

A word is a checkpoint (a folder with a config.json, or a hub id), or a folder of checkpoints:
`FOLDER/name/` and `FOLDER/org/name/`, whose ids are `name` and `org/name`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gpt2export.errors import UsageError
from gpt2export.exporter import Job
from gpt2export.hub import default_id
from gpt2export.portable import FOLDER
from gpt2export.sources import CONFIG_FILE
from gpt2export.tensors import WEIGHT_FILES
from gpt2serve.package import VARIANTS, InvalidModelId, check_model_id, variant_name

#: Folder names inside a model's folder: a model 'org/portable' would lie in one of 'org'.
_TAKEN = frozenset({FOLDER, *(variant_name(*variant) for variant in VARIANTS)})

#: What makes a folder a checkpoint, if only a broken one: its failure is to be seen.
_SIGNS = frozenset({CONFIG_FILE, *WEIGHT_FILES})


@dataclass(frozen=True)
class Entry:
    """A word, and the id that was given with it."""

    word: str
    model: str | None = None


@dataclass
class Found:
    """`wrong`: what can not be exported, with the reason. `without`: folders left out, for they
    hold no checkpoint."""

    jobs: list[Job] = field(default_factory=list)
    wrong: list[tuple[Job, str]] = field(default_factory=list)
    without: list[str] = field(default_factory=list)


def read_list(lines: Iterable[str]) -> Iterator[Entry]:
    """One checkpoint a line, with its id after a tab if it is to have another one.

    Empty lines and lines that begin with '#' say nothing.
    """
    for line in lines:
        text = line.strip("\r\n")
        if text.strip() and not text.startswith("#"):
            word, _, model = text.partition("\t")
            yield Entry(word.strip(), model.strip() or None)


def find(entries: Iterable[Entry]) -> Found:
    """Raises `UsageError` and `InvalidModelId` for words that cannot be meant so.

    A folder of checkpoints may hold some that cannot be exported: they do not stop the others.
    """
    found = Found()
    for entry in dict.fromkeys(entries):
        _add(found, entry)
    found.jobs = _once(found.jobs)
    return found


def check_id(model: str) -> str:
    """Raises `InvalidModelId` or `UsageError`."""
    last = check_model_id(model).rsplit("/", 1)[-1]
    if "/" in model and last in _TAKEN:
        raise UsageError(f"{model!r} is not possible as an id: {last!r} is a package's folder.")
    return model


def _add(found: Found, entry: Entry) -> None:
    folder = Path(entry.word).expanduser()
    inside = [] if _is_checkpoint(folder) else list(_inside(folder, found.without))
    if not inside:
        _add_one(found, Job(entry.word, check_id(entry.model or default_id(entry.word))), folder)
        return
    if entry.model:
        raise UsageError(
            f"the id {entry.model!r} names one model; {entry.word} is a folder of {len(inside)}."
        )
    for model in inside:
        job = Job(str(folder / model), model)
        try:
            found.jobs.append(Job(job.checkpoint, check_id(model)))
        except (InvalidModelId, UsageError) as error:
            advice = "Rename the folder, or give its checkpoint an id with --id or --from-file."
            found.wrong.append((job, f"{error} {advice}"))


def _add_one(found: Found, job: Job, folder: Path) -> None:
    if folder.is_dir() and not _is_checkpoint(folder):
        reason = (
            f"{job.checkpoint} holds no checkpoint: there is no {CONFIG_FILE} in it, nor in "
            "folders in it on one level (name/) or two (org/name/)."
        )
        found.wrong.append((job, reason))
    else:
        found.jobs.append(job)


def _inside(folder: Path, without: list[str]) -> Iterator[str]:
    """Paths below `folder` of the checkpoints in it, in order."""
    for first in _folders(folder):
        if _is_checkpoint(folder / first):
            yield first
            continue
        below = [name for name in _folders(folder / first) if _is_checkpoint(folder / first / name)]
        yield from (f"{first}/{name}" for name in below)
        if not below:
            without.append(str(folder / first))


def _folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())


def _is_checkpoint(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _SIGNS)


def _once(jobs: list[Job]) -> list[Job]:
    """The same checkpoint under the same id counts once; two under one id are a mistake."""
    kept: dict[str, Job] = {}
    twice: dict[str, None] = {}
    for job in jobs:
        first = kept.setdefault(job.model, job)
        if first is not job and _place(first) != _place(job):
            twice[job.model] = None
    if twice:
        some = ", ".join(list(twice)[:10]) + (f" and {len(twice) - 10} more" * (len(twice) > 10))
        raise UsageError(
            f"several checkpoints would become {some}: export them one by one, with --id, or "
            "give them ids in a --from-file."
        )
    return list(kept.values())


def _place(job: Job) -> str:
    folder = Path(job.checkpoint).expanduser()
    return str(folder.resolve()) if folder.is_dir() else job.checkpoint
