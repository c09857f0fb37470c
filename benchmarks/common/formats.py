"""Makes the one model in the format of each system. See `benchmarks.common.model`.

The tokenizer has GPT-2's 50,257 entries: the vocabulary of a sample model, filled up with made-up
words that no merge produces, and `<|endoftext|>` at its usual place. Prompts become ordinary
tokens, and whatever a random model draws can be turned into text.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.common.measuring import say
from benchmarks.common.model import ROOT, SEED, Assets
from gpt2serve.package import package_path

SAMPLE = ROOT / "samples" / "george-washington"
VOCABULARY = 50257
END_OF_TEXT = "<|endoftext|>"

_TARGETS = {"int8": "cpu", "fp32": "cpu", "fp16": "cuda"}
_CT2_TYPES = {"int8": "int8", "fp32": "float32"}
#: Whatever the content of a package depends on.
_EXPORTER = ("export/gpt2export/**/*.py", "server/gpt2serve/package.py")


class Formats:
    """Makes what is missing of `assets`."""

    def __init__(self, assets: Assets) -> None:
        self._assets = assets

    def make(self, name: str) -> None:
        """One of `model.FORMATS`."""
        kind, precision = name.split("-")
        getattr(self, f"_{kind}")(precision)

    def checkpoint(self) -> None:
        _once(self._assets.checkpoint, write_checkpoint)

    def _package(self, precision: str) -> None:
        """Again whenever the exporter's code has changed."""
        stamp = self._assets.store.parent / f"package-{precision}.stamp"
        code = _exporter_hash()
        package = package_path(
            self._assets.store, self._assets.model, _TARGETS[precision], precision
        )
        if package.is_dir() and stamp.is_file() and stamp.read_text() == code:
            return
        say(f"exporting the model in {precision}")
        export(self._assets.checkpoint, self._assets.store, self._assets.model, precision)
        stamp.write_text(code)

    def _ct2(self, precision: str) -> None:
        def convert(folder: Path) -> None:
            from ctranslate2.converters import TransformersConverter

            converter = TransformersConverter(str(self._assets.checkpoint))
            converter.convert(str(folder), quantization=_CT2_TYPES[precision])

        _once(self._assets.ct2 / precision, convert)

    def _onnx(self, precision: str) -> None:
        """With a KV cache, by optimum's own command and with its defaults."""
        del precision  # there is one

        def convert(folder: Path) -> None:
            arguments = ["--model", str(self._assets.checkpoint), str(folder)]
            _run("optimum.exporters.onnx", "--task", "text-generation-with-past", *arguments)

        _once(self._assets.onnx, convert)

    def _gguf(self, precision: str) -> None:
        del precision  # there is one

        def convert(file: Path) -> None:
            from benchmarks.peers.llama_cpp.gguf_file import write_gguf

            write_gguf(self._assets.checkpoint, file)

        _once(self._assets.gguf, convert)


def _once(path: Path, make: Callable[[Path], None]) -> None:
    """Call `make` with a temporary path that becomes `path` if it is not there yet."""
    if path.exists():
        return
    say(f"making {path.parent.name}/{path.name} (once)")
    unfinished = path.with_name(path.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    make(unfinished)
    unfinished.rename(path)


def _exporter_hash() -> str:
    digest = hashlib.sha256()
    for pattern in _EXPORTER:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def export(
    checkpoint: Path,
    store: Path,
    model: str,
    precision: str,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run `gpt2export` as a user does. environment: more variables."""
    options = ["--store", str(store), "--id", model, "--precision", precision]
    options += ["--target", _TARGETS[precision], "--no-verify", "--force"]
    _run("gpt2export.cli", str(checkpoint), *options, environment=environment)


def _run(module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
    """Raises `RuntimeError` with what it said."""
    command = [sys.executable, "-m", module, *arguments]
    env = {**os.environ, **(environment or {})}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        raise RuntimeError(f"{module} failed:\n{done.stdout}{done.stderr}")


def write_checkpoint(folder: Path) -> None:
    """A folder as transformers saves it."""
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
