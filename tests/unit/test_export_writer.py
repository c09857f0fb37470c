"""Publishing: all or nothing, and nothing left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gpt2export import writer
from gpt2export.errors import StoreError


def make(folder: Path, content: str) -> Path:
    folder.mkdir()
    (folder / "one").write_text(content)
    (folder / "two").write_text(content)
    return folder


def content(folder: Path) -> set[str]:
    return {path.read_text() for path in folder.iterdir()}


def leftovers(store: Path) -> list[Path]:
    return list(store.glob(f"{writer.PREFIX}*"))


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    store = tmp_path / "new" / "store"
    with writer.staging(store) as temporary:
        writer.publish(make(temporary / "new", "1"), store / "org" / "name" / "cpu-int8")
    assert content(store / "org" / "name" / "cpu-int8") == {"1"}
    assert leftovers(store) == []


@pytest.mark.parametrize("can_exchange", [True, False])
def test_an_old_folder_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(writer, "_exchange", lambda one, other: False)
    for text in ("1", "2", "3"):
        with writer.staging(tmp_path) as temporary:
            writer.publish(make(temporary / "new", text), tmp_path / "model")
        assert content(tmp_path / "model") == {text}
        assert leftovers(tmp_path) == []


def test_the_exchange_is_one_step(tmp_path: Path) -> None:
    """A reader that looks all the time never finds the folder absent."""
    destination = make(tmp_path / "model", "old")
    absent, done = [], threading.Event()

    def look() -> None:
        while not done.is_set():
            if not destination.exists():
                absent.append(True)

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for number in range(50):
            with writer.staging(tmp_path) as temporary:
                writer.publish(make(temporary / "new", str(number)), destination)
    finally:
        done.set()
        reader.join()
    assert absent == []


def test_an_error_leaves_the_old_folder_and_no_temporary_one(tmp_path: Path) -> None:
    make(tmp_path / "model", "old")

    def fail() -> None:
        with writer.staging(tmp_path) as temporary:
            make(temporary / "new", "new")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert content(tmp_path / "model") == {"old"}
    assert leftovers(tmp_path) == []


def test_folders_of_the_dead_are_removed_those_of_the_living_are_not(tmp_path: Path) -> None:
    dead = tmp_path / f"{writer.PREFIX}dead"
    make(dead, "half")
    with writer.staging(tmp_path) as mine, writer.staging(tmp_path) as other:
        assert not dead.exists()
        assert mine.exists()
        assert other.exists()
        assert mine != other
    assert leftovers(tmp_path) == []


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"), writer.staging(tmp_path / "file"):
        pass


def test_a_destination_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "org").write_text("")
    with pytest.raises(StoreError, match="cannot be published"), writer.staging(tmp_path) as here:
        writer.publish(make(here / "new", "1"), tmp_path / "org" / "name")


#: Publishes a folder; the process ends by SIGKILL where the named function is called.
KILLER = """
import os, shutil, signal, sys
from pathlib import Path
from gpt2export import writer
def die(*args, **kwargs): os.kill(os.getpid(), signal.SIGKILL)
module, name = {place!r}.split(".")
setattr(dict(writer=writer, shutil=shutil, os=os, path=Path)[module], name, die)
store = Path(sys.argv[1])
with writer.staging(store) as temporary:
    folder = temporary / "new"
    folder.mkdir()
    (folder / "one").write_text("new")
    (folder / "two").write_text("new")
    writer.publish(folder, store / "model")
"""

PLACES = (
    "writer._flush",
    "os.fsync",
    "path.chmod",
    "writer._replace",
    "path.rename",
    "writer._exchange",
    "writer._sync_folder",
    "shutil.rmtree",
)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("existing", [True, False])
def test_a_kill_at_any_step_leaves_the_old_or_the_new(
    tmp_path: Path, place: str, existing: bool
) -> None:
    destination = tmp_path / "model"
    if existing:
        make(destination, "old")
    command = [sys.executable, "-c", KILLER.format(place=place), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # Nothing is exchanged where there is nothing yet.
    expected = 0 if place == "writer._exchange" and not existing else -signal.SIGKILL
    assert done.returncode == expected, done.stderr
    if existing or destination.exists():
        assert content(destination) in ({"old"}, {"new"})
        assert len(list(destination.iterdir())) == 2
    with writer.staging(tmp_path) as temporary:
        writer.publish(make(temporary / "next", "next"), destination)
    assert content(destination) == {"next"}
    assert leftovers(tmp_path) == []
