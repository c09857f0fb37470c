"""The store: finding packages, noticing new ones, listing."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gpt2serve.engine import store as store_module
from gpt2serve.engine.store import ModelStore
from gpt2serve.engine.stores import folder_store, known_models
from gpt2serve.errors import (
    CorruptPackage,
    InvalidModelId,
    ModelNotFound,
    PackageReplaced,
    SettingsError,
    StoreUnavailable,
    UnknownRevision,
)
from gpt2serve.package import MANIFEST_FILE, TOKENIZER_FILE, WEIGHTS_FILE
from tests.engine_fakes import write_package

CPU = [("cpu", "int8"), ("cpu", "fp32")]


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--store"):
        ModelStore(tmp_path / "missing", CPU)
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError):
        ModelStore(tmp_path / "file", CPU)


def test_the_preferred_variant_is_taken(tmp_path: Path) -> None:
    write_package(tmp_path, "both", precision="fp32")
    write_package(tmp_path, "both")
    write_package(tmp_path, "exact", precision="fp32")
    store = ModelStore(tmp_path, CPU)
    assert store.resolve("both").path == tmp_path / "both" / "cpu-int8"
    assert store.resolve("exact").path == tmp_path / "exact" / "cpu-fp32"
    assert ModelStore(tmp_path, CPU[::-1]).resolve("both").manifest.precision == "fp32"


def test_keys_tell_models_variants_and_versions_apart(tmp_path: Path) -> None:
    write_package(tmp_path, "a")
    write_package(tmp_path, "org/a")
    write_package(tmp_path, "b")
    write_package(tmp_path, "a", precision="fp32")
    write_package(tmp_path, "c", files={WEIGHTS_FILE: b"other"})
    store = ModelStore(tmp_path, CPU)
    exact = ModelStore(tmp_path, CPU[1:])
    keys = {store.resolve(model).key for model in ("a", "org/a", "b", "c")}
    keys.add(exact.resolve("a").key)
    assert len(keys) == 5


@pytest.mark.parametrize("model", ["missing", "org/missing", "file", "file/x", "empty"])
def test_unknown_models(tmp_path: Path, model: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty" / "cpu-int8").mkdir(parents=True)
    with pytest.raises(ModelNotFound) as caught:
        ModelStore(tmp_path, CPU).resolve(model)
    assert caught.value.model == model


@pytest.mark.parametrize("model", ["../outside", "/etc", "", "a/../b", "info"])
def test_impossible_ids_never_touch_the_disk(tmp_path: Path, model: str) -> None:
    write_package(tmp_path, "outside")
    (tmp_path / "store").mkdir()
    with pytest.raises(InvalidModelId):
        ModelStore(tmp_path / "store", CPU).resolve(model)


def test_a_manifest_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_package(tmp_path)
    store = ModelStore(tmp_path, CPU)
    first = store.resolve("model")
    monkeypatch.setattr(folder_store, "read_manifest", None)
    assert store.resolve("model") is first
    assert folder == first.path


def test_a_republished_package_is_picked_up(tmp_path: Path) -> None:
    write_package(tmp_path)
    store = ModelStore(tmp_path, CPU)
    first = store.resolve("model")
    # As the exporter publishes: a new folder is renamed into the old one's place.
    new = write_package(tmp_path / "new", files={WEIGHTS_FILE: b"weight2"})
    shutil.rmtree(first.path)
    new.rename(first.path)
    second = store.resolve("model")
    assert second.manifest.version != first.manifest.version
    assert second.key != first.key


def test_a_removed_package_is_gone_at_once(tmp_path: Path) -> None:
    folder = write_package(tmp_path)
    store = ModelStore(tmp_path, CPU)
    store.resolve("model")
    shutil.rmtree(folder)
    with pytest.raises(ModelNotFound):
        store.resolve("model")


def test_unusable_packages_say_why_each_time(tmp_path: Path) -> None:
    folder = write_package(tmp_path, "cut")
    (folder / WEIGHTS_FILE).write_bytes(b"")
    newer = write_package(tmp_path, "newer")
    (newer / MANIFEST_FILE).write_text('{"format_revision": 2}')
    store = ModelStore(tmp_path, CPU)
    for _ in range(2):
        with pytest.raises(CorruptPackage):
            store.resolve("cut")
        with pytest.raises(UnknownRevision):
            store.resolve("newer")
    # A package that was repaired works without a restart.
    write_package(tmp_path, "cut")
    assert store.resolve("cut").model == "cut"


def test_known_packages_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_models, "REMEMBERED", 3)
    store = ModelStore(tmp_path, CPU)
    for n in range(6):
        write_package(tmp_path, f"m{n}")
        store.resolve(f"m{n}")
    assert store._known.models() == ["m3", "m4", "m5"]


def test_hashes_are_compared_once_for_a_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(folder_store, "verify_hashes", lambda *a: calls.append(a))
    write_package(tmp_path)
    store = ModelStore(tmp_path, CPU)
    store.verify(store.resolve("model"))
    store.verify(store.resolve("model"))
    assert len(calls) == 1


def test_a_wrong_hash_is_found_each_time(tmp_path: Path) -> None:
    folder = write_package(tmp_path)
    (folder / WEIGHTS_FILE).write_bytes(b"weightz")
    store = ModelStore(tmp_path, CPU)
    for _ in range(2):
        with pytest.raises(CorruptPackage, match="sha256"):
            store.verify(store.resolve("model"))


def test_a_republished_package_with_the_same_weights_is_verified_too(tmp_path: Path) -> None:
    folder = write_package(tmp_path)
    store = ModelStore(tmp_path, CPU)
    store.verify(store.resolve("model"))
    # The version names the weights only; another tokenizer came with them, and came damaged.
    write_package(tmp_path, files={TOKENIZER_FILE: b'{"a": 1}'})
    (folder / TOKENIZER_FILE).write_bytes(b'{"a": 2}')
    with pytest.raises(CorruptPackage, match=TOKENIZER_FILE):
        store.verify(store.resolve("model"))


def test_listing(tmp_path: Path) -> None:
    for model in ("b", "org/z", "org/a", "a", "user-2/x", "user/x", "a.b"):
        write_package(tmp_path, model)
    write_package(tmp_path, "gpu-only", target="cuda", precision="fp16")
    write_package(tmp_path, "exact", precision="fp32")
    # What an exporter leaves behind when it is killed, and what else may lie around.
    shutil.copytree(tmp_path / "a", tmp_path / ".export-1234")
    shutil.copytree(tmp_path / "org" / "a", tmp_path / "org" / ".new-a")
    shutil.copytree(tmp_path / "a", tmp_path / ".hidden" / "x")
    shutil.copytree(tmp_path / "a", tmp_path / "org" / "info")
    (tmp_path / "README.md").touch()
    (tmp_path / "org" / "notes").touch()
    (tmp_path / "half" / "cpu-int8").mkdir(parents=True)
    found = ModelStore(tmp_path, CPU).list()
    assert sorted(found) == ["a", "a.b", "b", "exact", "org/a", "org/z", "user-2/x", "user/x"]
    assert len(set(found)) == len(found)


def test_a_model_may_have_the_name_of_an_organisation(tmp_path: Path) -> None:
    write_package(tmp_path, "gpt2")
    write_package(tmp_path, "gpt2/large")
    store = ModelStore(tmp_path, CPU)
    assert store.resolve("gpt2/large").model == "gpt2/large"
    assert store.list() == ["gpt2", "gpt2/large"]


# -- freshness --------------------------------------------------------------------------------


class Looks:
    """A clock that stands still, and how often a folder store was looked at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.models: list[str] = []
        original = folder_store.FolderStore.look

        def look(store: Any, model: str, known: Any) -> Any:
            self.models.append(model)
            return original(store, model, known)

        monkeypatch.setattr(folder_store.FolderStore, "look", look)

    def clock(self) -> float:
        return self.now


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    return Looks(monkeypatch)


def test_a_model_is_looked_for_at_most_every_refresh_seconds(tmp_path: Path, looks: Looks) -> None:
    write_package(tmp_path, "a")
    write_package(tmp_path, "broken").joinpath(MANIFEST_FILE).write_text("{")
    store = ModelStore(tmp_path, CPU, refresh=5, clock=looks.clock)
    for seconds in (0, 0, 4.9):
        looks.now += seconds
        store.resolve("a")
        for model, error in (("missing", ModelNotFound), ("broken", CorruptPackage)):
            with pytest.raises(error):
                store.resolve(model)
    assert sorted(looks.models) == ["a", "broken", "missing"]
    write_package(tmp_path, "missing")
    looks.now += 0.1
    assert store.resolve("missing").model == "missing"
    assert store.resolve("a").model == "a"
    assert len(looks.models) == 5


def test_unknown_models_do_not_push_out_known_ones(
    tmp_path: Path, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_models, "REMEMBERED", 3)
    write_package(tmp_path, "a")
    store = ModelStore(tmp_path, CPU, refresh=5, clock=looks.clock)
    store.resolve("a")
    for n in range(10):
        with pytest.raises(ModelNotFound):
            store.resolve(f"x{n}")
    assert len(store._known._others) == 3
    store.resolve("a")
    assert looks.models.count("a") == 1


def test_while_one_thread_looks_others_use_what_is_known(
    tmp_path: Path, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_package(tmp_path, "a")
    store = ModelStore(tmp_path, CPU, refresh=5, clock=looks.clock)
    known = store.resolve("a")
    entered, leave = threading.Event(), threading.Event()
    original = store._backend.look

    def slow(model: str, seen: Any) -> Any:
        entered.set()
        assert leave.wait(30)
        return original(model, seen)

    monkeypatch.setattr(store._backend, "look", slow)
    looks.now += 5
    with ThreadPoolExecutor(1) as pool:
        slowest = pool.submit(store.resolve, "a")
        assert entered.wait(30)
        assert store.resolve("a") is known
        assert store.resolve("a") is known
        leave.set()
        assert slowest.result() is known


def test_changes_are_told(tmp_path: Path) -> None:
    folder = write_package(tmp_path, "a")
    write_package(tmp_path, "b")
    store = ModelStore(tmp_path, CPU)
    told: list[tuple[str, str | None]] = []
    store.on_change = lambda model, package: told.append((model, package and package.key))
    store.resolve("a")
    store.resolve("b")
    assert store.peek("a") == store.resolve("a")
    assert store.peek("c") is None
    write_package(tmp_path, "a", bytes_needed=5)  # the same weights
    store.resolve("a")
    assert told == []
    write_package(tmp_path, "a", files={WEIGHTS_FILE: b"weight2"})
    new = store.resolve("a")
    store.resolve("a")
    assert told == [("a", new.key)]
    (folder / MANIFEST_FILE).write_text("{")  # half a publication is no change
    with pytest.raises(CorruptPackage):
        store.resolve("a")
    shutil.rmtree(tmp_path / "b")
    for _ in range(2):
        with pytest.raises(ModelNotFound):
            store.resolve("b")
    assert told[1:] == [("b", None)]


def test_a_package_that_was_replaced_before_it_was_read(tmp_path: Path, looks: Looks) -> None:
    write_package(tmp_path)
    store = ModelStore(tmp_path, CPU, refresh=5, clock=looks.clock)
    old = store.resolve("model")
    write_package(tmp_path, files={WEIGHTS_FILE: b"weight2"})
    with pytest.raises(PackageReplaced) as caught, store.hold(old):
        pass
    assert caught.value.retry_after
    new = store.resolve("model")  # not five seconds later
    assert new.key != old.key
    with store.hold(new) as path:
        assert path == new.path


def test_a_file_that_vanishes_is_a_corrupt_package(tmp_path: Path) -> None:
    folder = write_package(tmp_path)
    store = ModelStore(tmp_path, CPU)
    package = store.resolve("model")
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(CorruptPackage), store.hold(package):
        pass


def test_a_folder_fetches_nothing(tmp_path: Path) -> None:
    folder = write_package(tmp_path)
    store = ModelStore(str(tmp_path), CPU)
    package = store.resolve("model")
    assert package.local
    progress: list[tuple[int, int]] = []
    assert store.fetch(package, lambda *both: progress.append(both)) is package
    assert progress == [(14, 14)]
    assert store.tokenizer_file(package) == folder / TOKENIZER_FILE
    assert store.disk_cache_bytes == 0
    store.close()


def test_a_folder_that_cannot_be_read_is_an_absent_store(
    tmp_path: Path, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_package(tmp_path, "a")
    store = ModelStore(tmp_path, CPU, refresh=5, clock=looks.clock)
    known = store.resolve("a")

    def broken(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", broken)
        looks.now += 5
        assert store.resolve("a") == known
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                store.resolve("b")
    assert len(looks.models) == 2  # the first, and the one that failed
    looks.now += store_module.PAUSE
    assert store.resolve("a") == known  # sees whether it is back
    deadline = time.monotonic() + 30
    while store._reachability.failing:
        assert time.monotonic() < deadline
    with pytest.raises(ModelNotFound):
        store.resolve("b")


def test_a_folder_that_is_moved_away_deletes_nothing(tmp_path: Path, looks: Looks) -> None:
    root = tmp_path / "models"
    write_package(root, "a")
    store = ModelStore(root, CPU, refresh=5, clock=looks.clock)
    told: list[str] = []
    store.on_change = lambda model, package: told.append(model)
    known = store.resolve("a")
    assert store.list() == ["a"]
    root.rename(tmp_path / "aside")
    looks.now += 5
    assert store.resolve("a") == known
    assert store.list() == ["a"]
    store._catalog.join()
    assert store.list() == ["a"]
    with pytest.raises(StoreUnavailable):
        store.resolve("b")
    assert told == []


# -- the index --------------------------------------------------------------------------------


def test_a_second_page_scans_no_folder(
    tmp_path: Path, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in ("a", "org/b", "org/c", "d"):
        write_package(tmp_path, model)
    scanned: list[Any] = []
    original = os.scandir
    monkeypatch.setattr(
        folder_store.os, "scandir", lambda path: scanned.append(path) or original(path)
    )
    monkeypatch.setattr(folder_store, "read_manifest", None)
    store = ModelStore(tmp_path, CPU, refresh=5, clock=looks.clock)
    assert scanned == []
    assert store.list(limit=2) == ["a", "d"]
    first = len(scanned)
    assert first > 2
    assert store.list("d", 2) == ["org/b", "org/c"]
    looks.now += 4
    assert store.list("org/c") == []
    assert len(scanned) == first
    assert looks.models == []
