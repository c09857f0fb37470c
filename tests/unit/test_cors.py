"""CORS: which origins may read what, in our app and in one that the router was put into."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from litestar import Litestar

from gpt2serve import create_router, errors
from gpt2serve.api.cors import CorsMiddleware
from gpt2serve.errors import SettingsError
from gpt2serve.origins import check_origins
from gpt2serve.settings import server_settings
from tests.unit.api_support import GOOD, FakeEngine, RawClient, Served, assert_problem, send
from tests.unit.test_api_keys import CountingEngine
from tests.unit.test_key_file import hashed

PAGE, STRANGER = "https://page.example", "https://stranger.example"
ALLOW = "access-control-allow-origin"
PUBLIC = ("/generate", "/models", "/v1")


def cors_headers(answer: httpx.Response) -> dict[str, str]:
    return {
        name: value
        for name, value in answer.headers.items()
        if name.startswith("access-control-") or name in ("vary", "timing-allow-origin")
    }


def preflight(served: Served, path: str, origin: str = PAGE, method: str = "POST") -> Any:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,content-type,traceparent,x-request-id",
    }
    return served.request("OPTIONS", path, headers=headers)


@pytest.fixture
def served() -> Served:
    return Served(cors_origins=(PAGE, "http://localhost:3000"))


def test_off_by_default() -> None:
    served = Served()
    assert cors_headers(served.request("GET", "/models", headers={"Origin": PAGE})) == {}
    assert cors_headers(preflight(served, "/generate")) == {}


@pytest.mark.parametrize("origin", [PAGE, "http://localhost:3000"])
def test_an_allowed_origin_may_ask(served: Served, origin: str) -> None:
    answer = preflight(served, "/generate", origin)
    assert answer.status_code == 204
    assert answer.content == b""
    assert cors_headers(answer) == {
        ALLOW: origin,
        "access-control-allow-methods": "GET, POST",
        # `*` does not cover Authorization: the Fetch standard wants it named.
        "access-control-allow-headers": "*, Authorization",
        "access-control-max-age": "7200",
        "vary": "Origin",
    }


@pytest.mark.parametrize("origin", [PAGE, "http://localhost:3000"])
def test_an_allowed_origin_may_read(served: Served, origin: str) -> None:
    answer = served.request("POST", "/generate", json=GOOD, headers={"Origin": origin})
    assert answer.status_code == 200
    assert cors_headers(answer) == {
        ALLOW: origin,
        "access-control-expose-headers": "*",
        "timing-allow-origin": origin,
        "vary": "Origin",
    }


def test_a_stream_may_be_read(served: Served) -> None:
    async def main() -> None:
        client = RawClient(served.app, GOOD | {"stream": True}, headers={"Origin": PAGE})
        await client.task
        headers = dict(client.sent[0]["headers"])
        assert headers[b"content-type"].startswith(b"text/event-stream")
        assert headers[ALLOW.encode()] == PAGE.encode()

    asyncio.run(main())


@pytest.mark.parametrize(
    "origin",
    [
        STRANGER,
        "null",
        "",
        "*",
        PAGE + ".evil.example",
        PAGE + ":8443",
        PAGE.replace("https", "http"),
        PAGE.upper(),
        PAGE + "/",
    ],
)
def test_other_origins_learn_nothing(served: Served, origin: str) -> None:
    assert cors_headers(preflight(served, "/generate", origin)) == {"vary": "Origin"}
    answer = served.request("GET", "/models", headers={"Origin": origin})
    assert cors_headers(answer) == {"vary": "Origin"}


def test_caches_are_told_where_there_is_no_origin_too(served: Served) -> None:
    assert cors_headers(served.request("GET", "/models")) == {"vary": "Origin"}


def test_a_star_lets_all_in() -> None:
    served = Served(cors_origins=("*",))
    for origin in (PAGE, STRANGER, "null"):
        answer = served.request("GET", "/models", headers={"Origin": origin})
        assert cors_headers(answer) == {
            ALLOW: "*",
            "access-control-expose-headers": "*",
            "timing-allow-origin": "*",
        }
        assert cors_headers(preflight(served, "/generate", origin))[ALLOW] == "*"


def test_never_with_cookies(served: Served) -> None:
    headers = {"Origin": PAGE, "Cookie": "a=b"}
    for origins in ((PAGE,), ("*",)):
        answer = Served(cors_origins=origins).request("GET", "/models", headers=headers)
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    ("engine", "body", "status", "code"),
    [
        (FakeEngine(), GOOD | {"temperature": -1}, 422, "invalid_value"),
        (FakeEngine(), GOOD | {"extra": 1}, 422, "invalid_value"),
        (FakeEngine(fails=errors.ModelNotFound("me/model")), GOOD, 404, "model_not_found"),
        (FakeEngine(refuses=errors.Overloaded("full", retry_after=3.0)), GOOD, 429, "overloaded"),
        (FakeEngine(fails=ValueError("a secret")), GOOD, 500, "internal_error"),
        (FakeEngine(), GOOD | {"prompt": "x" * 5000}, 413, "body_too_large"),
    ],
)
def test_errors_may_be_read(
    engine: FakeEngine, body: dict[str, Any], status: int, code: str
) -> None:
    served = Served(engine, cors_origins=(PAGE,), max_body_bytes=4096)
    answer = served.request("POST", "/generate", json=body, headers={"Origin": PAGE})
    assert_problem(answer, status, code)
    assert answer.headers[ALLOW] == PAGE


def test_with_api_keys(tmp_path: Path) -> None:
    """A browser asks without the key; what it is told about keys, the page may read."""
    keys = tmp_path / "keys"
    keys.write_text(f"{hashed('a-key')} page rate=60000\n")
    served = Served(CountingEngine(), cors_origins=(PAGE,), api_key_file=keys)
    assert preflight(served, "/generate").status_code == 204
    for sent, status in (({}, 401), ({"Authorization": "Bearer a-key"}, 200)):
        answer = served.request("POST", "/generate", json=GOOD, headers={"Origin": PAGE} | sent)
        assert answer.status_code == status
        assert answer.headers[ALLOW] == PAGE
        assert answer.headers["access-control-expose-headers"] == "*"
    assert "x-ratelimit-limit-tokens" in answer.headers


def routes(app: Litestar) -> Iterator[tuple[str, str]]:
    """Path and method of every route, with something in place of each parameter."""
    for route in app.routes:
        path = "/".join("x" if "{" in part else part for part in route.path.split("/"))
        for method in getattr(route, "methods", ()):
            if method in ("GET", "POST"):
                yield path, method


def test_what_is_public_and_what_is_not() -> None:
    served = Served(cors_origins=("*",), admin_key="correct-horse-battery")
    found = list(routes(served.app))
    paths = {path for path, _ in found}
    assert {"/generate", "/models/x", "/v1/models", "/metrics", "/admin/models/x/x"} <= paths
    for path, method in found:
        allowed = ALLOW in preflight(served, path, method=method).headers
        assert allowed == path.startswith(PUBLIC), path


@pytest.mark.parametrize("path", ["/metrics", "/admin/models/a/info", "/readyz"])
def test_what_operators_read_is_for_no_page(path: str) -> None:
    served = Served(cors_origins=("*",), admin_key="correct-horse-battery")
    key = {"Authorization": "Bearer correct-horse-battery"}
    answer = served.request("GET", path, headers={"Origin": PAGE, **key})
    assert answer.status_code == 200
    assert cors_headers(answer) == {}


def test_in_a_litestar_app_below_a_path() -> None:
    engine: Any = FakeEngine()
    settings = server_settings(cors_origins=(PAGE,))
    app = Litestar([create_router(engine, path="/gpt2", server_settings=settings)])

    async def ask(method: str, path: str, **options: Any) -> httpx.Response:
        return await send(app, method, path, headers={"Origin": PAGE, **options})

    answer = asyncio.run(
        ask("OPTIONS", "/gpt2/generate", **{"Access-Control-Request-Method": "POST"})
    )
    assert answer.headers["access-control-allow-methods"] == "GET, POST"
    assert asyncio.run(ask("GET", "/gpt2/models")).headers[ALLOW] == PAGE
    # The app around it has its own rules.
    assert ALLOW not in asyncio.run(ask("GET", "/other")).headers


@pytest.mark.parametrize(
    "origin",
    [
        "https://example.com",
        "http://localhost:3000",
        "https://xn--mnchen-3ya.example",
        "http://127.0.0.1:8000",
        "http://[::1]:8000",
        "https://a_b.example:65535",
        "*",
    ],
)
def test_origins(origin: str) -> None:
    assert server_settings(cors_origins=[origin]).cors_origins == (origin,)


@pytest.mark.parametrize(
    "origin",
    [
        "example.com",
        "https://example.com/",
        "https://example.com/path",
        "https://Example.com",
        "https://*.example.com",
        "https://example.com:443",
        "http://example.com:80",
        "https://example.com:0443",
        "https://example.com:65536",
        "https://user@example.com",
        "https://münchen.example",
        "https://example..com",
        "https://example.com\n",
        "ftp://example.com",
        "https://",
        "null",
        "",
    ],
)
def test_what_is_no_origin(origin: str) -> None:
    with pytest.raises(SettingsError, match=r"cors_origins: .* is not an origin"):
        server_settings(cors_origins=[PAGE, origin])


def test_a_star_stands_alone() -> None:
    with pytest.raises(SettingsError, match="must be the only one"):
        server_settings(cors_origins=["*", PAGE])


def test_settings_that_were_made_by_hand_are_checked_too() -> None:
    with pytest.raises(SettingsError, match="is not an origin"):
        CorsMiddleware(["https://example.com/"])


@given(st.text())
def test_any_text_is_an_origin_or_refused(text: str) -> None:
    try:
        check_origins([text])
    except SettingsError:
        return
    # What was let through fits into a header, and is nothing but an origin.
    assert text == "*" or (text.isascii() and text.count("/") == 2 and not text.split()[1:])
