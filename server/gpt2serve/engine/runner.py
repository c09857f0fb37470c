"""A model that is loaded and computes.

It can have two forms (`forms.py`). Unpacked it is ready in milliseconds, and each step takes some
more; the packed form is made in parts, by as many threads. Both give the same bits, so the one
can take the other's place between two steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpt2serve.engine.batch import Batch, Bound, Floats, StepInputs
from gpt2serve.engine.forms import Form, Shape, Shapes, Stage, can_be_unpacked
from gpt2serve.engine.kv_buffers import CudaKVBuffers, HostKVBuffers, KVBuffers
from gpt2serve.engine.kv_cache import KVShape
from gpt2serve.engine.memory import HostMemory
from gpt2serve.engine.sessions import check_device, open_session, share_thread_pool
from gpt2serve.engine.weights import Graph, MappedFile
from gpt2serve.errors import CorruptPackage
from gpt2serve.package import GRAPH_FILE, WEIGHTS_FILE, Manifest


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a model that is not packed comes from."""

    package: Path
    file: MappedFile
    shape: Shape


class Runner:
    """Not thread-safe, but for `pack` and `drop_pages`."""

    def __init__(self, form: Form, manifest: Manifest, device: str) -> None:
        self.manifest = manifest
        self.device = device
        self._form = form
        self._source: _Source | None = None
        #: Whether there is nothing to pack, or nothing any more.
        self.packed = True
        #: Steps so far.
        self.runs = 0
        #: Called when the model is given up; it lets go of what was held for it.
        self.when_freed = ExitStack()
        #: Input and output of each layer's keys, and of its values.
        self._kv_names = [
            (past.format(layer=layer), present.format(layer=layer))
            for layer in range(manifest.dimensions.layers)
            for past, present in zip(manifest.kv.past_names, manifest.kv.present_names, strict=True)
        ]

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
            session = open_session(package / GRAPH_FILE, device)
        except Exception as error:  # onnxruntime's errors have no common base
            raise CorruptPackage(f"{package}: onnxruntime cannot load it ({error}).") from error
        check_device(session, device)
        runner = cls((Stage.of(session),), manifest, device)
        runner.warm_up()
        return runner

    @classmethod
    def unpacked(cls, package: Path, manifest: Manifest, shape: Shape) -> Runner:
        """A model that computes with its weights as they lie in the file. Raises `OSError`."""
        file = MappedFile(package / WEIGHTS_FILE)
        stage = Stage.of(shape.session, shape.unpacked, file)
        runner = cls((stage,), manifest, "cpu")
        runner._source = _Source(package, file, shape)
        runner.packed = False
        return runner

    # -- its form -------------------------------------------------------------------------

    def pack(self, run: Callable[[Sequence[Callable[[], Stage]]], Sequence[Stage]]) -> Form:
        """The packed form, for `use`. For another thread, while this one is at work.

        run: calls each of the functions that it gets, in whichever threads, and returns what
        they return. All of them together take up to a millisecond per megabyte. Raises
        `CorruptPackage`, also if the files are not those any more that the model was loaded from.
        """
        source = self._source
        assert source is not None  # noqa: S101

        def pack_part(graph: Graph) -> Stage:
            session = open_session(graph.model, "cpu", weights_in=source.package)
            return Stage.of(session, graph, source.file)

        try:
            stages = run([partial(pack_part, graph) for graph in source.shape.parts])
        except Exception as error:
            raise CorruptPackage(f"{source.package}: it cannot be packed ({error}).") from error
        if not source.file.is_current():  # onnxruntime has found the file by its name
            raise CorruptPackage(f"{source.package} was replaced while it was being packed.")
        return tuple(stages)

    def use(self, form: Form) -> None:
        """Compute with `form`, the packed one, from now on."""
        self._form = form
        self.packed = True

    def stay_unpacked(self) -> None:
        """Packing failed: go on as it is. From now on it counts as packed, as it never will be."""
        self.packed = True

    def drop_pages(self) -> None:
        """Let go of the pages of the weights file; they come back as they are read.

        Harmless at any time, from any thread.
        """
        if self._source is not None:
            self._source.file.drop_pages()

    # -- steps ----------------------------------------------------------------------------

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
        """Read tokens into slots 0, 1, ...; returns logits [rows, vocabulary] after the last ones.

        prompts: the tokens to read, at most as many rows as `batch` has slots; rows are
        padded on the right to the longest. past: number of tokens that slot 0 holds already;
        if it is not 0 there must be one row only, as GroupQueryAttention demands.
        """
        lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int32)
        longest = int(lengths.max())
        inputs = StepInputs.new(len(prompts), longest)
        for row, prompt in enumerate(prompts):
            inputs.ids[row, : len(prompt)] = prompt
        # Padding reads token 0 at the row's last position; nothing looks at what it yields.
        positions = past + np.minimum(np.arange(longest), lengths[:, None] - 1)
        inputs.set(positions, past + lengths, past + longest, lengths - 1)
        return self._run(batch, self._bind(batch, inputs), len(prompts))

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
            bound = self._bind(batch, inputs)
            batch.keep(rows, bound)
        elif self.device != "cpu":
            bound.bind(inputs)  # the values were copied to the device when bound
        return self._run(batch, bound, rows)

    def _bind(self, batch: Batch, inputs: StepInputs) -> Bound:
        logits = batch.logits[: inputs.rows]
        return Bound(self._form, inputs, batch.kv, self._kv_names, logits)

    def _run(self, batch: Batch, bound: Bound, rows: int) -> Floats:
        self.runs += 1
        bound.run()
        logits: Floats = batch.logits[:rows]
        return logits
