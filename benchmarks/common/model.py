"""The model that every system runs: GPT-2 124M in its real shape, with random weights.

Speed does not depend on what the weights say, and random ones need no download. All systems get
the same weights, made once with a fixed seed and kept in a cache folder, each in its own format:

    assets = prepare(cache, ["package-int8", "ct2-int8"])    # makes what is missing
    worker.call("load", assets=assets.arguments)
    prompts(assets.checkpoint, count=16, tokens=8)           # for 16 users

`benchmarks.common.copies.many` makes many models of this one.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common.prompts import prompts as prompts

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "benchmarks" / ".cache"

MODEL = "bench/gpt2-124m"
SEED = 0

#: What `prepare` can make besides the checkpoint.
FORMATS = (
    "package-int8",
    "package-fp32",
    "package-fp16",
    "ct2-int8",
    "ct2-fp32",
    "onnx-fp32",
    "gguf-q8_0",
)


@dataclass(frozen=True)
class Assets:
    """Where one model lies in each system's own format.

    checkpoint: a folder as transformers saves it. store, model: `gpt2serve`'s folder of packages,
    and the id in it. ct2: has a folder for each precision. onnx: a folder. gguf: a file.
    """

    checkpoint: Path
    store: Path
    ct2: Path
    onnx: Path
    gguf: Path
    model: str = MODEL

    @property
    def arguments(self) -> dict[str, str]:
        """For `load` of every peer, in words that pass through JSON."""
        return {name: str(value) for name, value in vars(self).items()}


def assets_in(cache: Path) -> Assets:
    """Where everything is, or will be."""
    return Assets(
        checkpoint=cache / f"gpt2-124m-seed{SEED}",
        store=cache / "store",
        ct2=cache / "ct2",
        onnx=cache / "onnx",
        gguf=cache / "gpt2-124m-q8_0.gguf",
    )


def prepare(cache: Path, formats: Iterable[str]) -> Assets:
    """Make the checkpoint and those of `FORMATS` that are missing; may take half a minute.

    Packages are made anew where the exporter's code has changed. Raises `ValueError` for a
    format that does not exist. Two callers at the same time do not disturb each other.
    """
    from benchmarks.common.formats import Formats

    wanted = list(dict.fromkeys(formats))
    unknown = set(wanted).difference(FORMATS)
    if unknown:
        raise ValueError(f"There is no format {', '.join(sorted(unknown))}.")
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assets = assets_in(cache)
        makers = Formats(assets)
        makers.checkpoint()
        for name in wanted:
            makers.make(name)
    return assets
