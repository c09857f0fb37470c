"""The model that every system runs: GPT-2 124M in its real shape, with random weights.

Speed does not depend on what the weights say, and random ones need no download. All systems get
the same weights, made once with a fixed seed and kept in a cache folder.

The tokenizer has GPT-2's 50,257 entries: the vocabulary of a sample model, filled up with made-up
words that no merge produces, and `<|endoftext|>` at its usual place. Prompts become ordinary
tokens, and whatever a random model draws can be turned into text.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "benchmarks" / ".cache"
SAMPLE = ROOT / "samples" / "george-washington"

MODEL = "bench/gpt2-124m"
SEED = 0
VOCABULARY = 50257
END_OF_TEXT = "<|endoftext|>"
#: Eight tokens in the samples' vocabulary; `prompt_ids` makes sure.
PROMPT = "The people of the United States have been"
PROMPT_TOKENS = 8

CT2_TYPES = {"int8": "int8", "fp32": "float32"}


@dataclass(frozen=True)
class Assets:
    """Where the one model lies in each system's own format, and the prompt's token ids."""

    checkpoint: Path
    store: Path
    ct2: Path
    prompt_ids: list[int]

    @property
    def arguments(self) -> dict[str, str | list[int]]:
        """For the constructor of every peer, in words that pass through JSON."""
        return {
            "checkpoint": str(self.checkpoint),
            "store": str(self.store),
            "ct2": str(self.ct2),
            "prompt_ids": self.prompt_ids,
        }


def prepare(cache: Path, *, precisions: list[str], ct2: list[str]) -> Assets:
    """Make what is missing. Packages are made anew each time: the exporter may have changed."""
    assets = Assets(cache / f"gpt2-124m-seed{SEED}", cache / "store", cache / "ct2", [])
    _once(assets.checkpoint, _write_checkpoint)
    for precision in precisions:
        _export(assets, precision)
    for name in ct2:
        _once(assets.ct2 / name, partial(_convert, assets.checkpoint, name))
    return Assets(assets.checkpoint, assets.store, assets.ct2, prompt_ids(assets.checkpoint))


def prompt_ids(checkpoint: Path) -> list[int]:
    from transformers import GPT2TokenizerFast

    ids: list[int] = GPT2TokenizerFast.from_pretrained(checkpoint)(PROMPT)["input_ids"]
    if len(ids) != PROMPT_TOKENS:
        raise RuntimeError(f"The prompt has {len(ids)} tokens, not {PROMPT_TOKENS}: {ids}")
    return ids


def _once(folder: Path, make: Callable[[Path], None]) -> None:
    """Call `make` with a temporary path that becomes `folder` if it is not there yet."""
    if folder.is_dir():
        return
    print(f"==> making {folder.name} (once)", file=sys.stderr, flush=True)
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    make(unfinished)
    unfinished.rename(folder)


def _write_checkpoint(folder: Path) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(SEED)
    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
    vocabulary = json.loads((SAMPLE / "vocab.json").read_text(encoding="utf-8"))
    (folder / "vocab.json").write_text(
        json.dumps(padded(vocabulary), ensure_ascii=False), encoding="utf-8"
    )
    shutil.copy(SAMPLE / "merges.txt", folder)
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, **special})
    )


def padded(vocabulary: dict[str, int]) -> dict[str, int]:
    """`vocabulary` with words of six letters and a space up to GPT-2's size."""
    words = [token for token in vocabulary if token != END_OF_TEXT]
    made_up = (f"\u0120w{n:05}" for n in range(VOCABULARY))  # U+0120 stands for a space
    words += [word for word in made_up if word not in vocabulary][: VOCABULARY - 1 - len(words)]
    return {token: n for n, token in enumerate([*words, END_OF_TEXT])}


def _export(assets: Assets, precision: str) -> None:
    command = [sys.executable, "-m", "gpt2export.cli", str(assets.checkpoint)]
    command += ["--store", str(assets.store), "--id", MODEL, "--precision", precision]
    done = subprocess.run(
        [*command, "--no-verify", "--force"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"gpt2export failed:\n{done.stdout}{done.stderr}")


def _convert(checkpoint: Path, name: str, folder: Path) -> None:
    from ctranslate2.converters import TransformersConverter

    converter = TransformersConverter(str(checkpoint))
    converter.convert(str(folder), quantization=CT2_TYPES[name])
