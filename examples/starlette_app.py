"""A Starlette app with the web routes mounted below /gpt2, and a route that streams by itself.

python examples/starlette_app.py STORE [PORT]
curl localhost:8000/gpt2/generate -d '{"model": "me/model", "prompt": "My dream is"}'
curl -N 'localhost:8000/dream?model=me/model'
"""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from gpt2serve import Engine, Generation, SamplingParams, TokenEvent, create_app
from gpt2serve.errors import InvalidModelId, ModelNotFound

Event = TokenEvent | Generation
PROMPT, PARAMS = "My dream is", SamplingParams(max_new_tokens=20)


def make_app(store: str) -> Starlette:
    gpt2 = create_app(store)
    engine: Engine = gpt2.state.engine

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        # Starlette does not tell the apps in it that it starts and ends. This starts the engine;
        # at the end it waits for running requests and closes the engine.
        async with gpt2.lifespan():
            yield

    async def dream(request: Request) -> Response:
        events = engine.stream(request.query_params["model"], PROMPT, PARAMS)
        try:
            # Whatever is refused is refused before the first event, when there is still a status.
            first = await anext(events)
        except (InvalidModelId, ModelNotFound) as error:
            return PlainTextResponse(str(error), status_code=404)
        return StreamingResponse(text(first, events), media_type="text/plain")

    return Starlette(routes=[Mount("/gpt2", gpt2), Route("/dream", dream)], lifespan=lifespan)


async def text(first: Event, events: AsyncIterator[Event]) -> AsyncIterator[str]:
    """The text as it is made. If the client leaves, the request ends."""
    yield PROMPT
    event: Event | None = first
    while isinstance(event, TokenEvent):
        yield event.token.text
        event = await anext(events, None)


def main(store: str, port: str = "8000") -> None:
    uvicorn.run(make_app(store), port=int(port))


if __name__ == "__main__":
    main(*sys.argv[1:])
