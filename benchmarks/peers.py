"""The systems that are compared. Each is a class with the same two methods:

    __init__(checkpoint, store, ct2, prompt_ids, precision, threads)   load, ready to generate
    generate(batch, tokens)   `batch` sequences of `tokens` tokens from the one prompt

`generate` samples with top_k 50 and returns {"seconds", "lengths", ...}: the wall time of the whole
generation, prefill included, and the number of tokens of each sequence. Heavy imports are inside
the classes: each lives in a process of its own (`benchmarks.worker`).
"""

from __future__ import annotations

import importlib.util
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.model import MODEL, PROMPT

TOP_K = 50
#: The largest batch that is measured; also what the engine is told to allow.
LARGEST_BATCH = 64


@dataclass(frozen=True)
class System:
    """`name` is the one in tables and for --skip; `package` is what must be installed."""

    name: str
    target: str
    precision: str
    package: str
    install: str

    @property
    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None


ENGINE_INT8, ENGINE_FP32 = "gpt2serve int8", "gpt2serve fp32"
TRANSFORMERS = "transformers fp32"
CT2_INT8, CT2_FP32 = "ctranslate2 int8", "ctranslate2 fp32"

_TORCH = "pip install -e '.[export]'"
_BENCH = "pip install -e '.[bench]'"

SYSTEMS = (
    System(ENGINE_INT8, "benchmarks.peers:Gpt2Serve", "int8", "gpt2serve", "pip install -e ."),
    System(ENGINE_FP32, "benchmarks.peers:Gpt2Serve", "fp32", "gpt2serve", "pip install -e ."),
    System(TRANSFORMERS, "benchmarks.peers:Transformers", "fp32", "transformers", _TORCH),
    System(CT2_INT8, "benchmarks.peers:CTranslate2", "int8", "ctranslate2", _BENCH),
    System(CT2_FP32, "benchmarks.peers:CTranslate2", "fp32", "ctranslate2", _BENCH),
)


class Gpt2Serve:
    """This engine, as a user of the library has it: `Engine.generate` with a text."""

    def __init__(
        self,
        checkpoint: str,
        store: str,
        ct2: str,
        prompt_ids: list[int],
        precision: str,
        threads: int,
    ) -> None:
        del checkpoint, ct2
        from gpt2serve import Engine

        self._runs = RunTimes()
        self._prompt_tokens = len(prompt_ids)
        self._engine = Engine(
            store, precision=precision, threads=threads, max_batch_size=LARGEST_BATCH
        )
        self._engine.start()
        self._engine.load(MODEL, pin=True)

    def generate(self, batch: int, tokens: int) -> dict[str, Any]:
        from gpt2serve import SamplingParams

        params = SamplingParams(num_return_sequences=batch, **sampling(tokens))
        self._runs.clear()
        begin = time.perf_counter()
        result = self._engine.generate(MODEL, PROMPT, params)
        seconds = time.perf_counter() - begin
        if result.usage.prompt_tokens != self._prompt_tokens:
            raise RuntimeError(f"The prompt became {result.usage.prompt_tokens} tokens.")
        lengths = [generation.tokens for generation in result.generations]
        outside = self._runs.share_outside() if tokens > 1 else None
        return {"seconds": seconds, "lengths": lengths, "outside": outside}

    def concurrent(self, plan: list[list[int]]) -> dict[str, Any]:
        """One caller for each list in `plan`; it asks for texts of these lengths in turn."""
        with ThreadPoolExecutor(len(plan)) as callers:
            begin = time.perf_counter()
            made = sum(callers.map(self._ask_in_turn, plan))
            return {"seconds": time.perf_counter() - begin, "tokens": made}

    def _ask_in_turn(self, lengths: list[int]) -> int:
        from gpt2serve import SamplingParams

        results = [
            self._engine.generate(MODEL, PROMPT, SamplingParams(**sampling(tokens)))
            for tokens in lengths
        ]
        return sum(result.usage.completion_tokens for result in results)

    def close(self) -> None:
        self._engine.close()


def sampling(tokens: int) -> dict[str, Any]:
    """How every system is told to sample, in this engine's words; also the fields of its HTTP."""
    return {
        "max_new_tokens": tokens,
        "min_new_tokens": tokens,
        "do_sample": True,
        "temperature": 1.0,
        "top_k": TOP_K,
        "top_p": 1.0,
        "seed": 7,
    }


class RunTimes:
    """When onnxruntime ran: what lies between two runs is sampling and bookkeeping.

    Watches onnxruntime's own method, so that everything else counts: sampling, the scheduler, text,
    handing events over, waiting for the interpreter.
    """

    def __init__(self) -> None:
        import onnxruntime

        self.spans: list[tuple[float, float]] = []
        original = onnxruntime.InferenceSession.run_with_iobinding

        def timed(session: Any, *args: Any, **options: Any) -> None:
            begin = time.perf_counter()
            original(session, *args, **options)
            self.spans.append((begin, time.perf_counter()))

        onnxruntime.InferenceSession.run_with_iobinding = timed

    def clear(self) -> None:
        self.spans.clear()

    def share_outside(self) -> float:
        """Share of the time from the end of prefill to the end of the last step."""
        return share_between(self.spans)


def share_between(spans: list[tuple[float, float]]) -> float:
    """Share of gaps in the time from the end of the first span to the end of the last."""
    inside = sum(end - begin for begin, end in spans[1:])
    return 1 - inside / (spans[-1][1] - spans[0][1])


class Transformers:
    """`generate` with PyTorch in fp32: scaled_dot_product_attention, KV cache, inference mode."""

    def __init__(
        self,
        checkpoint: str,
        store: str,
        ct2: str,
        prompt_ids: list[int],
        precision: str,
        threads: int,
    ) -> None:
        del store, ct2, precision
        import torch
        from transformers import GPT2LMHeadModel

        torch.set_num_threads(threads)
        self._torch = torch
        self._model = GPT2LMHeadModel.from_pretrained(checkpoint).eval()
        self._ids = torch.tensor([prompt_ids])

    def generate(self, batch: int, tokens: int) -> dict[str, Any]:
        begin = time.perf_counter()
        with self._torch.inference_mode():
            made = self._model.generate(
                self._ids,
                attention_mask=self._torch.ones_like(self._ids),
                num_return_sequences=batch,
                do_sample=True,
                top_k=TOP_K,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                pad_token_id=self._model.config.eos_token_id,
            )
        seconds = time.perf_counter() - begin
        length = made.shape[1] - self._ids.shape[1]
        return {"seconds": seconds, "lengths": [length] * made.shape[0]}


class CTranslate2:
    """`generate_batch` with the prompt read at once and many texts drawn from it.

    `num_hypotheses` was as fast as a batch of equal prompts, or faster. Tried and not taken, since
    they are off by default: other instruction sets and MKL, by environment variables.
    """

    def __init__(
        self,
        checkpoint: str,
        store: str,
        ct2: str,
        prompt_ids: list[int],
        precision: str,
        threads: int,
    ) -> None:
        del store
        import ctranslate2
        from transformers import GPT2TokenizerFast

        self._prompt = GPT2TokenizerFast.from_pretrained(checkpoint).convert_ids_to_tokens(
            prompt_ids
        )
        self._generator = ctranslate2.Generator(
            str(Path(ct2) / precision),
            device="cpu",
            compute_type={"int8": "int8", "fp32": "float32"}[precision],
            inter_threads=1,
            intra_threads=threads,
        )

    def generate(self, batch: int, tokens: int) -> dict[str, Any]:
        begin = time.perf_counter()
        results = self._generator.generate_batch(
            [self._prompt],
            num_hypotheses=batch,
            sampling_topk=TOP_K,
            max_length=tokens,
            min_length=tokens,
            include_prompt_in_result=False,
        )
        seconds = time.perf_counter() - begin
        return {"seconds": seconds, "lengths": [len(ids) for ids in results[0].sequences_ids]}
