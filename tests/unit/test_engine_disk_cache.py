"""The disk cache without a network: damage, restarts, what is left behind, a full disk."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt2serve.engine.stores import disk_cache
from gpt2serve.engine.stores.disk_cache import KEEP_PARTS, KEEP_TOKENIZER, OVERHEAD, DiskCache
from gpt2serve.engine.stores.disk_layout import Place, place_of
from gpt2serve.errors import ModelUnavailable, NotOnDisk
from gpt2serve.package import MANIFEST_FILE, TOKENIZER_FILE, WEIGHTS_FILE, encode_manifest
from tests.engine_fakes import manifest

FILES = {"model.onnx": b"graph", WEIGHTS_FILE: b"weights", TOKENIZER_FILE: b"{}"}


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_cache(tmp_path: Path, clock: Clock) -> Callable[..., DiskCache]:
    def open_(size: int = 10**6, store: str = "s3://bucket") -> DiskCache:
        return DiskCache(tmp_path / "cache", size, store=store, wall=clock)

    return open_


def fill(cache: DiskCache, model: str = "org/a", weights: bytes = b"weights") -> Place:
    made = manifest(model, files={WEIGHTS_FILE: weights})
    place = cache.layout.package(model, made)
    with cache.filling(place, len(weights) + 7, nobody) as folder:
        assert folder is not None
        for name, content in (FILES | {WEIGHTS_FILE: weights}).items():
            (folder / name).write_bytes(content)
        (folder / MANIFEST_FILE).write_bytes(encode_manifest(made))
        cache.publish(place)
    return place


def fill_tokenizer(cache: DiskCache, sha256: str, content: bytes = b"{}") -> Place:
    place = cache.layout.tokenizer(sha256)
    with cache.filling(place, len(content), nobody) as folder:
        assert folder is not None
        (folder / TOKENIZER_FILE).write_bytes(content)
        cache.publish(place, TOKENIZER_FILE)
    return place


def begin_and_die(cache: DiskCache, place: Place) -> None:
    with cache.filling(place, 100, nobody) as folder:
        assert folder is not None
        (folder / WEIGHTS_FILE).write_bytes(b"wei")
        raise InterruptedError


def nobody(there: int) -> None:
    raise AssertionError("nobody is to be waited for")


def everything(cache: DiskCache) -> list[str]:
    return sorted(entry.name.rpartition("/")[2] for entry in cache.layout.entries({}))


def test_names_are_safe_and_change_with_the_manifest(
    open_cache: Callable[..., DiskCache], tmp_path: Path
) -> None:
    cache = open_cache()
    longest = "/".join(["a" * 96] * 2)
    places = {
        cache.layout.package("org/a", manifest("org/a")).path,
        cache.layout.package("org/a", manifest("org/a", bytes_needed=7)).path,
        cache.layout.package("org/a", manifest("org/a", precision="fp32")).path,
        cache.layout.package("org", manifest("org")).path,
        cache.layout.package(longest, manifest(longest)).path,
        open_cache(store="s3://other").layout.package("org", manifest("org")).path,
    }
    assert len(places) == 6
    for path in places:
        assert path.resolve().is_relative_to((tmp_path / "cache").resolve())
        assert place_of(path).path == path
    long = fill(cache, longest)
    assert cache.layout.models({"cpu-int8"}) == [longest]
    with cache.hold(long, longest, manifest(longest)) as path:
        assert path.exists()


@pytest.mark.parametrize("damage", ["cut", "removed"])
def test_a_damaged_package_is_fetched_again(
    open_cache: Callable[..., DiskCache], damage: str
) -> None:
    cache = open_cache()
    place = fill(cache)
    if damage == "cut":
        (place.path / WEIGHTS_FILE).write_bytes(b"w")
    else:
        (place.path / WEIGHTS_FILE).unlink()
    with pytest.raises(NotOnDisk) as caught, cache.hold(place, "org/a", manifest("org/a")):
        pass
    assert caught.value.retry_after
    assert everything(cache) == []
    fill(cache)
    with cache.hold(place, "org/a", manifest("org/a")) as path:
        assert (path / WEIGHTS_FILE).read_bytes() == b"weights"


def test_a_cache_that_somebody_deletes_is_made_again(
    open_cache: Callable[..., DiskCache], tmp_path: Path
) -> None:
    cache = open_cache()
    place = fill(cache)
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(NotOnDisk), cache.hold(place, "org/a", manifest("org/a")):
        pass
    assert cache.layout.versions("org/a", "cpu-int8") == []
    assert cache.layout.models({"cpu-int8"}) == []
    fill(cache)
    with cache.hold(place, "org/a", manifest("org/a")) as path:
        assert path.exists()


def test_hashes_are_compared_again_only_after_the_machine_was_started(
    open_cache: Callable[..., DiskCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[Path] = []
    original = disk_cache.verify_hashes
    monkeypatch.setattr(
        disk_cache,
        "verify_hashes",
        lambda path, made: compared.append(path) or original(path, made),
    )
    made, place = manifest("org/a"), fill(open_cache())
    for _ in range(2):
        with open_cache().hold(place, "org/a", made):
            pass
    assert compared == []
    monkeypatch.setattr(disk_cache, "_boot_id", lambda: "another")
    for _ in range(2):
        with open_cache().hold(place, "org/a", made):
            pass
    assert compared == [place.path]
    # What was not yet on the disk when the power went may be lost.
    monkeypatch.setattr(disk_cache, "_boot_id", lambda: "and another")
    (place.path / WEIGHTS_FILE).write_bytes(b"\0" * 7)
    with pytest.raises(NotOnDisk), open_cache().hold(place, "org/a", made):
        pass
    assert everything(open_cache()) == []


def test_what_killed_processes_leave_is_swept(
    open_cache: Callable[..., DiskCache], clock: Clock
) -> None:
    cache = open_cache()
    place = cache.layout.package("a", manifest("a"))
    with pytest.raises(InterruptedError):
        begin_and_die(cache, place)
    gone = place.staging.with_name(".gone-123")
    gone.mkdir()
    (gone / "x").touch()
    (place.lock.parent / "left@cpu-int8@over").touch()
    cache = open_cache()
    assert not gone.exists()
    assert [path.name for path in place.lock.parent.iterdir()] == [place.name]
    assert cache.used == 100  # what it will take, to be resumed
    with cache.filling(place, 100, nobody) as folder:
        assert folder is not None
        assert (folder / WEIGHTS_FILE).read_bytes() == b"wei"
    clock.now += KEEP_PARTS + 1
    assert open_cache().used == 0
    assert everything(cache) == []


def test_what_is_being_fetched_is_not_swept(
    open_cache: Callable[..., DiskCache], clock: Clock
) -> None:
    cache = open_cache()
    place = cache.layout.package("a", manifest("a"))
    with cache.filling(place, 100, nobody) as folder:
        clock.now += KEEP_PARTS * 2
        open_cache()
        assert folder is not None
        assert folder.exists()


def test_two_that_grow_do_not_overlook_each_other(open_cache: Callable[..., DiskCache]) -> None:
    one, two = open_cache(100), open_cache(100)
    a, b = one.layout.package("a", manifest("a")), two.layout.package("b", manifest("b"))
    with one.filling(a, 60, nobody):
        with pytest.raises(ModelUnavailable, match="in use"), two.filling(b, 60, nobody):
            pass
        with two.filling(b, 40, nobody):
            pass


def test_stores_share_the_bytes_of_a_cache(open_cache: Callable[..., DiskCache]) -> None:
    one = open_cache(2000 + OVERHEAD)
    other = open_cache(2000 + OVERHEAD, store="s3://other")
    place = fill(one, "a", b"x" * 1000)
    fill(other, "b", b"x" * 1000)
    assert not place.path.exists()
    assert one.layout.models({"cpu-int8"}) == []
    assert other.layout.models({"cpu-int8"}) == ["b"]
    assert len(everything(one)) == 1


def test_a_tokenizer_is_not_evicted_before_it_can_be_read(
    open_cache: Callable[..., DiskCache], clock: Clock
) -> None:
    cache = open_cache(100)
    place = fill_tokenizer(cache, "0" * 64, b"x" * 60)
    package = cache.layout.package("a", manifest("a"))
    with pytest.raises(ModelUnavailable), cache.filling(package, 60, nobody):
        pass
    assert place.path.exists()
    clock.now += KEEP_TOKENIZER
    with cache.filling(package, 60, nobody):
        assert not place.path.exists()


def test_the_version_used_last_comes_first(
    open_cache: Callable[..., DiskCache], clock: Clock
) -> None:
    cache = open_cache()
    old = fill(cache, "a", b"one")
    clock.now += 1
    new = fill(cache, "a", b"two")
    assert cache.layout.versions("a", "cpu-int8") == [new, old]
    clock.now += 1
    cache.touch(old)
    assert cache.layout.versions("a", "cpu-int8") == [old, new]
    cache.demote(old)
    assert cache.layout.versions("a", "cpu-int8") == [new, old]
    assert cache.layout.versions("a", "cpu-fp32") == []


def test_a_full_disk_gives_up_what_was_used_least(
    open_cache: Callable[..., DiskCache], clock: Clock
) -> None:
    cache = open_cache()
    old = fill(cache, "a")
    clock.now += 1
    held = fill(cache, "b")
    clock.now += 1
    new = fill(cache, "c")
    room = [False, False, True]

    def write() -> int:
        if not room.pop(0):
            raise OSError(errno.ENOSPC, "No space left on device")
        return 5

    with cache.hold(held, "b", manifest("b")):
        assert cache.with_room(write, 1) == 5
        assert [place.path.exists() for place in (old, held, new)] == [False, True, False]
        room[:] = [False]
        with pytest.raises(ModelUnavailable, match="full") as caught:
            cache.with_room(write, 1)
    assert caught.value.retry_after
    with pytest.raises(PermissionError):
        cache.with_room(lambda: (_ for _ in ()).throw(PermissionError()), 1)


def test_who_waits_for_another_fetch_hears_of_it(open_cache: Callable[..., DiskCache]) -> None:
    cache = open_cache()
    place = cache.layout.package("a", manifest("a"))
    heard: list[int] = []
    found: list[Any] = []

    def wait() -> None:
        with cache.filling(place, 100, heard.append) as folder:
            found.append(folder)

    with cache.filling(place, 100, nobody) as folder:
        assert folder is not None
        (folder / WEIGHTS_FILE).write_bytes(b"x" * 50)
        thread = threading.Thread(target=wait)
        thread.start()
        deadline = time.monotonic() + 30
        while not heard:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        cache.publish(place)
    thread.join()
    assert found == [None]
    assert heard[0] >= 50


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        (tmp_path / "cache").touch()
    else:
        (tmp_path / "cache").mkdir(mode=0o500)
    with pytest.raises(OSError, match="cache"):
        DiskCache(tmp_path / "cache", 100, store="s3://x")
