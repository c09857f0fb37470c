"""`generate` of transformers with onnxruntime, by optimum.

As its documentation advises (Export a model to ONNX; ONNX Runtime models): exported once by its
own command for the task text-generation-with-past, that is with a KV cache; its defaults for the
rest, among them bindings of inputs and outputs, which it uses on CUDA only. Threads are a
session option of onnxruntime.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.peers import transformers


class Peer(transformers.Peer):
    def __init__(self, precision: str, threads: int) -> None:
        super().__init__(precision, threads)
        import onnxruntime
        from optimum.onnxruntime import ORTModelForCausalLM

        self._class = ORTModelForCausalLM
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads

    def load(self, assets: dict[str, Any]) -> dict[str, float]:
        begin = time.perf_counter()
        self._model = self._class.from_pretrained(assets["onnx"], session_options=self._options)
        return {"seconds": time.perf_counter() - begin}
