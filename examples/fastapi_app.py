"""A FastAPI app with the web routes mounted below /gpt2, and a route that uses the engine itself.

python examples/fastapi_app.py STORE [PORT]
curl localhost:8000/gpt2/generate -d '{"model": "me/model", "prompt": "My dream is"}'
curl 'localhost:8000/dream?model=me/model'
"""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI, HTTPException

from gpt2serve import Engine, SamplingParams, create_app
from gpt2serve.errors import InvalidModelId, ModelNotFound


def make_app(store: str) -> FastAPI:
    gpt2 = create_app(store)
    engine: Engine = gpt2.state.engine

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        # FastAPI does not tell the apps in it that it starts and ends. This starts the engine; at
        # the end it waits for running requests and closes the engine.
        async with gpt2.lifespan():
            yield

    app = FastAPI(lifespan=lifespan)
    app.mount("/gpt2", gpt2)

    @app.get("/dream")
    def dream(model: str) -> dict[str, str]:
        # Not `async`: FastAPI gives it a thread, where it may wait for the whole text.
        try:
            result = engine.generate(model, "My dream is", SamplingParams(max_new_tokens=20))
        except (InvalidModelId, ModelNotFound) as error:
            raise HTTPException(404, str(error)) from error
        return {"text": result.generations[0].text}

    return app


def main(store: str, port: str = "8000") -> None:
    uvicorn.run(make_app(store), port=int(port))


if __name__ == "__main__":
    main(*sys.argv[1:])
