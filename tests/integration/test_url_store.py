"""A store at a URL, against a real S3 server and a network that makes mistakes."""

from __future__ import annotations

import contextlib
import functools
import http.server
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import obstore
import pytest

from gpt2serve.engine.store import PAUSE, ModelStore, Package
from gpt2serve.engine.stores import object_store
from gpt2serve.errors import (
    CorruptPackage,
    EngineClosed,
    ModelNotFound,
    ModelTooLarge,
    ModelUnavailable,
    NotOnDisk,
    PackageReplaced,
    SettingsError,
    StoreUnavailable,
)
from gpt2serve.package import (
    MANIFEST_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    ModelCard,
    verify_hashes,
)
from tests import s3_server
from tests.engine_fakes import write_package
from tests.s3_server import Proxy, publish, unpublish
from tests.waiting import wait_until

CPU = [("cpu", "int8"), ("cpu", "fp32")]
SIZE = 3_000_000
BUCKETS = (f"bucket-{n}" for n in itertools.count())
PATIENCE = 30.0


@dataclass
class World:
    """A bucket on the server, the way to it through a proxy, and clocks that stand still."""

    proxy: Proxy
    bucket: Any
    url: str
    folder: Path
    now: float = 1000.0
    opened: list[ModelStore] = field(default_factory=list)

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def open(self, **options: Any) -> ModelStore:
        defaults: dict[str, Any] = {
            "disk_cache": self.cache,
            "refresh": 5.0,
            "clock": lambda: self.now,
        }
        store = ModelStore(options.pop("url", self.url), CPU, **(defaults | options))
        self.opened.append(store)
        return store

    def publish(
        self, model: str, *, seed: int | None = None, size: int = SIZE, **options: Any
    ) -> Path:
        """Random weights, the same for one seed; the seed is the model's name if not given."""
        weights = random.Random(seed or model).randbytes(size)
        files = {WEIGHTS_FILE: weights} | options.pop("files", {})
        shutil.rmtree(self.folder / "published" / model, ignore_errors=True)
        made = write_package(self.folder / "published", model, files=files, **options)
        publish(self.bucket, self.folder / "published", made)
        return made

    def whats_cached(self) -> set[str]:
        """Files of packages, tokenizers and attempts, without locks and what marks the store."""
        return {
            str(path.relative_to(self.cache).relative_to(path.relative_to(self.cache).parts[0]))
            for path in self.cache.rglob("*")
            if path.is_file() and path.parent.name != "locks" and path.name not in ("url", "lock")
        }


@pytest.fixture
def world(s3_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(object_store, "STALL_TIMEOUT", 1.5)
    proxy, name = Proxy(s3_port), next(BUCKETS)
    proxy.start()
    for variable, value in s3_server.environment(proxy.port).items():
        monkeypatch.setenv(variable, value)
    made = World(proxy, s3_server.client(s3_port, name), f"s3://{name}/the/models", tmp_path)
    made.bucket = obstore.store.S3Store.from_url(
        made.url, config=made.bucket.config, client_options={"allow_http": True}
    )
    yield made
    for store in made.opened:
        store.close()
    proxy.close()


def same_files(held: Path, published: Path, package: Package) -> bool:
    verify_hashes(held, package.manifest)
    return all(
        (held / name).read_bytes() == (published / name).read_bytes()
        for name in package.manifest.files
    )


def in_thread(call: Callable[[], Any]) -> Callable[[], Any]:
    """Begin `call`; what is returned waits for its result, or raises its error."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append((True, call()))
        except BaseException as error:
            result.append((False, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def wait() -> Any:
        thread.join(PATIENCE)
        worked, value = result[0]
        if not worked:
            raise value
        return value

    return wait


# -- fetching ---------------------------------------------------------------------------------


def test_a_package_comes_whole_and_stays(world: World) -> None:
    published = world.publish("org/a")
    store = world.open()
    package = store.resolve("org/a")
    assert not package.local
    assert not package.path.exists()
    with pytest.raises(NotOnDisk), store.hold(package):
        pass
    seen: list[tuple[int, int]] = []
    fetched = store.fetch(package, lambda *progress: seen.append(progress))
    assert fetched.local
    assert fetched.key == package.key
    assert seen == sorted(seen)
    assert len(seen) > 5
    assert {total for _, total in seen} == {seen[-1][0]}
    with store.hold(fetched) as path:
        assert same_files(path, published, package)
    assert store.resolve("org/a").local
    assert store.disk_cache_bytes > SIZE

    # Another fetch, and another process, find it.
    world.proxy.forget()
    store.fetch(package)
    again = world.open().resolve("org/a")
    assert again == fetched
    assert not world.proxy.about(WEIGHTS_FILE)


def test_the_preferred_variant_is_taken(world: World) -> None:
    world.publish("both", precision="fp32", size=10)
    store = world.open()
    assert store.resolve("both").manifest.precision == "fp32"
    world.publish("both", size=10)
    world.now += 5
    assert store.resolve("both").manifest.precision == "int8"


def test_models_share_a_tokenizer_which_comes_without_the_weights(world: World) -> None:
    files = {TOKENIZER_FILE: b'{"a": 1}'}
    for model in ("a", "b", "c"):
        world.publish(model, files=files)
    world.publish("other")
    store = world.open()
    paths = {store.tokenizer_file(store.resolve(model)) for model in ("a", "b", "c", "other")}
    assert len(paths) == 2
    assert {path.read_bytes() for path in paths} == {b'{"a": 1}', b"{}"}
    assert len(world.proxy.about(TOKENIZER_FILE)) == 2
    assert not world.proxy.about(WEIGHTS_FILE)
    fetched = store.fetch(store.resolve("a"))
    assert (fetched.path / TOKENIZER_FILE).read_bytes() == b'{"a": 1}'
    assert len(world.proxy.about(TOKENIZER_FILE)) == 2


@pytest.mark.parametrize("kind", ["stall", "cut"])
def test_what_breaks_goes_on_where_it_broke(world: World, kind: str) -> None:
    published = world.publish("a")
    world.proxy.fail(WEIGHTS_FILE, kind, after=2_000_000)
    store = world.open()
    package = store.fetch(store.resolve("a"))
    with store.hold(package) as path:
        assert same_files(path, published, package)
    first, second = world.proxy.about(WEIGHTS_FILE)
    assert first.begin == 0
    assert 2_000_000 - object_store.CHUNK <= second.begin <= 2_000_000
    assert second.headers["if-match"]
    assert first.sent + second.sent <= SIZE + object_store.CHUNK


def test_a_connection_that_is_cut_again_and_again(world: World) -> None:
    world.publish("a")
    world.proxy.fail(WEIGHTS_FILE, "cut", after=500_000, times=1000)
    store = world.open()
    store.fetch(store.resolve("a"))
    begins = [asked.begin for asked in world.proxy.about(WEIGHTS_FILE)]
    assert begins == sorted(set(begins))
    assert 6 <= len(begins) <= 13


def test_a_store_that_gives_nothing_is_given_up_and_gone_on_with_later(world: World) -> None:
    world.publish("a")
    world.proxy.fail(WEIGHTS_FILE, "cut", after=1_000_000)
    world.proxy.fail(WEIGHTS_FILE, "503", times=1000)
    store = world.open()
    package = store.resolve("a")
    with pytest.raises(StoreUnavailable) as caught:
        store.fetch(package)
    assert caught.value.retry_after
    assert "503" in str(caught.value)
    assert not store.resolve("a").local
    world.proxy.heal()
    world.proxy.forget()
    store.fetch(package)
    (asked,) = world.proxy.about(WEIGHTS_FILE)
    assert asked.begin >= 1_000_000 - object_store.CHUNK


def test_an_object_that_was_written_anew_is_not_mixed_with_the_old_one(world: World) -> None:
    size = 6_000_000
    published = world.publish("a", size=size)
    world.proxy.fail(WEIGHTS_FILE, "cut", after=1_000_000)
    world.proxy.fail(WEIGHTS_FILE, "503", times=4)
    store = world.open()
    package = store.resolve("a")
    with pytest.raises(StoreUnavailable):
        store.fetch(package)
    # The same bytes, but by its etag another object: there is no going on with it.
    key = f"a/cpu-int8/{WEIGHTS_FILE}"
    etag = obstore.head(world.bucket, key)["e_tag"]
    data = (published / WEIGHTS_FILE).read_bytes()
    obstore.put(world.bucket, key, data, use_multipart=True, chunk_size=5 * 1024**2)
    assert obstore.head(world.bucket, key)["e_tag"] != etag
    world.proxy.forget()
    fetched = store.fetch(package)
    refused, whole = world.proxy.about(WEIGHTS_FILE)
    assert (refused.status, refused.begin > 0) == (412, True)
    assert (whole.begin, whole.sent) == (0, size)
    with store.hold(fetched) as path:
        assert same_files(path, published, package)


def test_a_bit_that_flips_on_the_way_costs_one_more_attempt(world: World) -> None:
    published = world.publish("a")
    world.proxy.fail(WEIGHTS_FILE, "flip", after=1_234_567)
    store = world.open()
    package = store.fetch(store.resolve("a"))
    with store.hold(package) as path:
        assert same_files(path, published, package)
    assert [asked.begin for asked in world.proxy.about(WEIGHTS_FILE)] == [0, 0]


@pytest.mark.parametrize("name", [WEIGHTS_FILE, TOKENIZER_FILE])
@pytest.mark.parametrize("damage", ["changed", "cut", "missing"])
def test_what_is_corrupt_in_the_store_is_refused(world: World, damage: str, name: str) -> None:
    published = world.publish("a")
    key, data = f"a/cpu-int8/{name}", (published / name).read_bytes()
    if damage == "missing":
        obstore.delete(world.bucket, key)
    else:
        obstore.put(world.bucket, key, data[:-1] + (b"" if damage == "cut" else b"?"))
    store = world.open()
    package = store.resolve("a")
    with pytest.raises(CorruptPackage, match=name):
        store.fetch(package)
    attempts = {"changed": 2, "cut": 2, "missing": 1}[damage]
    assert [asked.begin for asked in world.proxy.about(name)] == [0] * attempts
    assert world.whats_cached() <= {f"tokenizers/{package.tokenizer_hash}"}
    assert store.disk_cache_bytes <= SIZE + 3000
    # Once it is repaired, it can be had.
    world.publish("a")
    assert store.fetch(package).local


def test_a_manifest_that_cannot_be_used(world: World) -> None:
    obstore.put(world.bucket, f"a/cpu-int8/{MANIFEST_FILE}", b"{")
    made = world.publish("b", size=10)
    obstore.put(world.bucket, f"c/cpu-fp32/{MANIFEST_FILE}", (made / MANIFEST_FILE).read_bytes())
    store = world.open()
    for model in ("a", "c"):
        for _ in range(3):
            with pytest.raises(CorruptPackage, match=model):
                store.resolve(model)
        assert len(world.proxy.about(f"/{model}/cpu-")) <= 2
    assert store.resolve("b").model == "b"


# -- processes --------------------------------------------------------------------------------

CHILD = """
import sys, time
from pathlib import Path
from gpt2serve.engine.store import ModelStore
url, cache, size, model, then = sys.argv[1:]
store = ModelStore(url, [("cpu", "int8")], disk_cache=Path(cache), disk_cache_bytes=int(size))
package = store.fetch(store.resolve(model))
with store.hold(package) as path:
    print(path, flush=True)
    if then == "hold":
        sys.stdin.read()
"""


def child(world: World, model: str, then: str = "end", size: int = 10**9) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, world.url, str(world.cache), str(size), model, then],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_killed_process_leaves_no_half_package(world: World) -> None:
    published = world.publish("a")
    world.proxy.fail(WEIGHTS_FILE, "stall", after=1_500_000)
    with child(world, "a") as process:
        wait_until(lambda: any(world.cache.rglob(WEIGHTS_FILE)) and part_size(world) > 1_000_000)
        process.send_signal(signal.SIGKILL)
    had = part_size(world)
    assert not list(world.cache.glob("*/packages/*/*"))
    world.proxy.forget()
    store = world.open()
    assert not store.resolve("a").local
    package = store.fetch(store.resolve("a"))
    (asked,) = world.proxy.about(WEIGHTS_FILE)
    assert (asked.begin, asked.sent) == (had, SIZE - had)
    with store.hold(package) as path:
        assert same_files(path, published, package)


def part_size(world: World) -> int:
    (part,) = world.cache.rglob(WEIGHTS_FILE)
    return part.stat().st_size


def test_a_process_that_is_killed_while_others_wait_for_it(world: World) -> None:
    world.publish("a")
    world.proxy.fail(WEIGHTS_FILE, "stall", after=1_500_000)
    store = world.open()
    package = store.resolve("a")
    with child(world, "a") as process:
        wait_until(lambda: any(world.cache.rglob(WEIGHTS_FILE)) and part_size(world) > 1_000_000)
        seen: list[int] = []
        waiting = in_thread(lambda: store.fetch(package, lambda done, _: seen.append(done)))
        wait_until(lambda: bool(seen) and seen[-1] > 1_000_000)  # of the other one's progress
        assert len(world.proxy.about(WEIGHTS_FILE)) == 1
        process.send_signal(signal.SIGKILL)
    assert waiting().local
    assert world.proxy.about(WEIGHTS_FILE)[1].begin > 1_000_000


def test_processes_and_threads_fetch_a_package_once(world: World) -> None:
    published = world.publish("a")
    world.proxy.fail(WEIGHTS_FILE, "stall", after=1_000_000)  # long enough for all to be there
    store = world.open()
    package = store.resolve("a")
    processes = [child(world, "a") for _ in range(2)]
    threads = [in_thread(lambda: store.fetch(package)) for _ in range(4)]
    assert all(wait().local for wait in threads)
    for process in processes:
        output, _ = process.communicate(timeout=PATIENCE)
        assert same_files(Path(output.strip()), published, package)
    assert sum(asked.sent for asked in world.proxy.about(WEIGHTS_FILE)) < SIZE * 1.2
    assert len(world.proxy.about(TOKENIZER_FILE)) == 1


def test_closing_ends_fetches_and_those_who_wait_for_them(world: World) -> None:
    world.publish("a")
    world.proxy.fail(WEIGHTS_FILE, "stall", after=1_500_000, times=1000)
    store, other = world.open(), world.open()
    fetching = in_thread(lambda: store.fetch(store.resolve("a")))
    wait_until(lambda: any(world.cache.rglob(WEIGHTS_FILE)) and part_size(world) > 1_000_000)
    seen: list[int] = []
    waiting = in_thread(lambda: other.fetch(other.resolve("a"), lambda done, _: seen.append(done)))
    wait_until(lambda: bool(seen))
    other.close()
    with pytest.raises(EngineClosed):
        waiting()
    store.close()
    with pytest.raises(EngineClosed):
        fetching()
    assert len(world.proxy.about(WEIGHTS_FILE)) == 1


# -- room -------------------------------------------------------------------------------------


def test_the_least_recently_used_make_room(world: World) -> None:
    for model in "abcd":
        world.publish(model)
    store = world.open(disk_cache_bytes=int(SIZE * 3.1))
    packages = {model: store.fetch(store.resolve(model)) for model in "abc"}
    age(world, "a", 30)
    age(world, "b", 20)
    age(world, "c", 10)
    with store.hold(packages["a"]):  # and so the one used last
        pass
    store.fetch(store.resolve("d"))
    assert [model for model in "abcd" if store.resolve(model).local] == ["a", "c", "d"]
    assert on_disk(world) <= SIZE * 3.1
    assert store.disk_cache_bytes <= SIZE * 3.1


def age(world: World, model: str, seconds: float) -> None:
    (lock,) = world.cache.glob(f"*/locks/{model}@*")
    os.utime(lock, (time.time() - seconds, time.time() - seconds))


def on_disk(world: World) -> int:
    """Bytes of the files, each counted once whatever its names."""
    found = {path.stat().st_ino: path.stat().st_size for path in world.cache.rglob("*")}
    return sum(found.values()) - sum(p.stat().st_size for p in world.cache.rglob("*") if p.is_dir())


def test_what_is_held_stays_whoever_holds_it(world: World) -> None:
    for model in "abcd":
        world.publish(model)
    size = int(SIZE * 2.1)
    store = world.open(disk_cache_bytes=size)
    a = store.fetch(store.resolve("a"))
    with child(world, "b", "hold", size) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        b = Path(other.stdout.readline().strip())
        with store.hold(a) as path:
            with pytest.raises(ModelUnavailable, match="in use") as caught:
                store.fetch(store.resolve("c"))
            assert caught.value.retry_after
            assert (path / WEIGHTS_FILE).exists()
            assert (b / WEIGHTS_FILE).exists()
        # Nobody holds a now; b is older, and held by another process.
        age(world, "b", 1000)
        store.fetch(store.resolve("c"))
        assert not a.path.exists()
        assert (b / WEIGHTS_FILE).exists()
        with pytest.raises(NotOnDisk), store.hold(a):
            pass
        other.stdin.close()
    age(world, "b", 1000)
    assert store.fetch(store.resolve("d")).local
    assert not b.exists()


def test_a_package_that_is_larger_than_the_cache_fails_at_once(world: World) -> None:
    world.publish("small", size=1000)
    world.publish("large")
    store = world.open(disk_cache_bytes=SIZE - 1)
    store.fetch(store.resolve("small"))
    with pytest.raises(ModelTooLarge, match="--disk-cache-bytes"):
        store.fetch(store.resolve("large"))
    assert not world.proxy.about(WEIGHTS_FILE)[1:]
    assert store.resolve("small").local
    # Nor does it fit without its tokenizer.
    world.publish("wordy", size=1000, files={TOKENIZER_FILE: b"x" * (SIZE // 2)})
    with pytest.raises(ModelTooLarge):
        store.fetch(store.resolve("wordy"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount: run as root, or with CAP_SYS_ADMIN")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_makes_room_of_itself(world: World, small_disk: Path) -> None:
    for model in "abc":
        world.publish(model)
    world.publish("large", size=9_000_000)
    store = world.open(disk_cache=small_disk / "cache", disk_cache_bytes=10**9)
    a = store.fetch(store.resolve("a"))
    b = store.fetch(store.resolve("b"))
    c = store.fetch(store.resolve("c"))  # does not fit beside both
    assert (a.path.exists(), b.path.exists(), c.path.exists()) == (False, True, True)
    with store.hold(c) as path:
        verify_hashes(path, c.manifest)
        with pytest.raises(ModelUnavailable, match="full") as caught:
            store.fetch(store.resolve("large"))
        assert caught.value.retry_after
        verify_hashes(path, c.manifest)
    assert store.fetch(store.resolve("a")).local


# -- the store away ---------------------------------------------------------------------------


def test_what_is_on_the_disk_is_served_while_the_store_is_away(world: World) -> None:
    for model in ("here", "known", "new"):
        world.publish(model, size=1000)
    store = world.open()
    here = store.fetch(store.resolve("here"))
    store.resolve("known")
    world.proxy.stop()
    world.now += 5
    for _ in range(3):
        assert store.resolve("here") == here
        with store.hold(here):
            pass
        assert store.tokenizer_file(here).exists()
        for model in ("known", "new", "no-such"):
            with pytest.raises(StoreUnavailable, match="disk cache") as caught:
                store.resolve(model)
            assert caught.value.retry_after
            assert 0 < caught.value.retry_after <= PAUSE

    # So it is after a restart.
    restarted = world.open()
    assert restarted.resolve("here") == here
    with restarted.hold(restarted.resolve("here")), pytest.raises(StoreUnavailable):
        restarted.resolve("new")
    assert restarted.list() == ["here"]

    # And when it is back, a request finds out while it is served from the disk.
    world.proxy.start()
    world.now += PAUSE
    for opened in (store, restarted):
        opened.resolve("here")
        wait_until(lambda opened=opened: not opened._reachability.failing)
        assert opened.resolve("new").model == "new"
        with pytest.raises(ModelNotFound):
            opened.resolve("no-such")


def test_only_one_request_waits_for_a_store_that_stalls(world: World) -> None:
    for model in ("here", "b"):
        world.publish(model, size=1000)
    store = world.open()
    store.fetch(store.resolve("here"))
    world.now += 5
    world.proxy.forget()
    world.proxy.fail("", "stall", times=1000)
    assert store.resolve("here").local  # after SMALL_TIMEOUT
    for _ in range(50):
        store.resolve("here")
        with pytest.raises(StoreUnavailable):
            store.resolve("b")
    assert len(world.proxy.about("")) == 1
    # One more attempt a pause later, for which nobody waits.
    world.now += PAUSE
    for _ in range(50):
        store.resolve("here")
    wait_until(lambda: len(world.proxy.about("")) == 2)


def test_a_fetch_that_finds_the_store_away_says_so_to_all(world: World) -> None:
    world.publish("a", size=1000)
    world.publish("b", size=1000)
    store = world.open()
    package = store.resolve("a")
    world.proxy.stop()
    with pytest.raises(StoreUnavailable):
        store.fetch(package)
    world.proxy.start()
    with pytest.raises(StoreUnavailable):
        store.resolve("b")
    assert not world.proxy.about("/b/")


def test_refused_access_is_not_an_absent_store(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish("a", size=1000)
    world.publish("b", size=1000)
    store = world.open()
    store.fetch(store.resolve("a"))
    world.proxy.fail("/no-such/", "403", times=1000)
    world.proxy.forget()
    for _ in range(5):
        with pytest.raises(StoreUnavailable, match="credentials"):
            store.resolve("no-such")
    assert len(world.proxy.about("/no-such/")) == 1
    assert store.resolve("b").model == "b"
    # What is known goes on being served when the keys become invalid.
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    wrong = world.open()
    with pytest.raises(StoreUnavailable, match="credentials"):
        wrong.resolve("b")
    world.proxy.fail("/a/", "403", times=1000)
    world.now += 5
    assert store.resolve("a").local


def test_a_bucket_that_is_not_there_deletes_nothing(world: World) -> None:
    store = world.open(url="s3://no-such-bucket/x")
    with pytest.raises(StoreUnavailable, match="bucket"):
        store._backend.look("a", None)
    with pytest.raises(StoreUnavailable):
        store.resolve("a")
    with pytest.raises(StoreUnavailable):
        store.list()


# -- freshness --------------------------------------------------------------------------------


def test_a_model_is_asked_for_at_most_every_refresh_seconds(world: World) -> None:
    world.publish("a", size=1000)
    store = world.open()
    for _ in range(10):
        store.resolve("a")
        with pytest.raises(ModelNotFound):
            store.resolve("no-such")
    assert len(world.proxy.about("/a/")) == 1
    assert len(world.proxy.about("/no-such/")) == len(CPU)
    world.now += 4.9
    store.resolve("a")
    assert len(world.proxy.about("/a/")) == 1
    world.now += 0.1
    store.resolve("a")
    first, second = world.proxy.about("/a/")
    assert (first.status, second.status, second.sent) == (200, 304, 0)


def test_a_new_version_and_a_deleted_model(world: World) -> None:
    world.publish("a", seed=1)
    world.publish("b")
    store = world.open()
    changes: list[tuple[str, str | None]] = []
    store.on_change = lambda model, package: changes.append((model, package and package.key))
    old = store.fetch(store.resolve("a"))
    b = store.fetch(store.resolve("b"))
    world.publish("a", seed=2)
    assert store.resolve("a") == old
    world.now += 5
    new = store.resolve("a")
    assert (new.key != old.key, new.local) == (True, False)
    assert changes == [("a", new.key)]
    with store.hold(old) as path:  # whoever runs on it goes on
        assert path.exists()
    new = store.fetch(new)
    assert new.path != old.path

    unpublish(world.bucket, "a")
    unpublish(world.bucket, "b")
    world.now += 5
    with store.hold(b) as path:
        for model in "ab":
            with pytest.raises(ModelNotFound):
                store.resolve(model)
        assert path.exists()
    assert changes[1:] == [("a", None), ("b", None)]
    assert not b.path.exists()
    assert not old.path.exists()
    assert not new.path.exists()

    # And it may come back.
    world.publish("a", seed=3)
    world.now += 5
    assert store.fetch(store.resolve("a")).local


def test_another_manifest_is_another_package_with_the_same_key(world: World) -> None:
    world.publish("a")
    store = world.open()
    changes: list[str] = []
    store.on_change = lambda model, package: changes.append(model)
    old = store.fetch(store.resolve("a"))
    world.publish("a", bytes_needed=5)
    world.now += 5
    new = store.resolve("a")
    assert new.path != old.path
    assert new.key == old.key
    assert new.manifest.bytes_needed == 5
    assert not changes
    assert store.fetch(new).local


def test_a_version_that_goes_while_it_is_fetched(world: World) -> None:
    world.publish("a", seed=1)
    store = world.open()
    old = store.resolve("a")
    published = world.publish("a", seed=2)
    with pytest.raises(PackageReplaced) as caught:
        store.fetch(old)
    assert caught.value.retry_after
    assert len(world.proxy.about(WEIGHTS_FILE)) == 1  # in vain, but not twice
    assert not list(world.cache.glob("*/packages/*/*"))
    new = store.fetch(store.resolve("a"))  # at once, though the last look is not old
    with store.hold(new) as path:
        assert same_files(path, published, new)
    unpublish(world.bucket, "a")
    world.publish("b")
    gone = store.resolve("b")
    unpublish(world.bucket, "b")
    with pytest.raises(PackageReplaced):
        store.fetch(gone)


def test_many_requests_for_one_new_model_ask_once(world: World) -> None:
    world.publish("a", size=1000)
    store = world.open()
    waits = [in_thread(lambda: store.resolve("a")) for _ in range(20)]
    assert len({wait().key for wait in waits}) == 1
    assert len(world.proxy.about("/a/")) == 1


# -- listing ----------------------------------------------------------------------------------


def test_listing_needs_pages_but_no_manifests(world: World) -> None:
    def put(n: int) -> None:
        obstore.put(world.bucket, f"org/m{n:04}/cpu-int8/{MANIFEST_FILE}", b"{}")

    threads = [
        in_thread(lambda part=part: [put(n) for n in range(part, 1500, 4)]) for part in range(4)
    ]
    for wait in threads:
        wait()
    world.publish("org-2/x", size=10)
    world.publish("org", size=10)
    world.publish("both", size=10)
    world.publish("both", size=10, precision="fp32")
    world.publish("gpu", size=10, target="cuda", precision="fp16")
    for key in (".export-1/a", "org/info", "a/b/c", "half"):
        obstore.put(world.bucket, f"{key}/cpu-int8/{WEIGHTS_FILE}", b"")
        if key != "half":
            obstore.put(world.bucket, f"{key}/cpu-int8/{MANIFEST_FILE}", b"{}")
    store = world.open()
    everything = store.list(limit=10_000)
    assert everything == ["both", "org-2/x", "org", *(f"org/m{n:04}" for n in range(1500))]
    assert store.list(after="org", limit=2) == ["org/m0000", "org/m0001"]
    assert store.list(after="org/m1498") == ["org/m1499"]
    pages = len(world.proxy.about("list-type"))
    assert pages == 2
    assert len(world.proxy.asked) == pages


def test_a_list_shows_new_models_and_finds_deleted_ones(world: World) -> None:
    world.publish("a", size=10)
    world.publish("b", size=10)
    store = world.open()
    changes: list[tuple[str, Package | None]] = []
    store.on_change = lambda *change: changes.append(change)
    store.fetch(store.resolve("b"))
    assert store.list() == ["a", "b"]
    world.publish("c", size=10)
    unpublish(world.bucket, "b")
    assert store.list() == ["a", "b"]
    world.now += 5
    assert store.list() == ["a", "b"]  # the new list is made meanwhile
    store._catalog.join()
    assert store.list() == ["a", "c"]
    assert changes == [("b", None)]
    with pytest.raises(ModelNotFound):
        store.resolve("b")


def test_a_search_knows_the_titles_that_are_here_already(world: World) -> None:
    """Ids of all models; titles of those in the disk cache, or asked for. No request for it."""
    for model in ("cached", "asked", "never"):
        world.publish(model, size=10, card=ModelCard(title=f"Title of the {model}"))
    before = world.open()
    before.fetch(before.resolve("cached"))
    store = world.open()
    store.resolve("asked")
    asked = len(world.proxy.asked)
    assert store.list(search="e") == ["asked", "cached", "never"]
    store._finder.join()
    assert store.list(search="title") == ["asked", "cached"]
    assert len(world.proxy.asked) == asked + len(world.proxy.about("list-type"))
    assert store.card("never") is None
    assert store.card("cached") == ModelCard(title="Title of the cached")


def test_a_search_while_the_store_is_down(world: World) -> None:
    world.publish("cached", size=10, card=ModelCard(title="Title"))
    before = world.open()
    before.fetch(before.resolve("cached"))
    world.proxy.close()
    store = world.open()
    assert store.list(search="cach") == ["cached"]
    assert store.list(search="other") == []


# -- other stores -----------------------------------------------------------------------------


class Plain(http.server.SimpleHTTPRequestHandler):
    """A web server that knows neither ranges nor etags."""

    def log_message(self, *_: Any) -> None: ...


@contextlib.contextmanager
def web_server(folder: Path) -> Iterator[str]:
    handler = functools.partial(Plain, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_plain_web_server(tmp_path: Path) -> None:
    published = write_package(tmp_path / "web", "org/a", files={WEIGHTS_FILE: b"x" * SIZE})
    write_package(tmp_path / "web", "b")
    with web_server(tmp_path / "web") as address:
        proxy = Proxy(int(address.rpartition(":")[2]))
        proxy.start()
        store = ModelStore(f"http://127.0.0.1:{proxy.port}/", CPU, disk_cache=tmp_path / "cache")
        assert store.list() == []
        proxy.fail(WEIGHTS_FILE, "cut", after=1_000_000)
        package = store.fetch(store.resolve("org/a"))
        with store.hold(package) as path:
            assert same_files(path, published, package)
        with pytest.raises(ModelNotFound):
            store.resolve("no-such")
        # It cannot be listed: what was asked for is known, and nothing else.
        store.list()
        store._catalog.join()
        assert store.list() == ["org/a"]
        first = store.resolve("b")
        write_package(tmp_path / "web", "b", files={WEIGHTS_FILE: b"new"})
        assert store.resolve("b").key != first.key
        store.close()
        proxy.close()


@pytest.mark.parametrize("url", ["ftp://host/x", "s3://", "nothing://x", "http://"])
def test_what_is_no_store(tmp_path: Path, url: str) -> None:
    with pytest.raises(SettingsError):
        ModelStore(url, CPU, disk_cache=tmp_path)


def test_without_obstore_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(SettingsError, match=r"pip install 'gpt2serve\[s3\]'"):
        ModelStore("s3://bucket", CPU, disk_cache=tmp_path)


def test_a_url_needs_a_folder_for_the_cache(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--disk-cache"):
        ModelStore("s3://bucket", CPU)
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="--disk-cache"):
        ModelStore("s3://bucket", CPU, disk_cache=tmp_path / "file")
