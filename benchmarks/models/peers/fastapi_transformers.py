"""FastAPI and transformers with a dict of models, least recently used out: what people write
first. One lock around everything, because neither the dict nor the seed is thread-safe."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI

from benchmarks.models.peers import wire
from benchmarks.models.peers.transformers_model import TransformersModel


class Models:
    """Holds `limit` models at most."""

    def __init__(self, checkpoints: Path, limit: int) -> None:
        self._checkpoints = checkpoints
        self._limit = limit
        self._loaded: OrderedDict[str, wire.Loaded] = OrderedDict()

    def get(self, name: str) -> wire.Loaded:
        if name in self._loaded:
            self._loaded.move_to_end(name)
            return self._loaded[name]
        if len(self._loaded) >= self._limit:
            self._loaded.popitem(last=False)
        self._loaded[name] = wire.Loaded(TransformersModel(self._checkpoints / name))
        return self._loaded[name]


def create_app(models: Models) -> FastAPI:
    app = FastAPI()
    lock = threading.Lock()

    @app.get("/ready")
    def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/generate")
    def generate(body: dict[str, Any]) -> dict[str, Any]:  # in FastAPI's thread pool
        wish = wire.Wish.read(body)
        asked = time.perf_counter()
        with lock:
            loaded = models.get(wish.model)
            return wire.answer(wish, loaded.model.generate(wish), loaded.waited(asked))

    return app


def main() -> None:
    args = wire.parser("fastapi_transformers", __doc__).parse_args()
    torch.set_num_threads(args.threads)
    app = create_app(Models(args.checkpoints, args.cache))
    uvicorn.run(app, host="127.0.0.1", port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
