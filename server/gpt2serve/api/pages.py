"""The playground: a page at `/`, and the files that it is made of.

The files are read once. They refer to each other and to the API by relative addresses, so the
router can be mounted anywhere.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType
from typing import Any, NamedTuple

from litestar import Request, Response, get
from litestar.exceptions import NotFoundException
from litestar.params import FromPath
from litestar.response import Redirect

PAGE = "index.html"
_MEDIA_TYPES = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}

#: Nothing but this server's own files and answers; model cards' pictures may be anywhere. The
#: last two lines make a text that is taken for HTML an error, in browsers that know them.
_CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' https: data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    # Kept, but asked about each time: an answer of 304 if nothing has changed.
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
#: Pages of other origins load `embed.js` and what it imports. There is nothing secret in them.
_FILE_HEADERS = {
    **_HEADERS,
    "Access-Control-Allow-Origin": "*",
    "Cross-Origin-Resource-Policy": "cross-origin",
}
_PAGE_HEADERS = {
    **_HEADERS,
    "Content-Security-Policy": _CONTENT_SECURITY_POLICY,
    "Vary": "Accept",
}


class PageFile(NamedTuple):
    content: bytes
    media_type: str
    etag: str


@functools.cache
def page_files() -> Mapping[str, PageFile]:
    """All there is to serve, by name: a name that is not in here leads nowhere."""
    folder = resources.files("gpt2serve") / "playground"
    return MappingProxyType(
        {
            entry.name: _page_file(entry.name, entry.read_bytes())
            for entry in folder.iterdir()
            if _suffix(entry.name) in _MEDIA_TYPES
        }
    )


def _page_file(name: str, content: bytes) -> PageFile:
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return PageFile(content, _MEDIA_TYPES[_suffix(name)], etag)


def _suffix(name: str) -> str:
    return name.rpartition(".")[2]


@get("/", include_in_schema=False)
async def index(request: Request[Any, Any, Any]) -> Response[Any]:
    """The page; for programs that would rather have JSON, where things are."""
    wanted = request.accept.best_match(["text/html", "application/json"], default="text/html")
    if wanted == "application/json":
        return Response(_INDEX, headers={"Vary": "Accept"})
    path = request.scope.get("raw_path") or b"/"
    if not path.endswith(b"/"):  # the page's relative addresses would be one level too high
        return _redirect_to_folder(path.decode("ascii"), request.url.query)
    return _answer(request, page_files()[PAGE], _PAGE_HEADERS)


@get("/playground/{name:str}", include_in_schema=False)
async def page_file(request: Request[Any, Any, Any], name: FromPath[str]) -> Response[Any]:
    file = page_files().get(name)
    if file is None or name == PAGE:  # the page has one address
        raise NotFoundException
    return _answer(request, file, _FILE_HEADERS)


_INDEX = {
    "name": "gpt2serve",
    "generate": "POST /generate",
    "models": "/models",
    "schema": "/schema",
    "reference": "/schema/docs",
    "health": "/healthz",
    "readiness": "/readyz",
    "metrics": "/metrics",
}


def _redirect_to_folder(path: str, query: str) -> Response[Any]:
    last = path.rpartition("/")[2]
    return Redirect(f"./{last}/" + (f"?{query}" if query else ""), status_code=307)


def _answer(
    request: Request[Any, Any, Any], file: PageFile, headers: Mapping[str, str]
) -> Response[Any]:
    headers = {**headers, "ETag": file.etag}
    given = request.headers.get("If-None-Match", "")
    # A proxy that compresses makes a weak tag of ours.
    if file.etag in (tag.strip().removeprefix("W/") for tag in given.split(",")):
        return Response(None, status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
