"""This project's app under other HTTP servers: python -m benchmarks.profile.server NAME --port P

NAME is one of uvicorn-h11, uvicorn-httptools, uvicorn-uvloop, granian. The settings come from
the environment, as `create_app()` reads them. The real command is `gpt2serve`; this exists to
choose what it runs on (docs/decisions/0010-http-server.md).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

APP = "gpt2serve.app:create_app"


def uvicorn(loop: str, http: str) -> Callable[[int], None]:
    def run(port: int) -> None:
        import uvicorn

        uvicorn.run(APP, factory=True, port=port, loop=loop, http=http, access_log=False)

    return run


def granian(port: int) -> None:
    from granian import Granian
    from granian.constants import Interfaces

    Granian(APP, factory=True, port=port, interface=Interfaces.ASGI, workers=1).serve()


SERVERS: dict[str, Callable[[int], None]] = {
    "uvicorn-h11": uvicorn("asyncio", "h11"),
    "uvicorn-httptools": uvicorn("asyncio", "httptools"),
    "uvicorn-uvloop": uvicorn("uvloop", "httptools"),
    "granian": granian,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=SERVERS)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    SERVERS[args.name](args.port)


if __name__ == "__main__":
    main()
