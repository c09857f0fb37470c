"""The memory that a step works in, and what of it is bound to a model's sessions.

KV buffers, small input arrays and the logits are bound once for each number of rows, because
binding some fifty tensors anew costs as much as sampling does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2serve.engine.forms import Form, Stage
from gpt2serve.engine.kv_buffers import KVBuffers
from gpt2serve.engine.kv_cache import KVShape
from gpt2serve.engine.memory import HostMemory

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class StepInputs:
    """The small inputs of a step that reads some tokens in each of some rows.

    ids, positions: [rows, tokens]. last_valid: [rows], place of the row's last token in the KV
    cache. total: [], tokens of the longest row. last_index: [rows, 1], which of the tokens that
    are read is the row's last one.
    """

    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    last_valid: npt.NDArray[np.int32]
    total: npt.NDArray[np.int32]
    last_index: npt.NDArray[np.int64]

    @classmethod
    def new(cls, rows: int, tokens: int) -> StepInputs:
        return cls(
            ids=np.zeros((rows, tokens), dtype=np.int64),
            positions=np.zeros((rows, tokens), dtype=np.int64),
            last_valid=np.zeros(rows, dtype=np.int32),
            total=np.zeros((), dtype=np.int32),
            last_index=np.zeros((rows, 1), dtype=np.int64),
        )

    @property
    def rows(self) -> int:
        return len(self.ids)

    def first(self, rows: int) -> StepInputs:
        """The same memory, for fewer rows."""
        return StepInputs(
            self.ids[:rows],
            self.positions[:rows],
            self.last_valid[:rows],
            self.total,
            self.last_index[:rows],
        )

    def set(self, positions: Any, lengths: Any, total: int, last_index: Any) -> None:
        """lengths: tokens of each row with those read now; total: their maximum."""
        self.positions[:] = positions
        self.last_valid[:] = lengths - 1
        self.total[...] = total
        self.last_index[:, 0] = last_index

    def named(self) -> dict[str, npt.NDArray[Any]]:
        """By the names that they have in the graph."""
        return {
            "input_ids": self.ids,
            "position_ids": self.positions,
            "seqlens_k": self.last_valid,
            "total_sequence_length": self.total,
            "last_index": self.last_index,
        }


class Bound:
    """The stages of a form, each with what it reads and writes: a step that can be run."""

    def __init__(
        self,
        form: Form,
        inputs: StepInputs,
        kv: KVBuffers,
        kv_names: Sequence[tuple[str, str]],
        logits: Floats,
    ) -> None:
        """kv_names: the input and the output of each of the tensors of `kv`, in their order.

        logits: [rows, vocabulary], to be written.
        """
        self._stages = [(stage, stage.session.io_binding()) for stage in form]
        self._carry(inputs.ids.shape, kv.dimensions.hidden_size)
        for stage, binding in self._stages:
            for weight, place in stage.weights:
                binding.bind_input(weight.name, "cpu", 0, weight.dtype, weight.shape, place)
            _bind_kv(stage, binding, inputs.rows, kv, kv_names)
        self.bind(inputs)
        _, last = self._stages[-1]
        _bind(last.bind_output, "logits", logits)

    def bind(self, inputs: StepInputs) -> None:
        """Read these from now on."""
        self._inputs = inputs  # bound by their addresses: they must live as long as this
        for name, array in inputs.named().items():
            for stage, binding in self._stages:
                if name in stage.inputs:
                    _bind(binding.bind_input, name, array)

    def run(self) -> None:
        for stage, binding in self._stages:
            stage.session.run_with_iobinding(binding)

    def _carry(self, shape: tuple[int, ...], hidden_size: int) -> None:
        """Memory for what the stages hand on, for tokens of that shape."""
        self._carried: dict[str, Floats] = {}
        for stage, binding in self._stages:
            for name in stage.carried_in:
                _bind(binding.bind_input, name, self._carried[name])
            for name in stage.carried_out:
                self._carried[name] = np.empty((*shape, hidden_size), dtype=np.float32)
                _bind(binding.bind_output, name, self._carried[name])


def _bind_kv(
    stage: Stage, binding: Any, rows: int, kv: KVBuffers, names: Sequence[tuple[str, str]]
) -> None:
    """In place: what a step writes lies where it has read it."""
    shape = (rows, kv.dimensions.heads, kv.shape.length, kv.dimensions.head_size)
    for n, (past, present) in enumerate(names):
        if past in stage.inputs:
            place = (kv.device, 0, kv.dtype, shape, kv.address + n * kv.tensor_bytes)
            binding.bind_input(past, *place)
            binding.bind_output(present, *place)


def _bind(how: Callable[..., None], name: str, array: npt.NDArray[Any]) -> None:
    how(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


class Batch:
    """What a step works in: room for as many rows as `kv` has slots."""

    def __init__(self, kv: KVBuffers, vocabulary: int, memory: HostMemory) -> None:
        self.kv = kv
        self._memory = memory
        self._block = memory.take(kv.shape.slots * vocabulary * 4)
        #: [slots, vocabulary], of the last step.
        self.logits: Floats = np.ndarray(
            (kv.shape.slots, vocabulary), dtype=np.float32, buffer=self._block
        )
        self.decode_inputs = StepInputs.new(kv.shape.slots, 1)
        #: For decode steps, by number of rows; all of one form.
        self._bound: dict[int, Bound] = {}
        self._form: Form | None = None

    @property
    def shape(self) -> KVShape:
        return self.kv.shape

    def bound(self, form: Form, rows: int) -> Bound | None:
        """What `keep` was given for a decode step of `rows` rows, if that was for `form`."""
        if self._form is not form:
            self._bound.clear()
            self._form = form
        return self._bound.get(rows)

    def keep(self, rows: int, bound: Bound) -> None:
        """For the next decode step of so many rows of the form that was asked for last."""
        self._bound[rows] = bound

    def release(self) -> None:
        """Give the memory back. Logits that a step returned are part of it."""
        self._bound.clear()
        del self.logits
        self.kv.release()
        self._memory.give(self._block)
