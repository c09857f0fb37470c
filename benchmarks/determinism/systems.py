"""Which systems are asked, and how each is started. The sample model in each system's format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.common.formats import END_OF_TEXT, SAMPLE, Formats, export
from benchmarks.common.measuring import say
from benchmarks.common.model import Assets
from benchmarks.determinism.comparing import Running
from benchmarks.determinism.requests import Request
from benchmarks.determinism.running import Gpt2Serve, Sampler
from benchmarks.peers import (
    CT2_FP32,
    CT2_INT8,
    ENGINE_FP32,
    ENGINE_INT8,
    LLAMA_CPP,
    OPTIMUM,
    TRANSFORMERS,
    System,
)

ENGINES = (ENGINE_INT8, ENGINE_FP32)
_SAMPLERS = {
    TRANSFORMERS: "Transformers",
    OPTIMUM: "Optimum",
    CT2_INT8: "CTranslate2",
    CT2_FP32: "CTranslate2",
    LLAMA_CPP: "LlamaCpp",
}


def prepare(folder: Path, systems: Iterable[System]) -> Assets:
    """Packages are made anew each time: the exporter may have changed."""
    folder.mkdir(parents=True, exist_ok=True)
    assets = Assets(
        checkpoint=SAMPLE,
        store=folder / "store",
        ct2=folder / "ct2",
        onnx=folder / "onnx",
        gguf=folder / "q8_0.gguf",
        model=SAMPLE.name,
    )
    formats = Formats(assets)
    for system in systems:
        if system.name in ENGINES:
            say(f"exporting {assets.model} for {system.name}")
            export(assets.checkpoint, assets.store, assets.model, system.precision)
        elif system.format:
            formats.make(system.format)
    return assets


def starter(
    system: System, assets: Assets, threads: int, requests: Sequence[Request]
) -> Callable[[], Running]:
    """Starts `system` anew each time it is called."""
    if system.name in ENGINES:
        log = assets.store.parent / f"{system.precision}.log"
        return partial(Gpt2Serve, assets, system.precision, threads, requests, log)
    target = f"benchmarks.determinism.samplers:{_SAMPLERS[system.name]}"
    tokens = [
        {"ids": ids, "seed": request.seed}
        for ids, request in zip(token_ids(assets.checkpoint, requests), requests, strict=True)
    ]
    return partial(Sampler, target, assets, system.precision, threads, tokens)


def token_ids(checkpoint: Path, requests: Sequence[Request]) -> list[list[int]]:
    """What gpt2serve reads: the model's prefix, which is the end-of-text token, and the prompt."""
    from transformers import GPT2TokenizerFast

    tokenizer = GPT2TokenizerFast.from_pretrained(checkpoint)
    made: list[list[int]] = tokenizer([END_OF_TEXT + one.prompt for one in requests])["input_ids"]
    return made
