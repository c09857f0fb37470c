"""A FastAPI application with OpenAI's `/v1/completions`, streamed and whole, around a model."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, StreamingResponse

DEFAULT_TOKENS = 16


@dataclass(slots=True)
class Wish:
    """What a request asks for. prompt_tokens and tokens are for the model to fill in."""

    prompt: str
    max_tokens: int
    min_tokens: int
    seed: int | None
    prompt_tokens: int = 0
    tokens: int = 0

    @property
    def usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.tokens,
            "total_tokens": self.prompt_tokens + self.tokens,
        }


class Model(Protocol):
    def generate(self, wish: Wish) -> AsyncGenerator[str, None]:
        """Pieces of text; an async generator, which is closed if the client goes away."""


def create_app(model: Model, name: str) -> FastAPI:
    def models() -> dict[str, Any]:
        entry = {"id": name, "object": "model", "created": 0, "owned_by": "benchmark"}
        return {"object": "list", "data": [entry]}

    async def completions(body: dict[str, Any]) -> JSONResponse | StreamingResponse:
        if body.get("model") != name:
            error = {"message": f"There is no model {body.get('model')!r}.", "code": "not_found"}
            return JSONResponse({"error": error}, status_code=404)
        wish = Wish(
            prompt=body["prompt"],
            max_tokens=body.get("max_tokens", DEFAULT_TOKENS),
            min_tokens=body.get("min_tokens", 0),
            seed=body.get("seed"),
        )
        if body.get("stream"):
            return StreamingResponse(_events(model, wish, name), media_type="text/event-stream")
        text = "".join([piece async for piece in model.generate(wish)])
        return JSONResponse(_choice(name, text, _reason(wish)) | {"usage": wish.usage})

    app = FastAPI()
    app.add_api_route("/v1/models", models)
    app.add_api_route("/v1/completions", completions, methods=["POST"], response_model=None)
    return app


async def _events(model: Model, wish: Wish, name: str) -> AsyncGenerator[str, None]:
    async with aclosing(model.generate(wish)) as pieces:
        async for piece in pieces:
            if piece:
                yield _event(_choice(name, piece, None))
    yield _event(_choice(name, "", _reason(wish)))
    yield _event(_choice(name, "", None) | {"choices": [], "usage": wish.usage})
    yield "data: [DONE]\n\n"


def _event(payload: dict[str, Any]) -> str:
    return f"data: {json.dumps(payload)}\n\n"


def _choice(name: str, text: str, reason: str | None) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
    return {
        "id": "cmpl-0",
        "object": "text_completion",
        "created": int(time.time()),
        "model": name,
        "choices": [choice],
    }


def _reason(wish: Wish) -> str:
    return "length" if wish.tokens >= wish.max_tokens else "stop"


def arguments() -> argparse.Namespace:
    """The options of every such server."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of transformers")
    parser.add_argument("--converted", type=Path, help="the model in the library's own format")
    parser.add_argument("--name", required=True, help="the model's id")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    return parser.parse_args()


def serve(model: Model, name: str, port: int) -> None:
    uvicorn.run(create_app(model, name), host="127.0.0.1", port=port, log_level="warning")
