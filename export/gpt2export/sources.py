"""What a checkpoint is made of, and whether it has changed.

The truth is a sha256 over every file that an export reads. Hashing takes a second for a 124M
model, too long to skip thousands with. So the hash is remembered beside the packages, together
with what the file system says about each file; while that is the same, so is the hash.

A file that is written to gets a new change time, which no ordinary program can set back. It has
the resolution of the file system's clock, though: a file that was touched just before it was
hashed could be written to once more within the same tick. Such a hash is not remembered.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from pathlib import Path

import msgspec

from gpt2export import __version__
from gpt2export.card import CARD_FILE
from gpt2export.defaults import GENERATION_FILE
from gpt2export.errors import CheckpointError
from gpt2export.tensors import weight_files
from gpt2export.tokenizer import tokenizer_files

CONFIG_FILE = "config.json"

#: In the folder of a model, beside its packages; not a valid id, so a server does not look at it.
RECORD_FILE = ".source.json"

#: Nanoseconds. The coarsest clock of a file system in use (FAT) goes in steps of two seconds.
SETTLED = 3_000_000_000


class SourceFile(msgspec.Struct, frozen=True, array_like=True):
    """One file as the file system describes it. Times in nanoseconds."""

    name: str
    size: int
    inode: int
    modified: int
    changed: int


SourceFiles = tuple[SourceFile, ...]


class _Record(msgspec.Struct, frozen=True):
    exporter_version: str
    sha256: str
    files: SourceFiles


def check_folder(folder: Path) -> None:
    """Raises `CheckpointError` for what is no checkpoint."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder.")
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(f"{folder} is not a checkpoint: it has no {CONFIG_FILE}.")


def source_hash(folder: Path) -> str:
    """sha256 over the name and content of every file that an export reads."""
    digest = hashlib.sha256()
    for path in _paths(folder):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.name}\0{content}\n".encode())
    return digest.hexdigest()


def stat_files(folder: Path) -> SourceFiles:
    """The same files, without reading them. Raises `CheckpointError`."""
    return tuple(_stat(path) for path in _paths(folder))


def same_content(before: SourceFiles, after: SourceFiles) -> bool:
    """Whether nobody wrote in between. A change time alone may be a new link or a chmod."""
    return [msgspec.structs.replace(file, changed=0) for file in before] == [
        msgspec.structs.replace(file, changed=0) for file in after
    ]


def remembered_hash(model_folder: Path, files: SourceFiles) -> str | None:
    """The hash of `files`, if it was remembered and they are the same still."""
    try:
        record = msgspec.json.decode((model_folder / RECORD_FILE).read_bytes(), type=_Record)
    except (OSError, msgspec.MsgspecError):
        return None
    same = record.files == files and record.exporter_version == __version__
    return record.sha256 if same else None


def remember_hash(
    model_folder: Path, files: SourceFiles, sha256: str, *, hashed_at: int | None = None
) -> None:
    """Keep `sha256`, which was computed after `files` was read at `hashed_at` (ns, default now).

    Whatever is in the way, the next run only hashes again.
    """
    hashed_at = time.time_ns() if hashed_at is None else hashed_at
    if any(max(file.changed, file.modified) > hashed_at - SETTLED for file in files):
        return
    raw = msgspec.json.encode(_Record(__version__, sha256, files))
    with contextlib.suppress(OSError):
        descriptor, temporary = tempfile.mkstemp(prefix=RECORD_FILE, dir=model_folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(raw)
            Path(temporary).chmod(0o644)
            Path(temporary).replace(model_folder / RECORD_FILE)
            for left in model_folder.glob(f"{RECORD_FILE}?*"):  # by one that was killed here
                left.unlink(missing_ok=True)
        except OSError:
            Path(temporary).unlink(missing_ok=True)


def _paths(folder: Path) -> list[Path]:
    check_folder(folder)
    optional = [folder / CARD_FILE, folder / GENERATION_FILE]
    return [
        folder / CONFIG_FILE,
        *weight_files(folder),
        *tokenizer_files(folder),
        *(path for path in optional if path.is_file()),
    ]


def _stat(path: Path) -> SourceFile:
    try:
        status = path.stat()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error}).") from error
    return SourceFile(
        path.name, status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
    )
