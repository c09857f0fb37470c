"""A prompt that is read aside, chunk by chunk, and scored after that if so asked.

The graph computes the logits of each row's last token only. To score a prompt, its keys and
values are copied to some slots, and each slot reads another token of it once more: so many
places are scored in one step, and no slot sees what comes after its token.
"""

from __future__ import annotations

import numpy as np

from gpt2serve.engine.batch import Batch, Floats
from gpt2serve.engine.events import PromptToken
from gpt2serve.engine.likeliest import likeliest, log_totals
from gpt2serve.engine.request import Request
from gpt2serve.engine.runner import Runner


class LongPrompt:
    """Owned by one worker. `batch` has a slot for the prompt, and as many as are scored at once."""

    def __init__(self, request: Request, runner: Runner, batch: Batch) -> None:
        self.request = request
        self.batch = batch
        #: The slot that holds the prompt as it was read.
        self.slot = batch.shape.slots - 1
        #: Of the prompt's tokens so far.
        self.scores = [PromptToken(request.prompt_ids[0], None)]
        self._runner = runner
        self._logits: Floats | None = None

    @property
    def logits(self) -> Floats:
        """[1, vocabulary], after the prompt's last token, once that was read."""
        assert self._logits is not None  # noqa: S101
        return self._logits

    def read(self, start: int, stop: int) -> None:
        """Read the tokens [start, stop)."""
        tokens = self.request.prompt_ids[start:stop]
        self._logits = self._runner.prefill(self.batch, [tokens], start)
        if self.slot > 0 and stop == self.request.prompt_length:
            self._logits = self._logits.copy()  # the slots' steps take its place
            self.batch.kv.copy(self.batch.kv, 0, list(range(1, self.slot + 1)), stop)

    def score(self, start: int, stop: int) -> None:
        """Score the tokens that come after those at [start, stop)."""
        ids, count = self.request.prompt_ids, self.request.params.top_logprobs
        lengths = np.arange(start + 1, stop + 1, dtype=np.int32)
        logits = self._runner.decode(self.batch, ids[start:stop], lengths)
        totals = log_totals(logits)
        following = ids[start + 1 : stop + 1]
        logprobs = logits[np.arange(stop - start), following] - totals
        tops = likeliest(logits, totals, [count] * len(following)) if count else None
        self.scores += map(PromptToken, following, logprobs.tolist(), tops or [()] * len(following))

    def release(self) -> None:
        self.batch.release()
