"""The model package: what the exporter writes and the server reads.

    STORE/<id>/<target>-<precision>/
        model.onnx          the graph, without weights; identical for models of one shape
        model.onnx.data     the weights, one flat file that is memory-mapped
        tokenizer.json      a `tokenizers` file
        manifest.json       `Manifest`, below

This module holds the names, the types and the checks, so that both sides agree. It needs
neither onnxruntime nor torch.
"""

from __future__ import annotations

import hashlib
import mmap
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import xxhash

from gpt2serve.errors import CorruptPackage, InvalidModelId, PackageError, UnknownRevision

FORMAT_REVISION = 1

GRAPH_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"
TOKENIZER_FILE = "tokenizer.json"
MANIFEST_FILE = "manifest.json"

Target = Literal["cpu", "cuda"]
Precision = Literal["int8", "fp32", "fp16"]

#: The variants that exist, in the order in which a server prefers them.
VARIANTS: tuple[tuple[Target, Precision], ...] = (
    ("cpu", "int8"),
    ("cpu", "fp32"),
    ("cuda", "fp16"),
)

#: Last parts of an id that would collide with a route.
RESERVED_NAMES = frozenset({"info", "generate", "generate_stream"})

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
#: One part of an id, and an id, as regular expressions that other languages know too.
MODEL_NAME_PATTERN = f"^{_PART}$"
MODEL_ID_PATTERN = f"^{_PART}(/{_PART})?$"
_MODEL_ID = re.compile(f"{_PART}(?:/{_PART})?")

#: Where obstore looks for the address of a server that is not the provider's own, and for leave.
_ENDPOINTS = ("AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AZURE_STORAGE_ENDPOINT")
_ALLOW_HTTP = ("AWS_ALLOW_HTTP", "AZURE_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP")


class Dimensions(msgspec.Struct, frozen=True, kw_only=True):
    """The shape of a GPT-2."""

    vocab_size: int
    context_length: int
    layers: int
    heads: int
    head_size: int
    inner_size: int

    @property
    def hidden_size(self) -> int:
        return self.heads * self.head_size


class GenerationDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """What a request takes for a field that it leaves out.

    Lengths are in tokens. `max_length` and `min_length` count the prompt, without `prefix`;
    `max_new_tokens` and `min_new_tokens` do not count it and win where both are set, as in
    transformers. `prefix` is put before the prompt and is no part of the answer.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    num_return_sequences: int = 1
    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int = 0
    min_new_tokens: int | None = None
    prefix: str = ""


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """What a page shows about a model."""

    title: str = ""
    handle: str = ""
    example_prompts: tuple[str, ...] = ()
    picture: str = ""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """The checkpoint that a package was made from. `sha256` covers every file that was read."""

    name: str
    sha256: str
    exporter_version: str


class KVLayout(msgspec.Struct, frozen=True, kw_only=True):
    """How the graph lays out one layer's keys (or values)."""

    axes: str = "slots,heads,length,head_size"
    dtype: Literal["float32", "float16"] = "float32"
    past_names: tuple[str, str] = ("past.{layer}.key", "past.{layer}.value")
    present_names: tuple[str, str] = ("present.{layer}.key", "present.{layer}.value")


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One file: its size, its hash, and `checksum_of` it, which older packages do not have."""

    bytes: int
    sha256: str
    checksum: str | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`manifest.json`. `bytes_needed` is the memory of the loaded model, without KV cache."""

    format_revision: int
    id: str
    target: Target
    precision: Precision
    source: Source
    dimensions: Dimensions
    bos_token_id: int
    eos_token_ids: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    kv: KVLayout
    generation_defaults: GenerationDefaults
    card: ModelCard
    bytes_needed: int
    files: dict[str, FileEntry]
    verification: dict[str, Any] = {}

    @property
    def version(self) -> str:
        """Names the weights: two packages with one version speak the same words."""
        return self.files[WEIGHTS_FILE].sha256[:16]


class _Revision(msgspec.Struct):
    format_revision: int


def check_model_id(model: str) -> str:
    """Return `model`, or raise `InvalidModelId`. Nothing that passes can leave the store."""
    if not _MODEL_ID.fullmatch(model):
        raise InvalidModelId(
            f"{model!r} is not a model id: use letters, digits, '.', '_' and '-', at most 96 of "
            "them, beginning with a letter or digit; optionally as 'org/name'."
        )
    last = model.rsplit("/", 1)[-1]
    if last in RESERVED_NAMES:
        raise InvalidModelId(f"{model!r} is not a model id: {last!r} is reserved.")
    return model


def variant_name(target: str, precision: str) -> str:
    return f"{target}-{precision}"


def package_path(store: Path, model: str, target: str, precision: str) -> Path:
    """`STORE/<id>/<target>-<precision>`; raises `InvalidModelId`."""
    return store / check_model_id(model) / variant_name(target, precision)


def allows_http(url: str, environment: Mapping[str, str]) -> bool:
    """Whether packages at `url` may be reached without TLS: somebody has written so.

    obstore reads these variables by itself only where nothing else is set for its client.
    """
    addresses = (url, *(environment.get(name, "") for name in _ENDPOINTS))
    return any(address.startswith("http://") for address in addresses) or any(
        environment.get(name, "").lower() in ("1", "true", "yes", "on") for name in _ALLOW_HTTP
    )


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum_of(path: Path, sha256: str) -> str:
    """XXH3 over the file's declared sha256 and its contents, in hexadecimal.

    What it is for: a server compares it before it uses a model, and this takes a tenth of the
    time of a sha256 (docs/decisions/0011-cold-start.md). It finds every accident, in the file or
    in the manifest's hash. Neither finds malice, since whoever can replace a file can replace
    the manifest beside it.
    """
    digest = xxhash.xxh3_128(sha256.encode())
    if path.stat().st_size:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
            digest.update(content)
    return digest.hexdigest()


def file_entry(path: Path) -> FileEntry:
    """What a manifest says about the file at `path`."""
    sha256 = sha256_of(path)
    return FileEntry(bytes=path.stat().st_size, sha256=sha256, checksum=checksum_of(path, sha256))


def encode_manifest(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def read_manifest(package: Path) -> Manifest:
    """Read `package/manifest.json` and check what can be checked without reading weights.

    Raises `UnknownRevision`, or `CorruptPackage` with the reason.
    """
    try:
        raw = (package / MANIFEST_FILE).read_bytes()
    except OSError as error:
        raise CorruptPackage(f"{package}: no readable {MANIFEST_FILE} ({error}).") from error
    manifest = decode_manifest(raw, str(package))
    for problem in _size_problems(package, manifest):
        raise CorruptPackage(f"{package}: {problem}")
    return manifest


def decode_manifest(raw: bytes, package: str) -> Manifest:
    """The manifest of `package`, checked as far as it goes without the package's files.

    Raises `UnknownRevision`, or `CorruptPackage` with the reason.
    """
    try:
        revision = msgspec.json.decode(raw, type=_Revision).format_revision
        if revision != FORMAT_REVISION:
            raise UnknownRevision(
                f"{package}: package format {revision}, this version reads {FORMAT_REVISION}; "
                "export the model again with the exporter of this version."
            )
        manifest = msgspec.json.decode(raw, type=Manifest)
    except msgspec.MsgspecError as error:
        raise CorruptPackage(f"{package}: {MANIFEST_FILE} is not valid ({error}).") from error
    try:
        check_model_id(manifest.id)
    except InvalidModelId as error:
        raise CorruptPackage(f"{package}: {MANIFEST_FILE}: {error}") from error
    for problem in _file_list_problems(manifest):
        raise CorruptPackage(f"{package}: {problem}")
    return manifest


def verify_hashes(package: Path, manifest: Manifest) -> None:
    """Read every file and compare it with the manifest. Raises `CorruptPackage`."""
    for name, entry in manifest.files.items():
        path = package / name
        if entry.checksum is None:
            right = sha256_of(path) == entry.sha256
        else:
            right = checksum_of(path, entry.sha256) == entry.checksum
        if not right:
            raise CorruptPackage(
                f"{package}: {name} differs from the manifest's sha256; export the model again."
            )


def _file_list_problems(manifest: Manifest) -> Iterator[str]:
    for name in (GRAPH_FILE, WEIGHTS_FILE, TOKENIZER_FILE):
        if name not in manifest.files:
            yield f"the manifest does not list {name}."
    for name in manifest.files:
        if Path(name).name != name or name in ("", ".", ".."):
            yield f"the manifest lists {name!r}, which is outside the package."


def _size_problems(package: Path, manifest: Manifest) -> Iterator[str]:
    for name, entry in manifest.files.items():
        path = package / name
        if path.is_symlink() or not path.is_file():
            yield f"{name} is missing or is not a plain file."
        elif path.stat().st_size != entry.bytes:
            yield f"{name} has {path.stat().st_size} bytes, the manifest says {entry.bytes}."


__all__ = [
    "FORMAT_REVISION",
    "GRAPH_FILE",
    "MANIFEST_FILE",
    "RESERVED_NAMES",
    "TOKENIZER_FILE",
    "VARIANTS",
    "WEIGHTS_FILE",
    "Dimensions",
    "FileEntry",
    "GenerationDefaults",
    "InvalidModelId",
    "KVLayout",
    "Manifest",
    "ModelCard",
    "PackageError",
    "Precision",
    "Source",
    "Target",
    "allows_http",
    "check_model_id",
    "checksum_of",
    "decode_manifest",
    "encode_manifest",
    "file_entry",
    "package_path",
    "read_manifest",
    "sha256_of",
    "variant_name",
    "verify_hashes",
]
