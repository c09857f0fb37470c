"""The engine under observation, in a process of its own (`benchmarks.common.worker`)."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.load.traffic import Ask, Traffic
from benchmarks.load.worker import make_mix
from benchmarks.peers import LARGEST_BATCH, TOP_K
from benchmarks.profile.spans import Spans

#: The parts of a decode step, and the functions whose time they are.
ONNXRUNTIME, REST = "onnxruntime", "rest of the engine thread"
BINDING, SAMPLING, TOP_K_PART = "inputs and bindings", "sampling", "sampling: the likeliest"
UPDATE, TEXT, DELIVERY = "sequences and events", "tokens to text", "delivery"


class Engine:
    """`Engine.generate` as a user of the library has it, with a clock on its inside.

    by_op: let onnxruntime note every op. That slows it down, so other times are not taken then.
    """

    def __init__(
        self, store: str, model: str, precision: str, threads: int, *, by_op: bool
    ) -> None:
        import gpt2serve

        self._model = model
        self._params = gpt2serve.SamplingParams
        self._sessions: list[Any] = []
        self._steps = Steps()
        _remember_sessions(self._sessions, by_op=by_op)
        if not by_op:
            _watch(self._steps.spans)
        self._engine = gpt2serve.Engine(
            store,
            precision=precision,
            threads=threads,
            max_batch_size=LARGEST_BATCH,
            observer=self._steps,
        )
        self._engine.start()
        self._engine.load(model, pin=True)

    def decode(self, prompt: str, batch: int, tokens: int) -> dict[str, Any]:
        """`batch` texts of `tokens` tokens from one prompt; milliseconds per decode step.

        {"step_ms", "steps", "parts": {name: ms}}
        """
        self._steps.begin(batch)
        self._generate(prompt, batch, tokens)
        return self._steps.result()

    def ops(self, prompt: str, batch: int, tokens: int) -> dict[str, Any]:
        """Milliseconds per decode step by op, once: {"run_ms", "ops": {op: [ms, number]}}."""
        for _ in range(2):  # the first is for warming up
            self._generate(prompt, batch, tokens)
        file = Path(self._sessions[0].end_profiling())
        try:
            return by_op(json.loads(file.read_text()), tokens - 1)
        finally:
            file.unlink()

    def _generate(self, prompt: str, batch: int, tokens: int) -> None:
        params = self._params(num_return_sequences=batch, seed=7, **sampling(tokens))
        result = self._engine.generate(self._model, prompt, params)
        lengths = [generation.tokens for generation in result.generations]
        if lengths != [tokens] * batch:
            raise RuntimeError(f"Asked for {batch} texts of {tokens} tokens: {lengths}.")

    def closed_loop(self, mix: dict[str, Any], clients: int, seconds: float) -> dict[str, Any]:
        """As many callers as `clients`, each of whom asks again at once: tokens per second."""
        seeds = [[mix["seed"], number] for number in range(clients)]
        asked = [Traffic(make_mix({**mix, "seed": seed})).endless() for seed in seeds]
        first = [next(asks) for asks in asked]  # which draws many, before the clock starts
        self._steps.begin(0)
        begin = time.perf_counter()
        with ThreadPoolExecutor(clients) as callers:
            for ask, more in zip(first, asked, strict=True):
                callers.submit(self._ask_until, begin + seconds, chain([ask], more))
            time.sleep(seconds)
            # Before the callers wait for their last answers with fewer and fewer others.
            return {"tokens_per_second": self._steps.rows / (time.perf_counter() - begin)}

    def _ask_until(self, end: float, asks: Iterator[Ask]) -> None:
        while time.perf_counter() < end:
            self._ask(next(asks))

    def _ask(self, ask: Ask) -> None:
        params = self._params(seed=ask.seed, **sampling(ask.tokens))
        self._engine.generate(self._model, ask.prompt, params)

    def close(self) -> None:
        self._engine.close()


def sampling(tokens: int) -> dict[str, Any]:
    return {
        "max_new_tokens": tokens,
        "min_new_tokens": tokens,
        "do_sample": True,
        "temperature": 1.0,
        "top_k": TOP_K,
        "top_p": 1.0,
    }


class Steps:
    """An observer of the engine: cuts the time of its thread into steps."""

    def __init__(self) -> None:
        self.spans = Spans()
        self.begin(0)

    def begin(self, batch: int) -> None:
        """Count decode steps of `batch` rows."""
        self._batch = batch
        self._ended = time.perf_counter()
        self._steps = 0
        self._seconds = 0.0
        self._parts: Counter[str] = Counter()
        self.spans.seconds.clear()
        #: Rows of all steps, which is the number of tokens.
        self.rows = 0

    def on_step(self, kind: str, rows: int, seconds: float) -> None:
        del seconds  # of the step alone; what is between two steps counts too
        now = time.perf_counter()
        self.rows += rows
        if kind == "decode" and rows == self._batch:
            self._steps += 1
            self._seconds += now - self._ended
            self._parts.update(self.spans.seconds)
        self.spans.seconds.clear()
        self._ended = now

    def result(self) -> dict[str, Any]:
        scale = 1000 / self._steps
        rest = self._seconds - sum(self._parts.values())
        parts = {**self._parts, REST: rest}
        return {
            "step_ms": self._seconds * scale,
            "steps": self._steps,
            "parts": {name: value * scale for name, value in parts.items()},
        }

    def on_request_finished(self, summary: object) -> None: ...

    def on_model_wanted(self, model: str, *, hit: bool) -> None: ...

    def on_fetch(self, model: str, seconds: float, size: int, *, ok: bool) -> None: ...

    def on_load(self, model: str, seconds: float, *, ok: bool) -> None: ...

    def on_pack(self, model: str, seconds: float, *, ok: bool) -> None: ...

    def on_first_run(self, model: str, seconds: float) -> None: ...

    def on_evict(self, model: str, reason: str) -> None: ...


def _watch(spans: Spans) -> None:
    import onnxruntime

    from gpt2serve.engine import sampling as sampling_module
    from gpt2serve.engine.runner import Runner
    from gpt2serve.engine.stream import Outbox
    from gpt2serve.engine.text import TextStream
    from gpt2serve.engine.worker import ModelWorker

    spans.watch(onnxruntime.InferenceSession, "run_with_iobinding", ONNXRUNTIME)
    spans.watch(Runner, "decode", BINDING)
    # Which module calls it differs between the versions that are compared.
    for module in (sampling_module, sys.modules.get("gpt2serve.engine.draw")):
        if hasattr(module, "top_candidates"):
            spans.watch(module, "top_candidates", TOP_K_PART)
    spans.watch(sampling_module.BatchSampler, "sample", SAMPLING)
    spans.watch(ModelWorker, "_update", UPDATE)
    spans.watch(TextStream, "push", TEXT)
    spans.watch(Outbox, "flush", DELIVERY)


def _remember_sessions(sessions: list[Any], *, by_op: bool) -> None:
    """onnxruntime writes the times of a session's ops when it is told to, so it must be found.

    by_op: let it note them.
    """
    import onnxruntime

    original = onnxruntime.InferenceSession.__init__

    def made(session: Any, model: Any, session_options: Any, **others: Any) -> None:
        if by_op:
            session_options.enable_profiling = True
            prefix = str(Path(tempfile.gettempdir()) / "gpt2serve-ops")
            session_options.profile_file_prefix = prefix
        original(session, model, session_options, **others)
        sessions.append(session)

    onnxruntime.InferenceSession.__init__ = made


def by_op(events: list[dict[str, Any]], runs: int) -> dict[str, Any]:
    """Milliseconds per run and number of nodes of each op, over the last `runs` runs."""
    of_runs = [event for event in events if event["name"] == "model_run"][-runs:]
    begin = of_runs[0]["ts"]
    ops: dict[str, list[float]] = {}
    for event in events:
        if event["name"].endswith("_kernel_time") and event["ts"] >= begin:
            entry = ops.setdefault(event["args"]["op_name"], [0.0, 0.0])
            entry[0] += event["dur"] / 1000 / runs
            entry[1] += 1 / runs
    run_ms = sum(event["dur"] for event in of_runs) / 1000 / runs
    return {"run_ms": run_ms, "ops": ops}
