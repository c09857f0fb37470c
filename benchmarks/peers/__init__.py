"""The systems that are compared. Each is a module with a class `Peer`, in a process of its own:

    with Worker(system.target, {"precision": system.precision, "threads": 2}) as worker:
        worker.call("load", assets=assets.arguments)
        worker.call("generate", prompts=prompts, tokens=32)

    class Peer:
        __init__(precision, threads)    imports what it needs and loads nothing
        load(assets)                    {"seconds": ...} and the parts that the system tells of
        unload()                        gives the memory back
        generate(prompts, tokens, seeds=None)
        close()

`generate` continues every prompt, {"text", "ids"}, by exactly `tokens` tokens, drawn with top_k 50
at temperature 1; all prompts are handed over at once. It returns

    seconds, first_seconds         until everything was there; until every text had a token
    decode_seconds, decode_steps   the time in which all texts grew together, and by how many tokens
    lengths, ids                   number of new tokens and their ids, for each prompt

A system that takes prompts in turn has no such time if the first text ends before the last one
begins: then there are 0 steps. gpt2serve gives ids only if there are `seeds`, since it computes
probabilities with them. seeds: one for each prompt; a system that has one seed for a batch
takes the first.

Heavy imports are inside the classes.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata

from benchmarks.common.measuring import say
from benchmarks.common.model import CACHE

TOP_K = 50
#: The largest batch that is measured; also what systems that have a limit are told to allow.
LARGEST_BATCH = 64
#: Where `make bench-node` installs node-llama-cpp.
NODE_MODULES = CACHE / "node" / "node_modules"
#: vLLM wants a PyTorch of its own, so it has an environment of its own: benchmarks/gpu.md.
VLLM_PYTHON = CACHE / "vllm" / "bin" / "python"


@dataclass(frozen=True)
class System:
    """`name` is the one in tables and for --skip; `package` is what must be installed.

    format: what `model.prepare` must make for it, or "" if the checkpoint is enough.
    """

    name: str
    target: str
    package: str
    install: str
    format: str = ""
    device: str = "cpu"

    @property
    def precision(self) -> str:
        return self.name.split()[-1]

    @property
    def python(self) -> str:
        """The interpreter that it runs in."""
        return str(VLLM_PYTHON) if self.package == "vllm" else sys.executable

    @property
    def is_installed(self) -> bool:
        if self.package == "node-llama-cpp":
            has_program = shutil.which("node") and (NODE_MODULES / self.package).is_dir()
            return bool(has_program) and importlib.util.find_spec("gguf") is not None
        if self.package == "vllm":
            return VLLM_PYTHON.exists()
        return importlib.util.find_spec(self.package) is not None


ENGINE_INT8, ENGINE_FP32 = "gpt2serve int8", "gpt2serve fp32"
TRANSFORMERS, OPTIMUM = "transformers fp32", "optimum fp32"
CT2_INT8, CT2_FP32 = "ctranslate2 int8", "ctranslate2 fp32"
LLAMA_CPP = "llama.cpp q8_0"
ENGINE_CUDA, TRANSFORMERS_CUDA, VLLM = "gpt2serve fp16", "transformers fp16", "vllm fp16"

_SERVER, _TORCH = "pip install -e .", "pip install -e '.[export]'"
_BENCH = "pip install -e '.[bench]'"
_NODE = f"make bench-node (needs node and npm); {_BENCH}"
_GPU = "see benchmarks/gpu.md"

_OURS, _HF = "benchmarks.peers.gpt2serve", "benchmarks.peers.transformers"
_ORT, _CT2 = "benchmarks.peers.optimum:Peer", "benchmarks.peers.ctranslate2:Peer"
_LLAMA, _VLLM = "benchmarks.peers.llama_cpp:Peer", "benchmarks.peers.vllm:Peer"

SYSTEMS = (
    System(ENGINE_INT8, f"{_OURS}:Peer", "gpt2serve", _SERVER, "package-int8"),
    System(ENGINE_FP32, f"{_OURS}:Peer", "gpt2serve", _SERVER, "package-fp32"),
    System(TRANSFORMERS, f"{_HF}:Peer", "transformers", _TORCH),
    System(OPTIMUM, _ORT, "optimum", _TORCH, "onnx-fp32"),
    System(CT2_INT8, _CT2, "ctranslate2", _BENCH, "ct2-int8"),
    System(CT2_FP32, _CT2, "ctranslate2", _BENCH, "ct2-fp32"),
    System(LLAMA_CPP, _LLAMA, "node-llama-cpp", _NODE, "gguf-q8_0"),
)

#: Not measured yet: benchmarks/gpu.md.
CUDA_SYSTEMS = (
    System(ENGINE_CUDA, f"{_OURS}:CudaPeer", "gpt2serve", _GPU, "package-fp16", "cuda"),
    System(TRANSFORMERS_CUDA, f"{_HF}:CudaPeer", "transformers", _GPU, "", "cuda"),
    System(VLLM, _VLLM, "vllm", _GPU, "", "cuda"),
)


def installed(systems: Iterable[System]) -> list[System]:
    """Those that can run here; says how to get the others."""
    chosen = list(systems)
    for system in chosen:
        if not system.is_installed:
            say(f"{system.name} is skipped: {system.package} is missing; {system.install}")
    return [system for system in chosen if system.is_installed]


def versions(systems: Iterable[System]) -> dict[str, str]:
    """Of packages that are not in this Python's environment, for a result's header."""
    packages = {system.package for system in systems}
    found = {}
    if "node-llama-cpp" in packages:
        text = (NODE_MODULES / "node-llama-cpp" / "package.json").read_text(encoding="utf-8")
        found["node-llama-cpp"] = json.loads(text)["version"]
    if "vllm" in packages:
        site_packages = [str(path) for path in VLLM_PYTHON.parents[1].glob("lib/*/site-packages")]
        found |= {
            one.name: one.version
            for one in metadata.distributions(path=site_packages)
            if one.name == "vllm"
        }
    return found
