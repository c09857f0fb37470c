"""Fixtures of the tests with server processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.browser_support import browser, console, context, page
from tests.e2e.playground_support import playground_server, playground_store, site
from tests.e2e.server_support import Server

__all__ = [
    "browser",
    "console",
    "context",
    "page",
    "playground_server",
    "playground_store",
    "serve",
    "site",
]


@pytest.fixture
def serve(sample_store: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*options: str, store: Path | str = sample_store, wait: bool = True) -> Server:
        servers.append(Server(store, *options, wait=wait))
        return servers[-1]

    yield start
    for server in servers:
        server.process.kill()
        server.process.communicate()
