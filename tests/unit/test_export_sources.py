"""The hash of a checkpoint is remembered for as long as its files stay as they are."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from gpt2export import sources
from gpt2export.errors import CheckpointError
from gpt2export.sources import remember_hash, remembered_hash, same_content, stat_files

SECOND = 1_000_000_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


def later() -> int:
    """A time at which files that were written just now are old."""
    return time.time_ns() + 10 * SECOND


def test_it_is_remembered_while_nothing_changes(folder: Path, store: Path) -> None:
    assert remembered_hash(store, stat_files(folder)) is None
    remember_hash(store, stat_files(folder), "abc", hashed_at=later())
    assert remembered_hash(store, stat_files(folder)) == "abc"
    assert [path.name for path in store.iterdir()] == [sources.RECORD_FILE]
    (folder / "not-read.bin").write_text("more")
    assert remembered_hash(store, stat_files(folder)) == "abc"


def same_size_and_time(folder: Path) -> None:
    path = folder / "model.safetensors"
    status = path.stat()
    path.write_text("MODEL.safetensors")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replaced(folder: Path) -> None:
    path = folder / "model.safetensors"
    (folder / "new").write_text(path.read_text())
    (folder / "new").rename(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "config.json").write_text("longer than it was"),
        lambda folder: (folder / "README.md").write_text("a card"),
        lambda folder: (folder / "tokenizer.json").touch(),
        lambda folder: (folder / "tokenizer.json").rename(folder / "vocab.json"),
        same_size_and_time,
        replaced,
    ],
)
def test_any_change_forgets_it(folder: Path, store: Path, change: object) -> None:
    remember_hash(store, stat_files(folder), "abc", hashed_at=later())
    assert callable(change)
    change(folder)
    assert remembered_hash(store, stat_files(folder)) is None


def test_files_that_were_just_written_are_not_trusted(folder: Path, store: Path) -> None:
    """They could be written to once more within the same tick of the file system's clock."""
    remember_hash(store, stat_files(folder), "abc", hashed_at=time.time_ns())
    assert remembered_hash(store, stat_files(folder)) is None
    assert list(store.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"exporter_version": 1}'])
def test_a_damaged_record_counts_as_none(folder: Path, store: Path, content: bytes) -> None:
    (store / sources.RECORD_FILE).write_bytes(content)
    assert remembered_hash(store, stat_files(folder)) is None
    remember_hash(store, stat_files(folder), "abc", hashed_at=later())
    assert remembered_hash(store, stat_files(folder)) == "abc"


def test_what_a_killed_exporter_left_is_removed(folder: Path, store: Path) -> None:
    (store / f"{sources.RECORD_FILE}abc").write_text("half a rec")
    remember_hash(store, stat_files(folder), "abc", hashed_at=later())
    assert [path.name for path in store.iterdir()] == [sources.RECORD_FILE]


def test_another_exporter_hashes_itself(
    folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember_hash(store, stat_files(folder), "abc", hashed_at=later())
    monkeypatch.setattr(sources, "__version__", "another")
    assert remembered_hash(store, stat_files(folder)) is None


def test_a_store_that_cannot_be_written_is_no_error(folder: Path, store: Path) -> None:
    remember_hash(store / "absent", stat_files(folder), "abc", hashed_at=later())
    assert list(store.iterdir()) == []


def test_a_link_is_no_new_content(folder: Path) -> None:
    before = stat_files(folder)
    os.link(folder / "model.safetensors", folder / "link")
    assert same_content(before, stat_files(folder))
    same_size_and_time(folder)
    (folder / "model.safetensors").touch()
    assert not same_content(before, stat_files(folder))


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        stat_files(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="no config"):
        stat_files(tmp_path)
