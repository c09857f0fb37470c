"""A model's share of the KV cache: the memory of its batch and of prompts being prefilled."""

from __future__ import annotations

import contextlib
from typing import Protocol

from gpt2serve.engine.batch import Batch
from gpt2serve.engine.kv_buffers import bytes_per_token
from gpt2serve.engine.kv_cache import NOTHING, KVPool, KVShape, kv_tokens, resized, whole_chunks
from gpt2serve.engine.memory import HostMemory
from gpt2serve.engine.request import Request
from gpt2serve.engine.runner import Runner


class Shared(Protocol):
    """What all models share."""

    pool: KVPool
    memory: HostMemory
    #: The only model that may take more KV cache now, if there is one.
    kv_reserved_for: str | None


class BatchMemory:
    """Owned by one worker. Holds in the pool what it uses, before it uses it."""

    def __init__(self, key: str, runner: Runner, shared: Shared, chunk: int) -> None:
        """`chunk`: tokens of the prompts that are prefilled together."""
        manifest = runner.manifest
        self._key = key
        self._runner = runner
        self._shared = shared
        self._chunk = chunk
        self._token_bytes = bytes_per_token(manifest.dimensions, manifest.kv.dtype)
        self._batch: Batch | None = None

    @property
    def batch(self) -> Batch:
        """What the running sequences are in. There is one as long as any is running."""
        assert self._batch is not None  # noqa: S101
        return self._batch

    def fits(self, shape: KVShape, beside: int) -> bool:
        """Whether the batch may have `shape` beside prompts that take that many tokens."""
        if self._shared.kv_reserved_for not in (None, self._key):
            return False
        return self._shared.pool.fits(self._key, self._bytes(shape, beside))

    def for_prompts(self, rows: int) -> Batch:
        """Room for prompts that are prefilled together and make up at most a chunk.

        As long as a chunk allows, not as long as it must be, so that the memory is found again.
        """
        return self._runner.new_batch(KVShape(rows, self._chunk // rows), self._shared.memory)

    def for_long_prompt(self, request: Request) -> Batch:
        length = whole_chunks(request.prompt_length, self._chunk)
        shape = KVShape(request.prompt_room(self._chunk) // length, length)
        return self._runner.new_batch(shape, self._shared.memory)

    def resize(self, needed: KVShape, beside: int, live: list[int]) -> None:
        """Let the batch have room for `needed`.

        live: tokens that are to be kept, of each slot from the first on. beside: tokens that
        the long prompt takes that is being read. Raises `MemoryError` or `OSError`.
        """
        current = self._batch.shape if self._batch is not None else NOTHING
        target = resized(current, needed)
        if not self._hold(target, beside):
            target = needed  # keeping spare room is a courtesy, others may need it
            if not self._hold(target, beside):
                raise MemoryError("the KV cache is full")
        if target == current:
            return
        before, self._batch = self._batch, self._runner.new_batch(target, self._shared.memory)
        if before is not None:
            for slot, tokens in enumerate(live):
                self._batch.kv.copy(before.kv, slot, [slot], tokens)
            before.release()

    def give_back(self, needed: KVShape, beside: int, live: list[int]) -> None:
        """Let go of what is not needed any more."""
        shared = self._shared
        if needed == NOTHING:
            if self._batch is not None:
                self._batch.release()
                self._batch = None
            shared.pool.hold(self._key, 0)
        elif self._batch is not None and resized(self._batch.shape, needed) != self._batch.shape:
            # Without the memory for a smaller one the batch stays as it is.
            with contextlib.suppress(MemoryError, OSError):
                self.resize(needed, beside, live)
        shared.memory.trim(shared.pool.budget - shared.pool.used)

    def _hold(self, shape: KVShape, beside: int) -> bool:
        """Hold the KV cache for `shape`; what nobody uses makes room for it."""
        shared = self._shared
        if not shared.pool.hold(self._key, self._bytes(shape, max(beside, 1))):
            return False
        shared.memory.trim(shared.pool.budget - shared.pool.used)
        return True

    def _bytes(self, shape: KVShape, beside: int) -> int:
        return self._token_bytes * kv_tokens(shape, beside, self._chunk)
