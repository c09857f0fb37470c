"""Somebody else's web site: a few pages on an origin of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Site:
    """Serves what `pages` has by path. `origin` is what browsers call it."""

    def __init__(self, port: int) -> None:
        self.origin = f"http://127.0.0.1:{port}"
        self.pages: dict[str, tuple[str, Mapping[str, str]]] = {}

    def publish(self, html: str, path: str = "/", **headers: str) -> str:
        """The page's address. `Content_Security_Policy="..."` is a header of it."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.pages[path] = ("<!doctype html><meta charset=utf-8>" + html, named)
        return self.origin + path


@contextmanager
def running_site() -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # Browsers ask for an icon by themselves.
            html, headers = site.pages.get(self.path, ("", {}))
            body = html.encode()
            self.send_response(200)
            for name, value in {"Content-Type": "text/html", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        site = Site(server.server_port)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield site
        server.shutdown()
        thread.join()
