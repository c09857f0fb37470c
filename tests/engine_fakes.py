"""What the engine's unit and property tests share: packages without a model, and fakes.

`FakeRunner` stands in for a model: its KV cache holds the tokens themselves, so a step that
reads a slot can tell whether the right sequence's cache is in it.
"""

from __future__ import annotations

import hashlib
import threading
import zlib
from collections.abc import Callable
from collections.abc import Sequence as Items
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from gpt2serve.engine.events import Done, Generation, TokenEvent
from gpt2serve.engine.kv_cache import KVPool, KVShape
from gpt2serve.engine.memory import HostMemory
from gpt2serve.engine.observer import NoObserver
from gpt2serve.engine.params import ResolvedParams, SamplingParams
from gpt2serve.engine.preparation import Asked, PreparedRequest
from gpt2serve.engine.request import Request, Times
from gpt2serve.engine.sampling import BatchSampler
from gpt2serve.engine.shares import Shares
from gpt2serve.engine.store import Package
from gpt2serve.engine.stream import Delivery, Outbox
from gpt2serve.engine.text import clean_up
from gpt2serve.package import (
    FORMAT_REVISION,
    GRAPH_FILE,
    MANIFEST_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    Dimensions,
    FileEntry,
    GenerationDefaults,
    KVLayout,
    Manifest,
    ModelCard,
    Source,
    encode_manifest,
    package_path,
)

DIMENSIONS = Dimensions(
    vocab_size=29, context_length=64, layers=1, heads=1, head_size=2, inner_size=8
)
EOS = 0
#: Seconds, on a loaded machine.
PATIENCE = 20.0
#: Every token is one letter, except end-of-text and a space.
LETTERS = [b"", b" ", *(bytes([ord("a") + n]) for n in range(26)), b"."]


def token_bytes(token: int) -> bytes:
    return LETTERS[token]


def manifest(
    model: str = "model",
    *,
    files: dict[str, bytes] | None = None,
    dimensions: Dimensions = DIMENSIONS,
    defaults: GenerationDefaults | None = None,
    bytes_needed: int = 1000,
    **changes: Any,
) -> Manifest:
    files = {GRAPH_FILE: b"graph", WEIGHTS_FILE: b"weights", TOKENIZER_FILE: b"{}"} | (files or {})
    values: dict[str, Any] = {
        "format_revision": FORMAT_REVISION,
        "id": model,
        "target": "cpu",
        "precision": "int8",
        "source": Source(name="test", sha256="0" * 64, exporter_version="test"),
        "dimensions": dimensions,
        "bos_token_id": EOS,
        "eos_token_ids": (EOS,),
        "inputs": ("input_ids",),
        "outputs": ("logits",),
        "kv": KVLayout(),
        "generation_defaults": defaults or GenerationDefaults(),
        "card": ModelCard(),
        "bytes_needed": bytes_needed,
        "files": {
            name: FileEntry(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
            for name, content in files.items()
        },
    }
    return Manifest(**(values | changes))


def write_package(
    store: Path,
    model: str = "model",
    *,
    target: str = "cpu",
    precision: str = "int8",
    files: dict[str, bytes] | None = None,
    **options: Any,
) -> Path:
    """A package that passes every check of the reader, though no runtime could load it."""
    files = {GRAPH_FILE: b"graph", WEIGHTS_FILE: b"weights", TOKENIZER_FILE: b"{}"} | (files or {})
    made = manifest(model, files=files, target=target, precision=precision, **options)
    folder = package_path(store, model, target, precision)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / MANIFEST_FILE).write_bytes(encode_manifest(made))
    return folder


def resolved(**changes: Any) -> ResolvedParams:
    values: dict[str, Any] = {
        "sequences": 1,
        "max_tokens": 5,
        "min_tokens": 0,
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "stop": (),
        "seed": 1,
        "return_full_text": False,
        "details": False,
    }
    return ResolvedParams(**(values | changes))


class Recorder:
    """A stream that keeps what it was given. Belongs to no event loop."""

    loop = None

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []

    def receive(self, delivery: Delivery) -> None:
        self.deliveries.append(delivery)

    @property
    def events(self) -> list[Any]:
        return [event for delivery in self.deliveries for event in delivery.events]

    @property
    def error(self) -> Exception | None:
        return next((d.error for d in self.deliveries if d.error is not None), None)

    @property
    def ends(self) -> int:
        """Terminal events so far: there must never be more than one."""
        done = sum(isinstance(event, Done) for event in self.events)
        return done + sum(d.error is not None for d in self.deliveries)

    @property
    def generations(self) -> dict[int, Generation]:
        return {e.index: e for e in self.events if isinstance(e, Generation)}

    def pieces(self, index: int) -> str:
        return "".join(
            e.token.text for e in self.events if isinstance(e, TokenEvent) and e.index == index
        )


PACKAGE = Package("model", Path("model"), manifest(), local=True)


class Letters:
    """A tokenizer for `LETTERS`, as far as the engine thread needs one."""

    token_bytes = staticmethod(token_bytes)


def make_request(
    prompt_ids: Items[int],
    *,
    package: Package = PACKAGE,
    wants_tokens: bool = False,
    stream: Any = None,
    owner: str = "",
    **params: Any,
) -> Request:
    """`package`: of the model's version that it is for."""
    prepared = PreparedRequest(
        model=package.model,
        prompt="",
        prompt_ids=list(prompt_ids),
        asked=Asked(tuple(prompt_ids), SamplingParams()),
        params=resolved(**params),
        package=package,
        tokenizer=Letters(),  # type: ignore[arg-type]
        scored_together=3 if params.get("prompt_logprobs") else 0,
    )
    stream = Recorder() if stream is None else stream
    return Request(prepared, stream, wants_tokens, Times(submitted=0.0), owner)


# -- a model without onnxruntime --------------------------------------------------------------


def fake_logits(history: Items[int], salt: int = 0) -> npt.NDArray[np.float32]:
    """Depends on every token of the history and on their order."""
    key = zlib.crc32(np.asarray(history, dtype=np.int64).tobytes(), salt) % 99_991
    return (np.sin((np.arange(DIMENSIONS.vocab_size) + 1) * (key * 0.37)) * 4).astype(np.float32)


class FakeKV:
    """Holds tokens where a model would hold their keys and values; -1 was never written."""

    def __init__(self, shape: KVShape) -> None:
        self.tokens = np.full((shape.slots, shape.length), -1, dtype=np.int64)

    def copy(self, source: FakeKV, from_slot: int, to_slots: list[int], tokens: int) -> None:
        rows = source.tokens[from_slot, :tokens].copy()
        assert len(rows) == tokens, "copied beyond the source"
        for slot in to_slots:
            assert tokens <= self.tokens.shape[1], "copied beyond the target"
            self.tokens[slot] = -1
            self.tokens[slot, :tokens] = rows


class FakeBatch:
    def __init__(self, shape: KVShape) -> None:
        self.shape = shape
        self.kv = FakeKV(shape)

    def release(self) -> None:
        """Whoever looks at it afterwards reads what was never written."""
        self.kv.tokens[:] = -1


class FakeRunner:
    """Computes `fake_logits` of what is in the cache. `fail_at` numbers steps that raise.

    `packed=False` is a model that can be packed; `pack` may be replaced to hold it up.
    """

    def __init__(self, salt: int = 0, *, packed: bool = True) -> None:
        self.manifest = manifest()
        self.packed = packed
        self.rested = 0
        self.when_freed = ExitStack()
        self.salt = salt
        self.steps = 0
        self.fail_at: set[int] = set()
        #: (rows, padded tokens) of each prefill.
        self.prefills: list[tuple[int, int]] = []

    @classmethod
    def load(cls, package: Path, manifest: Manifest, **options: Any) -> FakeRunner:
        """Takes the place of `Runner.load`."""
        return cls()

    def pack(self, run: object) -> object:
        return object()

    def use(self, form: object) -> None:
        self.packed = True

    def stay_unpacked(self) -> None:
        self.packed = True

    def drop_pages(self) -> None:
        self.rested += 1

    def new_batch(self, shape: KVShape, memory: HostMemory) -> FakeBatch:
        return FakeBatch(shape)

    def prefill(
        self, batch: FakeBatch, prompts: Items[Items[int]], past: int
    ) -> npt.NDArray[np.float32]:
        self._count()
        assert past == 0 or len(prompts) == 1, "the kernel allows one row only after the first"
        self.prefills.append((len(prompts), len(prompts) * max(map(len, prompts))))
        for slot, prompt in enumerate(prompts):
            row = batch.kv.tokens[slot]
            assert (row[:past] >= 0).all(), "a chunk came before the one that precedes it"
            row[past : past + len(prompt)] = prompt
        ends = [past + len(prompt) for prompt in prompts]
        return self._logits([batch.kv.tokens[n, :end] for n, end in enumerate(ends)])

    def decode(
        self, batch: FakeBatch, tokens: Items[int], lengths: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.float32]:
        self._count()
        for slot, (token, length) in enumerate(zip(tokens, lengths.tolist(), strict=True)):
            batch.kv.tokens[slot, length - 1] = token
        histories = [batch.kv.tokens[n, :length] for n, length in enumerate(lengths.tolist())]
        return self._logits(histories)

    @property
    def runs(self) -> int:
        return self.steps

    def _count(self) -> None:
        self.steps += 1
        if self.steps in self.fail_at:
            raise RuntimeError("the model broke")

    def _logits(self, histories: Items[Any]) -> npt.NDArray[np.float32]:
        for history in histories:
            assert (history >= 0).all(), "read a cache that was never written"
        return np.stack([fake_logits(history, self.salt) for history in histories])


class FakeModels:
    """Stands for `Runner` where models are loaded: says what each load gives.

    `go` holds all loads up while it is cleared; each of `errors` fails one.
    """

    def __init__(self) -> None:
        #: Ids, in the order in which they were loaded.
        self.loaded: list[str] = []
        self.errors: list[Exception] = []
        self.make: Callable[[str], FakeRunner] = lambda _: FakeRunner()
        self.go = threading.Event()
        self.go.set()

    def load(self, package: Path, manifest: Manifest, **_: Any) -> FakeRunner:
        assert self.go.wait(PATIENCE)
        if self.errors:
            raise self.errors.pop(0)
        made = self.make(manifest.id)
        made.manifest = manifest
        self.loaded.append(manifest.id)
        return made


def letters_tokenizer() -> bytes:
    """A tokenizer.json whose tokens are those of `LETTERS`."""
    inner = tokenizers.Tokenizer(
        models.BPE({"Ġ": 1, ".": 28} | {chr(ord("a") + n): n + 2 for n in range(26)}, [])
    )
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return str(inner.to_str()).encode()


@dataclass
class FakeHost:
    """What a `ModelWorker` needs of the engine around it."""

    pool: KVPool
    memory: HostMemory = field(default_factory=HostMemory)
    outbox: Outbox = field(default_factory=Outbox)
    observer: NoObserver = field(default_factory=NoObserver)
    kv_reserved_for: str | None = None
    shares: Shares = field(default_factory=Shares)
    ended: list[tuple[Request, Any]] = field(default_factory=list)
    now: float = 0.0

    def clock(self) -> float:
        self.now += 0.001
        return self.now

    def request_ended(self, request: Request, error: Any) -> None:
        self.ended.append((request, error))


def alone(request: Request, salt: int = 0) -> list[tuple[list[int], str, str]]:
    """(tokens, text, finish reason) of each sequence, by a loop that knows no batching."""
    twin = Request(request.prepared, Recorder(), request.wants_tokens, Times(submitted=0.0))
    return [_continue(sequence.row, request, salt) for sequence in twin.sequences]


def _continue(row: Any, request: Request, salt: int) -> tuple[list[int], str, str]:
    made: list[int] = []
    text = ""
    while len(made) < request.params.max_tokens:
        token = int(BatchSampler([row]).sample(fake_logits(row.history, salt)[None])[0][0])
        row.history.append(token)
        made.append(token)
        text += token_bytes(token).decode()
        if token == EOS and not request.params.ignore_eos:
            return made, clean_up(text), "eos"
        cuts = [text.find(stop) for stop in request.params.stop if stop in text]
        if cuts:
            return made, clean_up(text[: min(cuts)]), "stop"
    return made, clean_up(text), "length"
