"""On a real GPU: needs an NVIDIA device and onnxruntime-gpu, see docs/gpu.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2serve import Engine, SamplingParams
from gpt2serve.engine.device import choose_device
from tests.conftest import ROOT, export

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        choose_device("auto") != "cuda",
        reason="no GPU here; install as docs/gpu.md says and run `pytest -m gpu` on one",
    ),
]


def test_fp16_on_cuda_speaks_like_fp32_on_the_cpu(tmp_path: Path) -> None:
    sample = str(ROOT / "samples" / "ronald-reagan")
    export(tmp_path, sample, "--target", "cuda")
    export(tmp_path, sample, "--precision", "fp32")
    greedy = SamplingParams(do_sample=False, max_new_tokens=12)
    prompts = ("My fellow citizens", "The war", "We must")
    texts = {}
    for device in ("cuda", "cpu"):
        with Engine(store=tmp_path, device=device, threads=2) as engine:
            texts[device] = [
                engine.generate("ronald-reagan", prompt, greedy).generations[0].text
                for prompt in prompts
            ]
    # fp16 may flip a near tie; it does not change what the model says.
    same = sum(a == b for a, b in zip(texts["cuda"], texts["cpu"], strict=True))
    assert same >= len(prompts) - 1, texts


def test_batches_and_chunks_on_cuda(tmp_path: Path) -> None:
    """Copies between device buffers: several sequences, a long prompt, growth and shrinking."""
    export(tmp_path, str(ROOT / "samples" / "ronald-reagan"), "--target", "cuda")
    params = SamplingParams(seed=3, num_return_sequences=5, max_new_tokens=20)
    with Engine(store=tmp_path, device="cuda", prefill_chunk=16) as engine:
        long = "My fellow citizens, the state of the Union is strong. " * 6
        first = engine.generate("ronald-reagan", long, params)
        assert engine.generate("ronald-reagan", long, params).generations == first.generations
