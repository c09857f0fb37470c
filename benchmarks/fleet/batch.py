"""The requests of one model on one replica: what it computes next. Pure policy.

The same rules as `gpt2serve.engine.scheduler`, for prompts of at most one chunk, one sequence a
request, and enough KV cache: waiting prompts are prefilled together, padded to the longest, as
many as fit into a chunk; while sequences run, every second step is a decode step. A property
test holds the two against each other. This one counts steps where the other lists sequences.
What a model gains from being packed is counted as `gpt2serve.engine.worker` does.
"""

from __future__ import annotations

import heapq
from collections import deque


class Batch:
    """Requests are numbers. `virtual_time`: computing time so far, as the engine counts it.

    packed: whether the model is; to be set when it is.
    """

    __slots__ = (
        "_chunk",
        "_decode_next",
        "_max_batch_size",
        "_prefilling",
        "_running",
        "_steps",
        "_unpacked_steps",
        "_waiting",
        "packed",
        "passed_over",
        "virtual_time",
    )

    def __init__(self, *, max_batch_size: int, chunk: int, packed: bool = False) -> None:
        self.virtual_time = 0.0
        #: As the engine's `Turns` count it.
        self.passed_over = 0
        self.packed = packed
        self._unpacked_steps = 0
        self._max_batch_size = max_batch_size
        self._chunk = chunk
        #: (request, tokens of its prompt, tokens that it wants)
        self._waiting: deque[tuple[int, int, int]] = deque()
        self._prefilling: list[tuple[int, int, int]] = []
        #: (decode steps of the batch after which it ends, request)
        self._running: list[tuple[int, int]] = []
        self._steps = 0
        self._decode_next = False

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def can_wait(self) -> bool:
        """Whether nobody waits for a first token."""
        return not self._waiting

    @property
    def steps_left(self) -> int:
        """Decode steps until all that has come so far has ended, at most."""
        running = [end - self._steps for end, _ in self._running]
        return max(running + [tokens for *_, tokens in self._waiting], default=0)

    @property
    def steps_to_gain(self) -> int:
        """Decode steps that were, or are to be, slower than they would be if it were packed."""
        return 0 if self.packed else self._unpacked_steps + self.steps_left

    def add(self, request: int, prompt: int, tokens: int) -> None:
        if not 0 < prompt <= self._chunk:
            raise ValueError(f"A prompt has 1 to {self._chunk} tokens here, not {prompt}.")
        self._waiting.append((request, prompt, tokens))

    def begin(self) -> tuple[int, int]:
        """Begin the next step of a batch that has work: (rows, tokens of a prefill or 0)."""
        if not (self._decode_next and self._running):
            self._take()
            if self._prefilling:
                self._decode_next = True
                longest = max(prompt for _, prompt, _ in self._prefilling)
                return len(self._prefilling), len(self._prefilling) * longest
        self._decode_next = False
        self._unpacked_steps += not self.packed
        return len(self._running), 0

    def end(self) -> tuple[list[int], list[int]]:
        """The step is done: the requests that got their first token, those that ended."""
        if self._prefilling:
            return self._join()
        self._steps += 1
        ended = []
        while self._running and self._running[0][0] <= self._steps:
            ended.append(heapq.heappop(self._running)[1])
        return [], ended

    def requests(self) -> list[int]:
        """All that have not ended."""
        joining = [request for request, _, _ in (*self._prefilling, *self._waiting)]
        return [request for _, request in self._running] + joining

    def _take(self) -> None:
        """The next prompts that fit together into a chunk, in the order in which they came."""
        longest = 0
        while self._waiting and len(self._running) + len(self._prefilling) < self._max_batch_size:
            longest = max(longest, self._waiting[0][1])
            if (len(self._prefilling) + 1) * longest > self._chunk:
                return
            self._prefilling.append(self._waiting.popleft())

    def _join(self) -> tuple[list[int], list[int]]:
        """A prefill makes the first token."""
        joined, self._prefilling = self._prefilling, []
        ended = []
        for request, _, tokens in joined:
            if tokens > 1:
                heapq.heappush(self._running, (self._steps + tokens - 1, request))
            else:
                ended.append(request)
        return [request for request, _, _ in joined], ended
