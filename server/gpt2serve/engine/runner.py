"""Running one model's graph. The only module that imports onnxruntime.

A `Runner` is a loaded model. It can have two forms. Unpacked, it computes with its weights as
they lie in the file, in a session that all models of its shape share: ready in milliseconds,
and each step takes some more. Packed, it has a session and a private copy of its matrices in
the processor's order; it is made in parts, by as many threads. Both give the same bits, so the
one can take the other's place between two steps.

A `Batch` is the memory that a step works in: KV buffers, small input arrays and the logits, all
bound to the session once for each number of rows, because binding some fifty tensors anew costs
as much as sampling does.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from gpt2serve.engine.kv_buffers import CudaKVBuffers, HostKVBuffers, KVBuffers
from gpt2serve.engine.kv_cache import KVShape
from gpt2serve.engine.memory import HostMemory
from gpt2serve.engine.weights import Graph, MappedFile, WeightInput, in_parts, unpacked
from gpt2serve.errors import CorruptPackage, DeviceUnavailable
from gpt2serve.package import GRAPH_FILE, WEIGHTS_FILE, Manifest

Floats = npt.NDArray[np.float32]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_thread_pool_lock = threading.Lock()
_thread_pool_size: int | None = None


def share_thread_pool(threads: int) -> int:
    """Let all sessions of this process compute with one pool of `threads` threads.

    Without it each session has a pool of its own, and their spinning threads fight for the
    cores. onnxruntime allows this once per process: the first engine decides. Returns the
    size in force.
    """
    global _thread_pool_size
    with _thread_pool_lock:
        if _thread_pool_size is None:
            ort.set_global_thread_pool_sizes(threads, 1)
            _thread_pool_size = threads
        return _thread_pool_size


def cuda_is_available() -> bool:
    """Whether this onnxruntime was built for CUDA. A GPU may still be missing."""
    return _PROVIDERS["cuda"] in ort.get_available_providers()


def can_be_unpacked(manifest: Manifest, device: str) -> bool:
    """Whether the model has a form that is ready at once and gives the same bits.

    Products of integers are exact in any order; fp32's are not.
    """
    return (device, manifest.precision) == ("cpu", "int8")


@dataclass(frozen=True, slots=True)
class Stage:
    """A session, where the weights lie that it takes as inputs, and what it takes and makes.

    carried_in, carried_out: names of what goes from one stage to the next.
    """

    session: ort.InferenceSession
    inputs: frozenset[str]
    outputs: frozenset[str]
    weights: tuple[tuple[WeightInput, int], ...] = ()
    carried_in: tuple[str, ...] = ()
    carried_out: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        session: ort.InferenceSession,
        graph: Graph | None = None,
        file: MappedFile | None = None,
    ) -> Stage:
        names = (
            frozenset(one.name for one in session.get_inputs()),
            frozenset(one.name for one in session.get_outputs()),
        )
        if graph is None or file is None:
            return cls(session, *names)
        weights = tuple((one, file.address_of(one)) for one in graph.weights)
        return cls(session, *names, weights, graph.carried_in, graph.carried_out)


#: What a step runs, one after the other.
Form = tuple[Stage, ...]


@dataclass(frozen=True, slots=True)
class Shape:
    """What all models with one graph share: a session without weights, and graphs to pack."""

    session: ort.InferenceSession
    unpacked: Graph
    parts: tuple[Graph, ...]


class Shapes:
    """Those that were used last. Owned by the loader."""

    def __init__(self) -> None:
        #: By sha256 of the graph.
        self._known: OrderedDict[str, Shape] = OrderedDict()

    def of(self, package: Path, manifest: Manifest) -> Shape:
        """Raises `CorruptPackage`, or what onnx and onnxruntime raise for what is no graph."""
        key = manifest.files[GRAPH_FILE].sha256
        if key not in self._known:
            model = (package / GRAPH_FILE).read_bytes()
            # Whatever checked the package: all models that name this hash will compute with it.
            if hashlib.sha256(model).hexdigest() != key:
                raise CorruptPackage(f"{package}: {GRAPH_FILE} differs from the manifest's sha256.")
            graph = unpacked(model)
            self._known[key] = Shape(_session(graph.model, "cpu"), graph, in_parts(model))
            if len(self._known) > _SHAPES_REMEMBERED:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]

    def warm(self, package: Path, manifest: Manifest) -> None:
        """Know the shape of `package`, and have computed with it. Raises what `of` raises."""
        shape = self.of(package, manifest)
        Runner.unpacked(package, manifest, shape).warm_up()


#: Sessions without weights take one or two megabytes.
_SHAPES_REMEMBERED = 16


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model that is not packed comes from."""

    package: Path
    file: MappedFile
    shape: Shape


class Runner:
    """A model that is loaded and can compute. Not thread-safe, but for `pack`."""

    def __init__(self, form: Form, manifest: Manifest, device: str) -> None:
        self.manifest = manifest
        self.device = device
        self._form = form
        self._source: Source | None = None
        #: Whether there is nothing to pack, or it is done.
        self.packed = True
        #: Steps so far.
        self.runs = 0
        #: Called when the model is given up; it lets go of what was held for it.
        self.when_freed = ExitStack()
        names = manifest.kv
        layers = range(manifest.dimensions.layers)
        self._past = [name.format(layer=n) for n in layers for name in names.past_names]
        self._present = [name.format(layer=n) for n in layers for name in names.present_names]

    @classmethod
    def load(
        cls,
        package: Path,
        manifest: Manifest,
        *,
        device: str,
        threads: int,
        shapes: Shapes | None = None,
    ) -> Runner:
        """Load a package; takes about a millisecond per megabyte.

        With `shapes` an int8 model on a CPU is ready after a millisecond, unpacked, and can be
        packed later. Raises `DeviceUnavailable` if CUDA is asked for and cannot be used, and
        `CorruptPackage` if onnxruntime refuses the graph.
        """
        share_thread_pool(threads)
        try:
            if shapes is not None and can_be_unpacked(manifest, device):
                return cls.unpacked(package, manifest, shapes.of(package, manifest))
            session = _session(package / GRAPH_FILE, device)
        except Exception as error:  # onnxruntime's errors have no common base
            raise CorruptPackage(f"{package}: onnxruntime cannot load it ({error}).") from error
        if session.get_providers()[0] != _PROVIDERS[device]:
            # onnxruntime falls back to the CPU without raising.
            raise DeviceUnavailable(
                "CUDA was asked for, but onnxruntime cannot use it here. Check the driver and "
                "that onnxruntime-gpu is the only onnxruntime installed, or use --device cpu."
            )
        runner = cls((Stage.of(session),), manifest, device)
        runner.warm_up()
        return runner

    @classmethod
    def unpacked(cls, package: Path, manifest: Manifest, shape: Shape) -> Runner:
        """A model that computes with its weights as they lie in the file. Raises `OSError`."""
        file = MappedFile(package / WEIGHTS_FILE)
        stage = Stage.of(shape.session, shape.unpacked, file)
        runner = cls((stage,), manifest, "cpu")
        runner._source = Source(package, file, shape)
        runner.packed = False
        return runner

    def pack(self, run: Callable[[Sequence[Callable[[], Stage]]], Sequence[Stage]]) -> Form:
        """The packed form, for `use`. For another thread, while this one is at work.

        run: calls each of the functions that it gets, in whichever threads, and returns what
        they return. All of them together take up to a millisecond per megabyte. Raises
        `CorruptPackage`, also if the files are not those any more that the model was loaded from.
        """
        source = self._source
        assert source is not None  # noqa: S101

        def pack_part(graph: Graph) -> Stage:
            session = _session(graph.model, "cpu", weights_in=source.package)
            return Stage.of(session, graph, source.file)

        try:
            stages = run([partial(pack_part, graph) for graph in source.shape.parts])
        except Exception as error:
            raise CorruptPackage(f"{source.package}: it cannot be packed ({error}).") from error
        if not source.file.is_current():  # onnxruntime has found the file by its name
            raise CorruptPackage(f"{source.package} was replaced while it was being packed.")
        return tuple(stages)

    def use(self, form: Form) -> None:
        """Compute with `form` from now on."""
        self._form = form
        self.packed = True

    def stay_unpacked(self) -> None:
        """Packing failed: go on as it is."""
        self.packed = True

    def drop_pages(self) -> None:
        """Let go of the pages of the weights file; they come back as they are read.

        Harmless at any time, from any thread.
        """
        if self._source is not None:
            self._source.file.drop_pages()

    def warm_up(self) -> None:
        """One step, so that the first request does not pay for what happens once."""
        self.prefill(self.new_batch(KVShape(1, 1), HostMemory()), [[0]], 0)

    def new_batch(self, shape: KVShape, memory: HostMemory) -> Batch:
        """Room for a batch. Raises `OSError` or `MemoryError` without memory."""
        dimensions, dtype = self.manifest.dimensions, self.manifest.kv.dtype
        kv: KVBuffers
        if self.device == "cuda":
            kv = CudaKVBuffers(dimensions, dtype, shape)
        else:
            kv = HostKVBuffers(dimensions, dtype, shape, memory)
        return Batch(kv, dimensions.vocab_size, memory)

    def prefill(self, batch: Batch, prompts: Sequence[Sequence[int]], past: int) -> Floats:
        """Read tokens into slots 0, 1, ...; returns the logits after each row's last token.

        prompts: the tokens to read, at most as many rows as `batch` has slots; rows are
        padded on the right to the longest. past: number of tokens that slot 0 holds already;
        if it is not 0 there must be one row only, as GroupQueryAttention demands.
        """
        lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int32)
        longest = int(lengths.max())
        inputs = StepInputs(len(prompts), longest)
        inputs.ids[:] = 0
        for row, prompt in enumerate(prompts):
            inputs.ids[row, : len(prompt)] = prompt
        # Padding reads token 0 at the row's last position; nothing looks at what it yields.
        positions = past + np.minimum(np.arange(longest), lengths[:, None] - 1)
        inputs.set(positions, past + lengths, past + longest, lengths - 1)
        return self._run(batch, inputs, self._bind(batch, inputs), len(prompts))

    def decode(self, batch: Batch, tokens: Sequence[int], lengths: npt.NDArray[np.int32]) -> Floats:
        """One token for each of the slots 0, 1, ...; returns logits [rows, vocabulary].

        tokens: what each row reads; lengths: tokens of each row, this one included.
        """
        rows = len(tokens)
        inputs = batch.decode_inputs.first(rows)
        inputs.ids[:, 0] = tokens
        inputs.set(lengths[:, None] - 1, lengths, int(lengths.max()), 0)
        bound = batch.bound(self._form, rows)
        if bound is None:
            bound = batch.bindings[rows] = self._bind(batch, inputs)
        elif self.device != "cpu":
            bound.bind(inputs)  # the values were copied to the device when bound
        return self._run(batch, inputs, bound, rows)

    def _bind(self, batch: Batch, inputs: StepInputs) -> Bound:
        bound = Bound(self._form, inputs, batch.kv.dimensions.hidden_size)
        bound.bind(inputs)
        rows, kv = inputs.rows, batch.kv
        shape = (rows, kv.dimensions.heads, kv.shape.length, kv.dimensions.head_size)
        for n, (past, present) in enumerate(zip(self._past, self._present, strict=True)):
            at = kv.address + n * kv.tensor_bytes
            for stage, binding in bound.stages:
                if past in stage.inputs:
                    binding.bind_input(past, kv.device, 0, kv.dtype, shape, at)
                    binding.bind_output(present, kv.device, 0, kv.dtype, shape, at)
        logits = batch.logits[:rows]
        _, last = bound.stages[-1]
        last.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        return bound

    def _run(self, batch: Batch, inputs: StepInputs, bound: Bound, rows: int) -> Floats:
        del inputs  # named so that its memory lives until the run is over
        self.runs += 1
        for stage, binding in bound.stages:
            stage.session.run_with_iobinding(binding)
        logits: Floats = batch.logits[:rows]
        return logits


class Bound:
    """The stages of a form, each with what it reads and writes."""

    def __init__(self, form: Form, inputs: StepInputs, hidden_size: int) -> None:
        self.stages = [(stage, stage.session.io_binding()) for stage in form]
        self._carried: dict[str, Floats] = {}
        for stage, binding in self.stages:
            for weight, place in stage.weights:
                binding.bind_input(weight.name, "cpu", 0, weight.dtype, weight.shape, place)
            for name in stage.carried_in:
                _bind(binding.bind_input, name, self._carried[name])
            for name in stage.carried_out:
                made = np.empty((*inputs.ids.shape, hidden_size), dtype=np.float32)
                _bind(binding.bind_output, name, made)
                self._carried[name] = made

    def bind(self, inputs: StepInputs) -> None:
        for name, array in inputs.named().items():
            for stage, binding in self.stages:
                if name in stage.inputs:
                    _bind(binding.bind_input, name, array)


def _bind(how: Callable[..., None], name: str, array: npt.NDArray[Any]) -> None:
    how(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


class Batch:
    """What a step works in."""

    def __init__(self, kv: KVBuffers, vocabulary: int, memory: HostMemory) -> None:
        self.kv = kv
        self._memory = memory
        self._block = memory.take(kv.shape.slots * vocabulary * 4)
        self.logits: Floats = np.ndarray(
            (kv.shape.slots, vocabulary), dtype=np.float32, buffer=self._block
        )
        self.decode_inputs = StepInputs(kv.shape.slots, 1)
        #: For decode steps, by number of rows; all of one form.
        self.bindings: dict[int, Bound] = {}
        self._form: Form | None = None

    @property
    def shape(self) -> KVShape:
        return self.kv.shape

    def bound(self, form: Form, rows: int) -> Bound | None:
        """What was bound for a decode step of `rows` rows, if it was for `form`."""
        if self._form is not form:
            self.bindings.clear()
            self._form = form
        return self.bindings.get(rows)

    def release(self) -> None:
        """Give the memory back. Logits that a step returned are part of it."""
        self.bindings.clear()
        del self.logits
        self.kv.release()
        self._memory.give(self._block)


class StepInputs:
    """The small inputs of a step over `rows` rows of `tokens` tokens each."""

    def __init__(self, rows: int, tokens: int) -> None:
        self.rows = rows
        self.ids = np.empty((rows, tokens), dtype=np.int64)
        self.positions = np.empty((rows, tokens), dtype=np.int64)
        self.last_valid = np.empty(rows, dtype=np.int32)
        self.total = np.zeros((), dtype=np.int32)
        self.last_index = np.zeros((rows, 1), dtype=np.int64)

    def first(self, rows: int) -> StepInputs:
        """The same memory, for fewer rows."""
        view = object.__new__(StepInputs)
        view.rows = rows
        view.total = self.total
        for name in ("ids", "positions", "last_valid", "last_index"):
            setattr(view, name, getattr(self, name)[:rows])
        return view

    def set(self, positions: Any, lengths: Any, total: int, last_index: Any) -> None:
        """lengths: valid tokens of each row with those read now; total: their maximum."""
        self.positions[:] = positions
        self.last_valid[:] = lengths - 1
        self.total[...] = total
        self.last_index[:, 0] = last_index

    def named(self) -> dict[str, npt.NDArray[Any]]:
        return {
            "input_ids": self.ids,
            "position_ids": self.positions,
            "seqlens_k": self.last_valid,
            "total_sequence_length": self.total,
            "last_index": self.last_index,
        }


def _session(
    model: Path | bytes, device: str, *, weights_in: Path | None = None
) -> ort.InferenceSession:
    """`weights_in`: the folder of the weights file, for a model that is not in a file itself."""
    options = _session_options()
    if weights_in is not None:
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(weights_in))
    return ort.InferenceSession(model, options, providers=[_PROVIDERS[device]])


_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


def _session_options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    # Packages are fused already; looking for more takes a second and finds nothing.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.use_per_session_threads = False
    # The arena never gives memory back, and is no faster here (docs/benchmarks.md).
    options.enable_cpu_mem_arena = False
    # Processors without VNNI add uint8 by int8 products in 16 bits, which saturates; this makes
    # them use the exact way.
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 3
    return options
