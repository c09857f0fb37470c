"""What peers report, from moments at which tokens were there; no peer runs."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.peers import CUDA_SYSTEMS, SYSTEMS, gpt2serve, timing, vllm
from benchmarks.peers.transformers import Clock


def test_texts_in_step_grow_together_from_the_first_token_to_the_last() -> None:
    stamps = [[2.0, 3.0, 5.0], [2.1, 3.1, 5.1]]  # one is sampled after the other
    assert timing.together(stamps) == (pytest.approx(3.0), 2)


def test_prompts_that_are_read_in_turn() -> None:
    # The second text begins when the first has two tokens, and the first ends before it.
    assert timing.together([[1, 2, 3, 4], [2.5, 3.5, 4.5, 5.5]]) == (pytest.approx(2.0), 2)
    assert timing.together([[1, 2], [3, 4]]) == (0.0, 0)


@given(st.integers(1, 6), st.integers(1, 40), st.integers(0, 5), st.floats(0.001, 10), st.data())
def test_a_step_takes_what_it_takes(
    texts: int, tokens: int, delay: int, step: float, data: st.DataObject
) -> None:
    begins = [data.draw(st.integers(0, delay)) for _ in range(texts)]
    stamps = [[step * (begin + n) for n in range(tokens)] for begin in begins]
    seconds, steps = timing.together(stamps)
    assert steps == max(tokens - 1 - (max(begins) - min(begins)), 0)
    assert seconds == pytest.approx(steps * step)


def test_a_report_counts_from_the_call() -> None:
    made = timing.report(10.0, 16.0, [[12.0, 13.0], [12.5, 15.0]], [[1, 2], [3, 4]])
    assert (made["seconds"], made["first_seconds"]) == (6.0, 2.5)
    assert (made["decode_seconds"], made["decode_steps"]) == (2.5, 1)
    assert (made["lengths"], made["ids"]) == ([2, 2], [[1, 2], [3, 4]])


def test_texts_of_another_length_are_refused() -> None:
    made = {"lengths": [3, 2]}
    with pytest.raises(RuntimeError, match=r"2 texts of 3 tokens: \[3, 2\]"):
        timing.check(made, 2, 3)
    assert timing.check({"lengths": [3, 3]}, 2, 3) == {"lengths": [3, 3]}


def test_steps_of_the_whole_batch_are_what_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([1.0, 2.0, 4.0, 5.0, 7.0, 8.0])
    monkeypatch.setattr(gpt2serve.time, "perf_counter", lambda: next(moments))
    steps = gpt2serve.Steps()
    for kind, rows in (
        ("prefill", 1),
        ("decode", 1),
        ("prefill", 1),
        ("decode", 2),
        ("decode", 2),
        ("decode", 1),
    ):
        steps.on_step(kind, rows, 0.0)
    assert steps.all_begun == 4.0
    assert steps.together(2) == (3.0, 2)
    assert steps.together(3) == (0.0, 0)


def test_the_clock_of_transformers_does_not_count_the_prompt() -> None:
    clock = Clock()
    for tokens in ("the prompt", "first", "second"):
        clock.put(tokens)
    assert len(clock.stamps) == 2


def test_names_say_what_a_system_computes_with() -> None:
    systems = (*SYSTEMS, *CUDA_SYSTEMS)
    assert len({system.name for system in systems}) == len(systems)
    assert {system.precision for system in systems} == {"int8", "fp32", "q8_0", "fp16"}


class _Vllm(types.ModuleType):
    """As much of vLLM as its peer uses; every token takes a second."""

    def __init__(self, clock: list[float]) -> None:
        super().__init__("vllm")
        self.clock = clock
        self.options: dict[str, Any] = {}

    def LLM(self, **options: Any) -> _Vllm:
        self.options = options
        return self

    def SamplingParams(self, **options: Any) -> types.SimpleNamespace:
        return types.SimpleNamespace(**options)

    def generate(self, prompts: list[Any], params: list[Any], **_: Any) -> list[Any]:
        self.clock[0] += params[0].max_tokens
        assert all(one.ignore_eos and one.top_k == 50 for one in params)
        return [
            types.SimpleNamespace(
                outputs=[types.SimpleNamespace(token_ids=tuple(prompt["prompt_token_ids"]))]
            )
            for prompt in prompts
        ]


def test_vllm_decodes_after_the_time_of_a_call_for_one_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    fake = _Vllm(clock)
    monkeypatch.setitem(sys.modules, "vllm", fake)
    monkeypatch.setattr(vllm.time, "perf_counter", lambda: clock[0])
    peer = vllm.Peer("fp16", 2)
    peer.load({"checkpoint": "folder"})
    assert (fake.options["model"], fake.options["dtype"]) == ("folder", "float16")
    assert fake.options["enable_prefix_caching"] is False
    made = peer.generate([{"ids": [1, 2, 3]}, {"ids": [4, 5, 6]}], 3)  # it repeats the prompt
    assert (made["seconds"], made["first_seconds"]) == (3.0, 1.0)
    assert (made["decode_seconds"], made["decode_steps"]) == (2.0, 2)
    assert made["ids"] == [[1, 2, 3], [4, 5, 6]]
