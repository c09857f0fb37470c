"""One resident model at work. `step` is the architecture: schedule, run, sample, update."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gpt2serve.engine.batch import Batch, Floats
from gpt2serve.engine.batch_memory import BatchMemory, Shared
from gpt2serve.engine.events import PromptTokens
from gpt2serve.engine.long_prompt import LongPrompt
from gpt2serve.engine.messages import settle
from gpt2serve.engine.observer import Observer, StepKind
from gpt2serve.engine.progress import Progress, Told
from gpt2serve.engine.request import Request, Sequence
from gpt2serve.engine.runner import Runner
from gpt2serve.engine.sampling import NO_TOKEN, BatchSampler
from gpt2serve.engine.scheduler import Decode, Plan, Prefill, PrefillChunk, Scheduler, Score
from gpt2serve.engine.shares import Shares
from gpt2serve.engine.turns import virtual_seconds
from gpt2serve.errors import Gpt2ServeError, StepFailed


class Host(Shared, Told, Protocol):
    """What a worker needs from the engine that it works in."""

    observer: Observer
    shares: Shares


@dataclass(frozen=True, slots=True)
class StepWork:
    """Whom a step is for, as it is before the step: some have ended after it.

    sequences: of all requests, those that go on. rows: what the graph computes, by owner; a prompt
    is one row, however many sequences it is for.
    """

    kind: StepKind
    requests: list[Request]
    sequences: int
    rows: Counter[str]


@dataclass(slots=True)
class StepOutput:
    """Logits [rows, vocabulary] of the sequences that get a token from this step."""

    sequences: list[Sequence]
    logits: Floats
    joined: bool


#: Decode steps in which a packed model makes up for the time that packing takes.
#: docs/decisions/0011-cold-start.md has the measurement.
STEPS_WORTH_PACKING = 24


class ModelWorker:
    """Owned by the engine thread."""

    def __init__(
        self, key: str, runner: Runner, host: Host, *, max_batch_size: int, prefill_chunk: int
    ) -> None:
        self.key = key
        self.runner = runner
        #: Computing time so far, as `Turns` counts it.
        self.virtual_time = 0.0
        #: Steps of other models since it had one.
        self.passed_over = 0
        self._host = host
        manifest = runner.manifest
        self._memory = BatchMemory(key, runner, host, prefill_chunk)
        self._progress = Progress(host, manifest.version)
        self.scheduler = Scheduler(
            max_batch_size=max_batch_size,
            prefill_chunk=prefill_chunk,
            context_length=manifest.dimensions.context_length,
            kv_fits=self._memory.fits,
            seconds=host.shares.seconds,
        )
        #: Since when nothing runs although requests wait, for want of KV cache.
        self.starved_since: float | None = None
        #: Those who wait for the packed form.
        self.when_packed: list[Future[None]] = []
        self._unpacked_steps = 0
        self._has_run = False
        self._chunk = prefill_chunk
        self._long_prompt: LongPrompt | None = None
        self._sampler: BatchSampler | None = None

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    @property
    def packed(self) -> bool:
        return self.runner.packed

    @property
    def steps_to_gain(self) -> int:
        """Decode steps that were, or are to be, slower than they would be if it were packed."""
        return 0 if self.runner.packed else self._unpacked_steps + self.scheduler.steps_left

    @property
    def wants_packing(self) -> bool:
        """Whether somebody waits for it, or that makes up for the time that it takes."""
        wanted = self.when_packed or self.steps_to_gain >= STEPS_WORTH_PACKING
        return bool(wanted) and not self.runner.packed

    @property
    def can_wait(self) -> bool:
        """Whether nobody waits for a first token."""
        return not self.scheduler.waiting and self.scheduler.long is None

    def tell_packed(self, error: Gpt2ServeError | None = None) -> None:
        """It is packed, or need not be any more; or it never will be, for this reason."""
        while self.when_packed:
            settle(self.when_packed.pop(), error)

    def add(self, request: Request) -> None:
        self.scheduler.add(request)

    def step(self) -> bool:
        """One step; False if there is no room for one yet. Its failure ends its requests only."""
        plan = self.scheduler.schedule()
        started = self._host.clock()
        if plan is None:
            if self.starved_since is None:
                self.starved_since = started
            return False
        self.starved_since = None
        work = self._work(plan)
        try:
            output = self._run(plan, started)
            if output is not None:
                self._update(output)
        except Exception as error:
            failure = StepFailed(f"The model failed while generating: {error}")
            failure.__cause__ = error
            self._drop([request for request in work.requests if not request.ended], failure)
        # All that ended leave at once: nothing is moved that is about to leave, too.
        self._leave([s for s in self.scheduler.running if s.finish_reason is not None])
        self._give_back_memory()
        self._account(work, self._host.clock() - started)
        return True

    def cancel(self, request: Request, error: Gpt2ServeError) -> None:
        """Take a request out, whatever it is doing."""
        self._drop([request], error)
        self._give_back_memory()

    def requests(self) -> list[Request]:
        """All that have not ended."""
        scheduler = self.scheduler
        running = dict.fromkeys(sequence.request for sequence in scheduler.running)
        return [*running, *([scheduler.long] if scheduler.long else []), *scheduler.waiting]

    # -- run ------------------------------------------------------------------------------

    def _work(self, plan: Plan) -> StepWork:
        match plan:
            case Decode():
                computed = [sequence.request for sequence in self.scheduler.running]
            case Prefill(requests):
                computed = requests
            case PrefillChunk(request) | Score(request):
                computed = [request]
        requests = list(dict.fromkeys(computed))
        return StepWork(
            "decode" if isinstance(plan, Decode) else "prefill",
            requests,
            sequences=sum(len(request.unfinished) for request in requests),
            rows=Counter(request.owner for request in computed),
        )

    def _account(self, work: StepWork, seconds: float) -> None:
        self.virtual_time += virtual_seconds(seconds, work.sequences)
        self._host.shares.charge(work.rows, seconds)
        if not self._has_run:
            self._has_run = True
            self._host.observer.on_first_run(work.requests[0].model, seconds)
        self._host.observer.on_step(work.kind, work.sequences, seconds)

    def _run(self, plan: Plan, now: float) -> StepOutput | None:
        match plan:
            case Decode():
                return self._decode()
            case Prefill(requests):
                return self._prefill(requests, now)
            case PrefillChunk():
                return self._prefill_chunk(plan, now)
            case Score():
                return self._score(plan)

    def _decode(self) -> StepOutput:
        running = self.scheduler.running
        tokens = [sequence.row.history[-1] for sequence in running]
        lengths = np.array([sequence.length for sequence in running], dtype=np.int32)
        self._unpacked_steps += not self.runner.packed
        logits = self.runner.decode(self._memory.batch, tokens, lengths)
        return StepOutput(list(running), logits, joined=False)

    def _prefill(self, requests: list[Request], now: float) -> StepOutput:
        for request in requests:
            request.begin(now)
        prompts = self._memory.for_prompts(len(requests))
        logits = self.runner.prefill(prompts, [request.prompt_ids for request in requests], 0)
        return self._join(requests, prompts, logits)

    def _prefill_chunk(self, chunk: PrefillChunk, now: float) -> StepOutput | None:
        request = chunk.request
        if chunk.start == 0:
            request.begin(now)
            # Room for all of it is taken now, so that none is missing at the last chunk.
            self._resize(live=len(self.scheduler.running))
            batch = self._memory.for_long_prompt(request)
            self._long_prompt = LongPrompt(request, self.runner, batch)
        self._long.read(chunk.start, chunk.stop)
        to_score = request.scored_together > 0 and request.prompt_length > 1
        return self._long_prompt_done() if chunk.last and not to_score else None

    def _score(self, plan: Score) -> StepOutput | None:
        self._unpacked_steps += not self.runner.packed
        self._long.score(plan.start, plan.stop)
        return self._long_prompt_done() if plan.last else None

    @property
    def _long(self) -> LongPrompt:
        assert self._long_prompt is not None  # noqa: S101
        return self._long_prompt

    def _long_prompt_done(self) -> StepOutput | None:
        """Its sequences run from now on, if they are to get any token."""
        prompt, self._long_prompt = self._long, None
        request = prompt.request
        if request.scored_together > 0:
            self._host.outbox.add(request.stream, PromptTokens(tuple(prompt.scores)))
        if request.params.max_tokens > 0:
            return self._join([request], prompt.batch, prompt.logits, prompt.slot)
        prompt.release()
        self.scheduler.drop(request)
        self._progress.finish_without_tokens(request)
        return None

    def _join(
        self, requests: list[Request], prompts: Batch, logits: Floats, first: int = 0
    ) -> StepOutput:
        """Copy each prompt's KV rows to a slot for each of its request's sequences.

        The prompts are in the slots of `prompts` from `first` on.
        """
        live = len(self.scheduler.running)
        slots = [self.scheduler.join(request) for request in requests]
        self._sampler = None
        try:
            self._resize(live=live)
        except Exception:
            del self.scheduler.running[live:]  # they have no slots that could be moved
            raise
        for row, request in enumerate(requests):
            kv = self._memory.batch.kv
            kv.copy(prompts.kv, first + row, slots[row], request.prompt_length)
        sequences = [sequence for request in requests for sequence in request.sequences]
        copies = [len(request.sequences) for request in requests]
        output = StepOutput(sequences, np.repeat(logits, copies, axis=0), joined=True)
        prompts.release()
        return output

    # -- sample and update ----------------------------------------------------------------

    def _update(self, output: StepOutput) -> None:
        if output.joined:
            sampler = BatchSampler([sequence.row for sequence in output.sequences])
        else:
            if self._sampler is None:
                self._sampler = BatchSampler([s.row for s in self.scheduler.running])
            sampler = self._sampler
        tops = sampler.likeliest(output.logits)
        tokens, logprobs = sampler.sample(output.logits)
        chances = np.zeros(len(tokens)) if logprobs is None else logprobs
        now = self._host.clock()
        drawn = list(zip(output.sequences, tokens.tolist(), chances.tolist(), tops, strict=True))
        stuck = dict.fromkeys(s.request for s, token, *_ in drawn if token == NO_TOKEN)
        self._drop(stuck, StepFailed("The model has no token left that it may generate."))
        for sequence, token, logprob, top in drawn:
            if sequence.request in stuck:
                continue
            if sequence.request.times.first_token is None:
                sequence.request.times.first_token = now
            self._progress.advance(sequence, token, logprob, top, now)

    def _leave(self, sequences: Collection[Sequence]) -> None:
        """Take sequences out of the batch; the KV cache follows those that fill their slots."""
        if not sequences:
            return
        self._sampler = None
        for from_slot, to_slot in self.scheduler.leave(sequences):
            # All of it: the newest token is in the cache if the step broke off half-way.
            length = self.scheduler.running[to_slot].length
            kv = self._memory.batch.kv
            kv.copy(kv, from_slot, [to_slot], length)

    def _drop(self, requests: Collection[Request], error: Gpt2ServeError) -> None:
        self._leave([s for s in self.scheduler.running if s.request in requests])
        for request in requests:
            if request is self.scheduler.long and self._long_prompt is not None:
                self._long_prompt.release()
                self._long_prompt = None
            self.scheduler.drop(request)
            request.ended = True
            self._host.outbox.fail(request.stream, error)
            self._host.request_ended(request, error)

    # -- memory ---------------------------------------------------------------------------

    def _resize(self, *, live: int) -> None:
        """Let the batch have room for all that run; the first `live` slots keep their tokens."""
        self._memory.resize(self.scheduler.shape(), self._beside(), self._in_cache(live))

    def _give_back_memory(self) -> None:
        live = self._in_cache(len(self.scheduler.running))
        self._memory.give_back(self.scheduler.shape(), self._beside(), live)

    def _beside(self) -> int:
        """Tokens that the long prompt takes beside the batch."""
        return self.scheduler.long.prompt_room(self._chunk) if self.scheduler.long else 0

    def _in_cache(self, slots: int) -> list[int]:
        """Tokens in the cache of each slot; the newest one is not there yet."""
        return [sequence.length - 1 for sequence in self.scheduler.running[:slots]]
