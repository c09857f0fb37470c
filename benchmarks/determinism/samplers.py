"""The peers as a server that batches would use them: texts that end by themselves, with seeds.

    with Worker("benchmarks.determinism.samplers:Transformers", {...}) as worker:
        worker.call("load", assets=assets.arguments)
        worker.call("texts", requests=[{"ids": [...], "seed": 7}], batch=32, greedy=False)

Requests are answered in their order, `batch` at a time, with at most `TOKENS` new tokens each; a
text is given as its token ids, without the end-of-text token. Each API gets the seeds in the way
it takes them. The systems are set up as in `benchmarks.peers`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.determinism.requests import batches
from benchmarks.determinism.running import TOKENS, TOP_K
from benchmarks.peers import ctranslate2, llama_cpp, optimum, transformers

Requests = Sequence[dict[str, Any]]


def _pieces(requests: Requests, size: int) -> Iterator[Requests]:
    for numbers in batches(range(len(requests)), size):
        yield [requests[number] for number in numbers]


def until(ids: Sequence[int], end: int) -> list[int]:
    """What comes before the first `end`."""
    ids = list(ids)
    return ids[: ids.index(end)] if end in ids else ids


class _PaddedOnTheLeft:
    """transformers' `generate` on a batch of prompts of different lengths, as documented."""

    _torch: Any
    _model: Any

    def texts(self, requests: Requests, batch: int, *, greedy: bool) -> list[list[int]]:
        made: list[list[int]] = []
        for piece in _pieces(requests, batch):
            made += self._batch(piece, greedy=greedy)
        return made

    def _batch(self, requests: Requests, *, greedy: bool) -> list[list[int]]:
        """One seed for the batch, its first request's: it draws from PyTorch's one generator."""
        torch, end = self._torch, self._model.config.eos_token_id
        ids, mask = padded([request["ids"] for request in requests], end)
        drawing = {"do_sample": True, "temperature": 1.0, "top_k": TOP_K, "top_p": 1.0}
        torch.manual_seed(requests[0]["seed"])
        with torch.inference_mode():
            rows = self._model.generate(
                torch.tensor(ids),
                attention_mask=torch.tensor(mask),
                max_new_tokens=TOKENS,
                pad_token_id=end,
                **({"do_sample": False} if greedy else drawing),
            )
        return [until(row[len(ids[0]) :], end) for row in rows.tolist()]


def padded(prompts: Sequence[list[int]], filler: int) -> tuple[list[list[int]], list[list[int]]]:
    """All as long as the longest, filled on the left; and which tokens are real, as 0 and 1."""
    width = max(map(len, prompts))
    ids = [[filler] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return ids, mask


class Transformers(_PaddedOnTheLeft, transformers.Peer):
    pass


class Optimum(_PaddedOnTheLeft, optimum.Peer):
    pass


class CTranslate2(ctranslate2.Peer):
    def texts(self, requests: Requests, batch: int, *, greedy: bool) -> list[list[int]]:
        made: list[list[int]] = []
        for piece in _pieces(requests, batch):
            made += self._batch(piece, greedy=greedy)
        return made

    def _batch(self, requests: Requests, *, greedy: bool) -> list[list[int]]:
        """One seed for the batch, its first request's: `set_random_seed` is for the process."""
        self._ctranslate2.set_random_seed(requests[0]["seed"])
        results = self._generator.generate_batch(
            [[self._tokens[token] for token in request["ids"]] for request in requests],
            sampling_topk=1 if greedy else TOP_K,
            sampling_temperature=1.0,
            max_length=TOKENS,
            include_prompt_in_result=False,
        )
        end = self._tokens.index("<|endoftext|>")
        return [until(result.sequences_ids[0], end) for result in results]


class LlamaCpp(llama_cpp.Peer):
    """Each text has a sequence of one context, and its own seed."""

    program = Path(__file__).with_name("llama.mjs")

    def texts(self, requests: Requests, batch: int, *, greedy: bool) -> list[list[int]]:
        drawing = {"temperature": 1, "topK": TOP_K, "topP": 1, "minP": 0}
        made: list[list[int]] = self._call(
            "texts",
            requests=list(requests),
            batch=batch,
            tokens=TOKENS,
            sampling={"temperature": 0} if greedy else drawing,
        )
        return made
