"""A Litestar app that takes the routes below /gpt2 into itself: one schema, one engine.

python examples/litestar_app.py STORE [PORT]
curl localhost:8000/gpt2/generate -d '{"model": "me/model", "prompt": "My dream is"}'
curl 'localhost:8000/dream?model=me/model'
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from litestar import Litestar, get
from litestar.exceptions import NotFoundException
from litestar.params import FromQuery

from gpt2serve import Engine, SamplingParams, create_router
from gpt2serve.errors import InvalidModelId, ModelNotFound
from gpt2serve.metrics import Metrics


def make_app(store: str) -> Litestar:
    metrics = Metrics()  # /gpt2/metrics tells about the inside of an engine that it observes
    engine = Engine(store, observer=metrics)

    @asynccontextmanager
    async def lifespan(_app: Litestar) -> AsyncIterator[None]:
        await asyncio.to_thread(engine.start)  # in a thread: it may have models to load
        try:
            yield
        finally:
            await engine.drain(timeout=45)
            engine.close()

    @get("/dream")
    async def dream(model: FromQuery[str]) -> dict[str, str]:
        params = SamplingParams(max_new_tokens=20)
        try:
            result = await asyncio.to_thread(engine.generate, model, "My dream is", params)
        except (InvalidModelId, ModelNotFound) as error:
            raise NotFoundException(str(error)) from error
        return {"text": result.generations[0].text}

    routes = create_router(engine, path="/gpt2", metrics=metrics)
    return Litestar([routes, dream], lifespan=[lifespan])


def main(store: str, port: str = "8000") -> None:
    uvicorn.run(make_app(store), port=int(port))


if __name__ == "__main__":
    main(*sys.argv[1:])
