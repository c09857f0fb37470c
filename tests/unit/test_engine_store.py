"""The store: finding packages, noticing new ones, listing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gpt2serve.engine import folder_store
from gpt2serve.engine import store as store_module
from gpt2serve.engine.store import ModelStore
from gpt2serve.errors import (
    CorruptPackage,
    InvalidModelId,
    ModelNotFound,
    SettingsError,
    UnknownRevision,
)
from gpt2serve.package import MANIFEST_FILE, TOKENIZER_FILE, WEIGHTS_FILE
from tests.unit.engine_support import write_package

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
    monkeypatch.setattr(store_module, "REMEMBERED", 3)
    store = ModelStore(tmp_path, CPU)
    for n in range(6):
        write_package(tmp_path, f"m{n}")
        store.resolve(f"m{n}")
    assert list(store._known) == ["m3", "m4", "m5"]


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
