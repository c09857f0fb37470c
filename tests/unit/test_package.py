"""The model package: which ids exist, and what a reader refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2serve.errors import CorruptPackage, InvalidModelId, PackageError, UnknownRevision
from gpt2serve.package import (
    GRAPH_FILE,
    MANIFEST_FILE,
    RESERVED_NAMES,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    Manifest,
    allows_http,
    check_model_id,
    encode_manifest,
    file_entry,
    package_path,
    read_manifest,
    verify_hashes,
)
from tests.engine_fakes import manifest, write_package

GOOD_IDS = [
    "a",
    "A",
    "7",
    "gpt2",
    "org/name",
    "a" * 96,
    f"{'a' * 96}/{'b' * 96}",
    "a.b_c-d",
    "a..b",
]
GOOD_IDS += ["info/x", "generate/model", "infos", "a-", "a."]
BAD_IDS = ["", ".", "..", "../x", "x/..", "../../etc/passwd", "/etc", "/", "a/", "/a", "a//b"]
BAD_IDS += ["a/b/c", ".hidden", "a/.hidden", "-a", "_a", "a b", " a", "a ", "a\n", "a\x00", "a\\b"]
BAD_IDS += ["a" * 97, f"{'a' * 97}/b", f"a/{'b' * 97}", "naïve", "模型", "a\u0301", "a:b", "a%2fb"]
BAD_IDS += ["~", "a/~", "C:a", "\u0661", "a\uff02", "a/b\n", *RESERVED_NAMES]
BAD_IDS += [f"org/{name}" for name in RESERVED_NAMES]


@pytest.mark.parametrize("model", GOOD_IDS)
def test_good_ids(model: str) -> None:
    assert check_model_id(model) == model


@pytest.mark.parametrize("model", BAD_IDS, ids=ascii)
def test_bad_ids(model: str) -> None:
    with pytest.raises(InvalidModelId):
        check_model_id(model)


def test_reserved_names_are_the_routes() -> None:
    assert {"info", "generate", "generate_stream"} == RESERVED_NAMES


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.text(max_size=20) | st.text("./a\\-~", max_size=8))
def test_no_id_leaves_the_store(model: str) -> None:
    store = Path("/somewhere/store")
    try:
        path = package_path(store, model, "cpu", "int8")
    except InvalidModelId:
        return
    assert path.resolve().is_relative_to(store)
    assert len(path.relative_to(store).parts) in (2, 3)


# -- reading ----------------------------------------------------------------------------------


def test_a_whole_package_is_read(tmp_path: Path) -> None:
    folder = write_package(tmp_path, "org/model")
    read = read_manifest(folder)
    assert read == manifest("org/model")
    verify_hashes(folder, read)
    assert read.version == read.files[WEIGHTS_FILE].sha256[:16]


def test_manifest_survives_encoding(tmp_path: Path) -> None:
    folder = write_package(tmp_path, verification={"perplexity": 20.5, "bounds": ["a", 1]})
    read = read_manifest(folder)
    assert read.verification == {"perplexity": 20.5, "bounds": ["a", 1]}
    (folder / MANIFEST_FILE).write_bytes(encode_manifest(read))
    assert read_manifest(folder) == read


def with_checksums(folder: Path) -> Manifest:
    """As the exporter writes it."""
    read = read_manifest(folder)
    files = {name: file_entry(folder / name) for name in read.files}
    assert {name: entry.sha256 for name, entry in files.items()} == {
        name: entry.sha256 for name, entry in read.files.items()
    }
    return msgspec.structs.replace(read, files=files)


def edited(folder: Path, change: Callable[[dict[str, object]], object]) -> Path:
    path = folder / MANIFEST_FILE
    content = json.loads(path.read_bytes())
    change(content)
    path.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("revision", [0, 2, 99])
def test_another_revision_is_refused_before_anything_else_is_read(
    tmp_path: Path, revision: int
) -> None:
    folder = write_package(tmp_path)
    (folder / MANIFEST_FILE).write_text(json.dumps({"format_revision": revision, "new": 1}))
    with pytest.raises(UnknownRevision, match=f"format {revision}.*export the model again"):
        read_manifest(folder)


def test_a_manifest_cut_anywhere_is_corrupt(tmp_path: Path) -> None:
    folder = write_package(tmp_path)
    whole = (folder / MANIFEST_FILE).read_bytes()
    for length in [0, 1, 5, 20, len(whole) // 2, len(whole) - 3]:
        (folder / MANIFEST_FILE).write_bytes(whole[:length])
        with pytest.raises(CorruptPackage, match=MANIFEST_FILE):
            read_manifest(folder)


@pytest.mark.parametrize(
    "content", [b"[]", b"null", b"\xff\xfe", b'{"format_revision": "1"}', b"{}"]
)
def test_a_manifest_that_is_something_else_is_corrupt(tmp_path: Path, content: bytes) -> None:
    folder = write_package(tmp_path)
    (folder / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(CorruptPackage, match=MANIFEST_FILE):
        read_manifest(folder)


@pytest.mark.parametrize("field", ["id", "target", "dimensions", "kv", "files", "eos_token_ids"])
def test_a_manifest_without_a_field_is_corrupt(tmp_path: Path, field: str) -> None:
    folder = edited(write_package(tmp_path), lambda content: content.pop(field))
    with pytest.raises(CorruptPackage, match=field):
        read_manifest(folder)


def test_an_id_with_a_way_out_is_refused(tmp_path: Path) -> None:
    folder = edited(write_package(tmp_path), lambda content: content.update(id="../other"))
    with pytest.raises(PackageError):
        read_manifest(folder)


def test_a_missing_manifest_is_corrupt(tmp_path: Path) -> None:
    with pytest.raises(CorruptPackage, match="no readable"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", [GRAPH_FILE, WEIGHTS_FILE, TOKENIZER_FILE])
class TestEachFile:
    def test_missing(self, tmp_path: Path, name: str) -> None:
        folder = write_package(tmp_path)
        (folder / name).unlink()
        with pytest.raises(CorruptPackage, match=name):
            read_manifest(folder)

    def test_truncated(self, tmp_path: Path, name: str) -> None:
        folder = write_package(tmp_path)
        (folder / name).write_bytes((folder / name).read_bytes()[:-1])
        with pytest.raises(CorruptPackage, match=f"{name} has"):
            read_manifest(folder)

    def test_altered(self, tmp_path: Path, name: str) -> None:
        folder = write_package(tmp_path)
        content = bytearray((folder / name).read_bytes())
        content[-1] ^= 1
        (folder / name).write_bytes(content)
        read = read_manifest(folder)
        with pytest.raises(CorruptPackage, match=f"{name} differs"):
            verify_hashes(folder, read)

    def test_altered_where_the_manifest_has_a_checksum(self, tmp_path: Path, name: str) -> None:
        folder = write_package(tmp_path)
        read = with_checksums(folder)
        verify_hashes(folder, read)
        content = bytearray((folder / name).read_bytes())
        content[0] ^= 1
        (folder / name).write_bytes(content)
        with pytest.raises(CorruptPackage, match=f"{name} differs"):
            verify_hashes(folder, read)

    def test_a_sha256_that_is_not_the_files(self, tmp_path: Path, name: str) -> None:
        """Found by the checksum, too: the version, which is part of it, must be right."""
        folder = write_package(tmp_path)
        read = with_checksums(folder)
        wrong = msgspec.structs.replace(read.files[name], sha256="0" * 64)
        altered = msgspec.structs.replace(read, files=read.files | {name: wrong})
        with pytest.raises(CorruptPackage, match=f"{name} differs"):
            verify_hashes(folder, altered)

    def test_symlink(self, tmp_path: Path, name: str) -> None:
        folder = write_package(tmp_path)
        outside = tmp_path / "outside"
        outside.write_bytes((folder / name).read_bytes())
        (folder / name).unlink()
        (folder / name).symlink_to(outside)
        with pytest.raises(CorruptPackage, match=name):
            read_manifest(folder)

    def test_folder(self, tmp_path: Path, name: str) -> None:
        folder = write_package(tmp_path)
        (folder / name).unlink()
        (folder / name).mkdir()
        with pytest.raises(CorruptPackage, match=name):
            read_manifest(folder)

    def test_not_listed(self, tmp_path: Path, name: str) -> None:
        folder = edited(
            write_package(tmp_path),
            lambda content: content["files"].pop(name),  # type: ignore[attr-defined]
        )
        with pytest.raises(CorruptPackage, match="does not list"):
            read_manifest(folder)


@pytest.mark.parametrize(
    "name", ["../x", "/etc/hostname", "a/b", "..", ".", "", "../model.onnx", "x\x00"]
)
def test_a_file_outside_the_package_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_package(tmp_path, "org/model")
    (folder.parent / "x").write_bytes(b"")
    entry = {"bytes": 0, "sha256": "0" * 64}
    edited(folder, lambda content: content["files"].update({name: entry}))  # type: ignore[attr-defined]
    with pytest.raises(CorruptPackage):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("url", "variables", "allowed"),
    [
        ("s3://b", {}, False),
        ("s3://b", {"AWS_ENDPOINT_URL": "https://h"}, False),
        ("s3://b", {"AWS_ENDPOINT_URL": "http://h:1"}, True),
        ("s3://b", {"AWS_ALLOW_HTTP": "true"}, True),
        ("s3://b", {"AWS_ALLOW_HTTP": "false"}, False),
        ("az://b", {"AZURE_STORAGE_ENDPOINT": "http://h:1"}, True),
        ("gs://b", {"GOOGLE_ALLOW_HTTP": "1"}, True),
        ("http://h/x", {}, True),
        ("https://h/x", {}, False),
    ],
)
def test_plain_http_only_where_it_was_asked_for(
    url: str, variables: dict[str, str], *, allowed: bool
) -> None:
    assert allows_http(url, variables) is allowed
