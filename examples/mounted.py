"""The web routes inside another ASGI app, below /gpt2.

    python examples/mounted.py STORE [PORT]
    curl localhost:8000/gpt2/generate -d '{"model": "me/model", "prompt": "My dream is"}'

A Litestar app takes the routes directly:
`Litestar([create_router(engine, path="/gpt2"), ...])`.
"""

import sys
from typing import Any

import uvicorn

from gpt2serve import create_app


def make_app(store: str) -> Any:
    """An app of one's own, written in plain ASGI."""
    gpt2 = create_app(store)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            # The mounted app must hear of start and end: it starts its engine, and drains it.
            await gpt2(scope, receive, send)
        elif scope["path"].startswith("/gpt2/"):
            await gpt2(dict(scope, root_path=scope.get("root_path", "") + "/gpt2"), receive, send)
        else:
            await hello(send)

    return app


async def hello(send: Any) -> None:
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"This is another app.\n"})


def main(store: str, port: str = "8000") -> None:
    uvicorn.run(make_app(store), port=int(port))


if __name__ == "__main__":
    main(*sys.argv[1:])
