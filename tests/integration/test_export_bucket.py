"""`python -m gpt2export.bucket`, against a real S3 server."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import obstore
import pytest

from gpt2export import bucket
from gpt2export.errors import StoreError, UsageError
from gpt2export.share import Share
from gpt2serve.engine.store import ModelStore
from gpt2serve.package import MANIFEST_FILE, WEIGHTS_FILE
from tests import s3_server
from tests.engine_fakes import write_package

_NAMES = (f"export-{number}" for number in itertools.count())

CHECKPOINT = {"config.json": b"{}", "model.safetensors": b"w" * 100_000, "tokenizer.json": b"[]"}


@pytest.fixture
def s3(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Any]:
    """The URL of an empty bucket, and the test's own way to it."""
    name = next(_NAMES)
    for key, value in s3_server.environment(s3_port).items():
        monkeypatch.setenv(key, value)
    return f"s3://{name}/the/prefix", s3_server.client(s3_port, name)


def put(client: Any, files: dict[str, bytes], below: str = "the/prefix") -> None:
    for name, content in files.items():
        obstore.put(client, f"{below}/{name}", content)


def put_checkpoints(client: Any, *models: str) -> None:
    for model in models:
        put(client, {f"{model}/{name}": content for name, content in CHECKPOINT.items()})


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_checkpoints_come_as_the_exporter_finds_them(s3: tuple[str, Any], tmp_path: Path) -> None:
    url, client = s3
    put_checkpoints(client, "poems", "me/prose")
    put(
        client,
        {
            # Not read by an export, or no checkpoint, or inside of one.
            "poems/optimizer.pt": b"x",
            "poems/pytorch_model.bin": b"x",
            "poems/checkpoint-500/config.json": b"{}",
            "notes/README.md": b"x",
            "a/b/c/config.json": b"{}",
            ".hidden/config.json": b"{}",
        },
    )
    lines = list(bucket.fetch(bucket.connect(url), tmp_path, [], Share()))
    wanted = {f"{model}/{name}" for model in ("poems", "me/prose") for name in CHECKPOINT}
    assert files_in(tmp_path) == wanted
    assert (tmp_path / "poems" / "model.safetensors").read_bytes() == b"w" * 100_000
    assert [line.partition(":")[0] for line in lines] == ["me/prose", "poems"]


def test_old_weights_come_where_there_are_no_others(s3: tuple[str, Any], tmp_path: Path) -> None:
    url, client = s3
    put(client, {"old/config.json": b"{}", "old/pytorch_model.bin": b"w", "old/vocab.json": b"{}"})
    list(bucket.fetch(bucket.connect(url), tmp_path, [], Share()))
    assert "old/pytorch_model.bin" in files_in(tmp_path)


def test_shares_are_all_of_them_and_each_once(s3: tuple[str, Any], tmp_path: Path) -> None:
    url, client = s3
    models = [f"me/m{number}" for number in range(5)]
    put_checkpoints(client, *models)
    fetched = []
    for index in range(3):
        folder = tmp_path / str(index)
        list(bucket.fetch(bucket.connect(url), folder, [], Share(index, 3)))
        fetched += [str(path.parent.relative_to(folder)) for path in folder.rglob("config.json")]
    assert sorted(fetched) == models
    # More shares than checkpoints.
    assert list(bucket.fetch(bucket.connect(url), tmp_path, [], Share(6, 7))) == []


def test_one_that_is_named(s3: tuple[str, Any], tmp_path: Path) -> None:
    url, client = s3
    put_checkpoints(client, "poems", "me/prose")
    list(bucket.fetch(bucket.connect(url), tmp_path, ["me/prose"], Share()))
    assert files_in(tmp_path) == {f"me/prose/{name}" for name in CHECKPOINT}
    with pytest.raises(UsageError, match="no checkpoint me/verse in the bucket"):
        list(bucket.fetch(bucket.connect(url), tmp_path, ["me/verse"], Share()))


def test_an_empty_bucket_is_a_mistake(s3: tuple[str, Any], tmp_path: Path) -> None:
    url, client = s3
    put(client, {"a/README.md": b"x"})
    with pytest.raises(UsageError, match="no checkpoint in the bucket"):
        list(bucket.fetch(bucket.connect(url), tmp_path, [], Share()))


def test_what_is_published_can_be_served(s3: tuple[str, Any], tmp_path: Path) -> None:
    url, client = s3
    put(client, {"placeholder": b""})
    store = tmp_path / "models"
    package = write_package(store, "me/poems")
    write_package(store / ".export-half", "me/prose")

    assert list(bucket.publish(store, bucket.connect(url))) == ["me/poems/cpu-int8: published"]
    keys = {meta["path"] for page in obstore.list(client) for meta in page}
    assert keys - {"the/prefix/placeholder"} == {
        f"the/prefix/me/poems/cpu-int8/{path.name}" for path in package.iterdir()
    }
    served = ModelStore(
        url, [("cpu", "int8")], disk_cache=tmp_path / "cache", disk_cache_bytes=10**9
    )
    try:
        fetched = served.fetch(served.resolve("me/poems"))
        with served.hold(fetched) as folder:
            assert (folder / WEIGHTS_FILE).read_bytes() == (package / WEIGHTS_FILE).read_bytes()
    finally:
        served.close()


def test_what_is_there_already_is_left_alone(s3: tuple[str, Any], tmp_path: Path) -> None:
    url, client = s3
    put(client, {"placeholder": b""})
    package = write_package(tmp_path, "poems")
    key = f"the/prefix/poems/cpu-int8/{WEIGHTS_FILE}"
    list(bucket.publish(tmp_path, bucket.connect(url)))
    before = obstore.head(client, key)["last_modified"]

    assert list(bucket.publish(tmp_path, bucket.connect(url))) == ["poems/cpu-int8: unchanged"]
    assert obstore.head(client, key)["last_modified"] == before

    manifest = package / MANIFEST_FILE
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    assert list(bucket.publish(tmp_path, bucket.connect(url))) == ["poems/cpu-int8: published"]


def test_the_manifest_comes_last(
    s3: tuple[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A break in the middle leaves a package that nobody counts."""
    url, client = s3
    put(client, {"placeholder": b""})
    write_package(tmp_path, "poems")
    upload = bucket._upload
    order: list[str] = []

    def watched(to: Any, key: str, path: Path) -> None:
        order.append(path.name)
        upload(to, key, path)

    monkeypatch.setattr(bucket, "_upload", watched)
    list(bucket.publish(tmp_path, bucket.connect(url)))
    assert order[-1] == MANIFEST_FILE
    assert order.count(MANIFEST_FILE) == 1
    assert WEIGHTS_FILE in order


def test_a_refusal_names_the_object(
    s3: tuple[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = s3
    write_package(tmp_path, "poems")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreError, match=r"poems/cpu-int8/manifest\.json"):
        list(bucket.publish(tmp_path, bucket.connect(url)))
    with pytest.raises(StoreError, match="cannot be listed"):
        list(bucket.fetch(bucket.connect(url), tmp_path, [], Share()))


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gpt2export.bucket", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONWARNINGS": "error"},
    )


def test_the_command(s3: tuple[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, client = s3
    put_checkpoints(client, "poems")
    done = command("fetch", url, tmp_path, "--share", "0/1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "1 in all"
    assert command("fetch", url, tmp_path, "prose").returncode == 2
    assert command("fetch", "poems", tmp_path).returncode == 2
    write_package(tmp_path / "models", "poems")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    failed = command("publish", tmp_path / "models", url)
    assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)
    assert "poems/cpu-int8/manifest.json" in failed.stderr
