"""What the engine's integration tests share: recorded requests, scripts, edited models."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from safetensors.numpy import load_file, save_file

from gpt2serve import Engine, SamplingParams
from gpt2serve.engine.events import Done, Generation, Token, TokenEvent
from gpt2serve.engine.messages import Call, Cancel
from gpt2serve.engine.observer import NoObserver, RequestSummary, StepKind
from gpt2serve.engine.preparation import PreparedRequest
from gpt2serve.engine.request import Request
from gpt2serve.engine.stream import Delivery
from gpt2serve.package import MANIFEST_FILE, encode_manifest, read_manifest
from tests.waiting import wait_until

WASHINGTON, JEFFERSON, REAGAN = "george-washington", "thomas-jefferson", "ronald-reagan"
SAMPLES = Path(__file__).parents[1] / "samples"

#: onnxruntime has one thread pool in a process; the first engine sets its size.
THREADS = 2
#: Long enough for a loaded machine, short enough to see that somebody waits for ever.
PATIENCE = 30.0
MIB = 2**20
#: Keys and values of one token of a sample model, all layers.
SAMPLE_TOKEN_BYTES = 2 * 6 * 192 * 4


def open_engine(store: Path, **options: Any) -> Engine:
    """An engine with room for everything, unless `options` say otherwise."""
    room = {"model_cache_bytes": 512 * MIB, "kv_cache_bytes": 256 * MIB, "device": "cpu"}
    return Engine(store, **{"threads": THREADS, **room, **options})


def kv_bytes(slots: int, length: int, extra: int) -> int:
    """Budget for a rectangle of a sample model's KV cache and `extra` tokens of prompts."""
    return SAMPLE_TOKEN_BYTES * (slots * length + extra)


# -- requests whose whole fate is written down ----------------------------------------------


class Recording:
    """A stream that keeps everything it gets. Events come in the engine thread."""

    loop = None

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.error: Exception | None = None
        self.terminals = 0
        self.ended = threading.Event()
        self.ended_at = 0.0
        self.on_delivery: Callable[[Recording], None] = lambda _: None

    def receive(self, delivery: Delivery) -> None:
        self.events += delivery.events
        self.terminals += sum(isinstance(event, Done) for event in delivery.events)
        if delivery.error is not None:
            self.terminals += 1
            self.error = delivery.error
        if delivery.ends:
            self.ended_at = time.monotonic()
            self.ended.set()
        self.on_delivery(self)

    def wait(self, timeout: float = PATIENCE) -> Recording:
        assert self.ended.wait(timeout), "the request never ended"
        return self

    def finish(self) -> Recording:
        """Wait for a success."""
        self.wait()
        if self.error is not None:
            raise self.error
        return self

    @property
    def generations(self) -> list[Generation]:
        found = [event for event in self.events if isinstance(event, Generation)]
        return sorted(found, key=lambda generation: generation.index)

    def tokens(self, index: int) -> list[Token]:
        tokens = (event for event in self.events if isinstance(event, TokenEvent))
        return [event.token for event in tokens if event.index == index]

    @property
    def token_count(self) -> int:
        return sum(isinstance(event, TokenEvent) for event in self.events)

    def outcome(self, sequences: int) -> tuple[list[Generation], list[list[Token]]]:
        """All that a caller could see, times apart: equal means equal to the last bit."""
        return self.generations, [self.tokens(index) for index in range(sequences)]


@dataclass(eq=False)
class Sent:
    request: Request
    stream: Recording


def send(
    engine: Engine,
    model: str,
    prompt: str,
    params: SamplingParams | None = None,
    *,
    stream: Recording | None = None,
) -> Sent:
    """Submit a request without waiting for it."""
    return send_prepared(engine, engine.prepare(model, prompt, params), stream)


def send_prepared(
    engine: Engine, prepared: PreparedRequest, stream: Recording | None = None
) -> Sent:
    stream = stream or Recording()
    return Sent(engine._admit(prepared, stream, wants_tokens=True), stream)


def cancel(engine: Engine, sent: Sent) -> None:
    engine._core.inbox.put(Cancel(sent.request))


def in_engine_thread(engine: Engine, function: Callable[[], Any]) -> Any:
    """Run `function` in the engine thread, between two steps, and return what it returns."""
    done = threading.Event()
    result: list[Any] = []

    def call() -> None:
        result.append(function())
        done.set()

    engine._core.inbox.put(Call(call))
    assert done.wait(PATIENCE), "the engine thread does not answer"
    return result[0]


def assert_idle(engine: Engine) -> None:
    """Nothing is held by anybody, and all books agree, once what is being packed is packed."""
    packing = engine._core.models.packing
    wait_until(lambda: bool(in_engine_thread(engine, lambda: packing._now is None)))

    def look() -> None:
        core, models = engine._core, engine._core.models
        core.check_integrity()
        assert core.pool.used == 0
        assert all(not worker.has_work for worker in models.workers.values())
        assert all(worker._memory._batch is None for worker in models.workers.values())
        assert all(worker._long_prompt is None for worker in models.workers.values())
        leases = {key: entry.leases for key, entry in models.cache.entries.items()}
        assert not any(leases.values()), leases
        assert models.requests_waiting == 0
        assert not models._waiting
        assert models._packages.keys() == models.workers.keys()

    problems: list[BaseException] = []

    def guarded() -> None:
        try:
            look()
        except AssertionError as error:
            problems.append(error)

    in_engine_thread(engine, guarded)
    for problem in problems:
        raise problem
    assert engine._gate.admitted == 0


def resident_bytes() -> int:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Watcher(NoObserver):
    """Writes down what the engine reports; `on_each_step` runs in the engine thread."""

    def __init__(self, on_each_step: Callable[[], None] = lambda: None) -> None:
        self.steps: list[tuple[StepKind, int]] = []
        self.loads: list[bool] = []
        self.finished: list[RequestSummary] = []
        #: (model, reason)
        self.evicted: list[tuple[str, str]] = []
        self.on_each_step = on_each_step

    def on_step(self, kind: StepKind, rows: int, seconds: float) -> None:
        self.steps.append((kind, rows))
        self.on_each_step()

    def on_load(self, model: str, seconds: float, *, ok: bool) -> None:
        self.loads.append(ok)

    def on_evict(self, model: str, reason: str) -> None:
        self.evicted.append((model, reason))

    def on_request_finished(self, summary: RequestSummary) -> None:
        self.finished.append(summary)


# -- scripts: who arrives and leaves at which step -------------------------------------------


@dataclass(frozen=True)
class Arrival:
    """Request `number` comes after `at` engine steps; leaves `leave_after` steps later, if set."""

    number: int
    at: int
    leave_after: int | None = None


@dataclass
class Script:
    """Plays arrivals against the engine's own step count, so that a run can be repeated.

    Runs in the engine thread. When the engine has nothing to do, the clock of steps jumps to
    the next arrival.
    """

    watcher: Watcher
    engine: Engine
    prepared: Sequence[PreparedRequest]
    arrivals: Sequence[Arrival]
    sent: list[tuple[Arrival, Sent]] = field(default_factory=list)
    _step: int = 0
    _left: int = 0
    _leaving: list[tuple[int, Sent]] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def play(self) -> list[tuple[Arrival, Sent]]:
        self._coming = sorted(self.arrivals, key=lambda arrival: arrival.at)
        self.watcher.on_each_step = self._tick
        self.engine._core.inbox.put(Call(self._jump))
        assert self._over.wait(PATIENCE), "a request never ended"
        self.watcher.on_each_step = lambda: None
        return self.sent

    def _tick(self) -> None:
        self._step += 1
        self._fire()

    def _jump(self) -> None:
        if self._coming:
            self._step = max(self._step, self._coming[0].at)
            self._fire()
        else:
            self._over.set()

    def _fire(self) -> None:
        while self._coming and self._coming[0].at <= self._step:
            arrival = self._coming.pop(0)
            stream = Recording()
            stream.on_delivery = self._delivered
            self._left += 1
            sent = send_prepared(self.engine, self.prepared[arrival.number], stream)
            self.sent.append((arrival, sent))
            if arrival.leave_after is not None:
                self._leaving.append((self._step + arrival.leave_after, sent))
        for due in [due for due in self._leaving if due[0] <= self._step]:
            self._leaving.remove(due)
            cancel(self.engine, due[1])

    def _delivered(self, stream: Recording) -> None:
        if stream.ended.is_set():
            self._left -= 1
            if self._left == 0:
                self.engine._core.inbox.put(Call(self._jump))


# -- models made for a test -------------------------------------------------------------------


def export(store: Path, checkpoints: Iterable[Path], precision: str = "int8") -> None:
    """Run `gpt2export` as a user does, without its verification."""
    folders = [str(folder) for folder in checkpoints]
    options = ["--store", str(store), "--precision", precision, "--no-verify", "--force"]
    command = [sys.executable, "-m", "gpt2export.cli", *folders, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def band_checkpoint(folder: Path, band: range) -> Path:
    """A copy of a sample that cannot say anything but the tokens of `band`.

    Hidden coordinate 0 is given to a mark: the final layer norm sets it to a constant, and
    a token's embedding has +1 there inside the band and -1 outside. What the sample would
    have said decides among the tokens of the band.
    """
    shutil.copytree(SAMPLES / WASHINGTON, folder)
    weights_file = folder / "model.safetensors"
    weights = {name: np.array(value) for name, value in load_file(weights_file).items()}
    prefix = "transformer." if "transformer.wte.weight" in weights else ""
    embedding = weights[f"{prefix}wte.weight"]
    embedding[:, 0] = -1
    embedding[band.start : band.stop, 0] = 1
    weights[f"{prefix}ln_f.weight"][0] = 0
    weights[f"{prefix}ln_f.bias"][0] = 40
    save_file(weights, weights_file, metadata={"format": "pt"})
    return folder


def copy_model(
    store: Path, model: str, to_store: Path, as_model: str | None = None, *, linked: bool = False
) -> Path:
    """Copy a model's packages to another store, maybe under another id.

    With `linked` the copy takes no room on the disk, and its files must not be written to.
    """
    source, target = store / model, to_store / (as_model or model)
    shutil.copytree(source, target, copy_function=os.link if linked else shutil.copy2)
    for package in (file.parent for file in target.glob(f"*/{MANIFEST_FILE}")):
        manifest = read_manifest(package)
        renamed = msgspec.structs.replace(manifest, id=as_model or model)
        (package / MANIFEST_FILE).unlink()
        (package / MANIFEST_FILE).write_bytes(encode_manifest(renamed))
    return target
