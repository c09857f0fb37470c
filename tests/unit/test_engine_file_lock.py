"""Locks on files that may be removed, between threads and processes."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

from gpt2serve.engine.stores.file_lock import FileLock, locked

CHILD = """
import sys
from pathlib import Path
from gpt2serve.engine.stores.file_lock import FileLock
lock = FileLock.acquire(Path(sys.argv[1]), shared=sys.argv[2] == "shared")
print("held" if lock else "refused", flush=True)
sys.stdin.read()
"""


def child(path: Path, kind: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_shared_and_exclusive(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    one = FileLock.acquire(path, shared=True)
    two = FileLock.acquire(path, shared=True)
    assert one is not None
    assert two is not None
    assert FileLock.acquire(path) is None
    one.release()
    assert FileLock.acquire(path) is None
    two.release()
    three = FileLock.acquire(path)
    assert three is not None
    assert FileLock.acquire(path, shared=True) is None
    three.release()


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with child(path, "exclusive") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert FileLock.acquire(path, shared=True) is None
        process.kill()
    lock = FileLock.acquire(path)
    assert lock is not None
    with child(path, "shared") as process:
        assert process.communicate()[0] == "refused\n"
    lock.release()


def test_a_lock_whose_file_was_removed_excludes_nobody_from_the_next(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = FileLock.acquire(path)
    assert first is not None
    got: list[FileLock | None] = []
    waiting = threading.Thread(target=lambda: got.append(FileLock.acquire(path, wait=True)))
    waiting.start()
    first.remove()
    waiting.join()
    # Whoever waited on the old file must have gone on to the one that others find.
    assert path.exists()
    assert FileLock.acquire(path) is None
    (second,) = got
    assert second is not None
    second.release()


def test_only_set_time_changes_the_time(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    for when in (0.0, 1234.5):
        lock = FileLock.acquire(path)
        assert lock is not None
        lock.set_time(when)
        lock.release()
        with locked(path):
            pass
        lock = FileLock.acquire(path, shared=True)
        assert lock is not None
        assert lock.time == when
        lock.release()
