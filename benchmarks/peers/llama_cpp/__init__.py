"""llama.cpp through node-llama-cpp: one context with a sequence for each prompt.

As the documentation of node-llama-cpp advises (Using Batching; Llama and context options):
sequences of one context are evaluated together in batches of up to 512 tokens, its default; the
number of threads is given to the context; prebuilt binaries; flash attention as it chooses.
The KV cache is in fp16, its default. A context is made before the clock starts, as a server does.

`program.mjs` does the work; this is its near side.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.peers import NODE_MODULES, TOP_K, timing

_PROGRAM = Path(__file__).with_name("program.mjs")
_PATIENCE = 10.0
#: llama.cpp takes seeds of 32 bits.
_SEEDS = 2**32


class Peer:
    program = _PROGRAM

    def __init__(self, precision: str, threads: int) -> None:
        del precision  # the file says it
        node = shutil.which("node")
        if node is None:
            raise RuntimeError("node is not installed; llama.cpp runs in it.")
        module = NODE_MODULES / "node-llama-cpp" / "dist" / "index.js"
        self._process = subprocess.Popen(
            [node, str(self.program), str(module), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._call("ready")

    def load(self, assets: dict[str, Any]) -> dict[str, float]:
        """The model, and a context for one text of any length."""
        begin = time.perf_counter()
        parts: dict[str, float] = self._call("load", path=assets["gguf"])
        return {"seconds": time.perf_counter() - begin, **parts}

    def unload(self) -> None:
        self._call("unload")

    def generate(
        self, prompts: list[dict[str, Any]], tokens: int, seeds: list[int] | None = None
    ) -> dict[str, Any]:
        made = self._call(
            "generate",
            prompts=[prompt["ids"] for prompt in prompts],
            tokens=tokens,
            topK=TOP_K,
            seeds=[seed % _SEEDS for seed in seeds] if seeds else None,
        )
        result = timing.report(made["begin"], made["end"], made["stamps"], made["ids"])
        return timing.check(result, len(prompts), tokens)

    def close(self) -> None:
        """The program ends with its input."""
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()

    def _call(self, method: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"method": method, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"node ended with status {self._process.wait(_PATIENCE)}.")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]
