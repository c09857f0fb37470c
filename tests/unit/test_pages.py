"""The playground's page and files: what is served, and with which headers."""

from __future__ import annotations

import re

import pytest
from litestar import Litestar

from gpt2serve.api.pages import page_files
from gpt2serve.api.router import build_router
from gpt2serve.app import service_of
from tests.unit.api_support import Served, assert_problem

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


def policy(header: str) -> dict[str, list[str]]:
    directives = (directive.split() for directive in header.split(";"))
    return {name: sources for name, *sources in directives}


def references() -> set[str]:
    """What the page and its modules and styles refer to."""
    text = "\n".join(file.content.decode() for file in page_files().values())
    page = page_files()["index.html"].content.decode()
    return {
        *re.findall(r'(?:src|href)="playground/([^"]*)"', page),
        *re.findall(r'from "\./([^"]*)"', text),
    }


@pytest.mark.parametrize("accept", [BROWSER["Accept"], "*/*", "text/html", "image/png"])
def test_the_page(accept: str) -> None:
    answer = Served().request("GET", "/", headers={"Accept": accept})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["vary"] == "Accept"
    assert answer.text.startswith("<!doctype html>")


@pytest.mark.parametrize("accept", ["application/json", "application/json, text/html;q=0.5"])
def test_programs_that_want_json_get_json(accept: str) -> None:
    answer = Served().request("GET", "/", headers={"Accept": accept})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["vary"] == "Accept"
    assert answer.json()["generate"] == "POST /generate"


def test_the_policy_lets_in_only_what_the_server_gave() -> None:
    answer = Served().request("GET", "/", headers=BROWSER)
    assert policy(answer.headers["content-security-policy"]) == {
        "default-src": ["'none'"],
        "script-src": ["'self'"],
        "style-src": ["'self'"],
        "connect-src": ["'self'"],
        "img-src": ["'self'", "https:", "data:"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "frame-ancestors": ["'none'"],
        "require-trusted-types-for": ["'script'"],
        "trusted-types": ["'none'"],
    }
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_every_file_is_used_and_every_reference_leads_to_a_file() -> None:
    # Nothing here refers to these: people open the first, their pages load the second, and the
    # third belongs to the page at /schema/docs.
    elsewhere = {"index.html", "embed.js", "reference.css"}
    assert references() == set(page_files()) - elsewhere


@pytest.mark.parametrize(("tag", "status"), [("", 200), (page_files()["embed.js"].etag, 304)])
def test_pages_of_other_origins_may_load_the_component(tag: str, status: int) -> None:
    headers = {"Origin": "https://page.example", "If-None-Match": tag}
    answer = Served().request("GET", "/playground/embed.js", headers=headers)
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["cross-origin-resource-policy"] == "cross-origin"


def test_the_page_itself_is_for_no_other_origin() -> None:
    assert "access-control-allow-origin" not in Served().request("GET", "/").headers


def test_no_script_or_style_is_inline_and_nothing_parses_html() -> None:
    page = page_files()["index.html"].content.decode()
    assert re.findall(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=|javascript:", page) == []
    for name, file in page_files().items():
        if name.endswith(".js"):
            parsers = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\("
            assert re.findall(parsers, file.content.decode()) == [], name


def test_no_file_names_another_server() -> None:
    for name, file in page_files().items():
        addresses = re.findall(
            r"(?:https?:)?//[a-z0-9][\w.-]+\.\w+[^\s\"']*", file.content.decode()
        )
        assert [at for at in addresses if at != "http://www.w3.org/2000/svg"] == [], name


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("main.js", "text/javascript; charset=utf-8"),
        ("style.css", "text/css; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
    ],
)
def test_files_have_their_types(name: str, kind: str) -> None:
    answer = Served().request("GET", f"/playground/{name}")
    assert answer.content == page_files()[name].content
    assert answer.headers["content-type"] == kind
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/", "/playground/main.js"])
def test_what_the_browser_has_is_not_sent_again(path: str) -> None:
    served = Served()
    etag = served.request("GET", path).headers["etag"]
    for tags in (etag, f"W/{etag}", f'"other", {etag}'):
        answer = served.request("GET", path, headers={"If-None-Match": tags})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    assert served.request("GET", path, headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "name",
    ["index.html", "none.js", "__init__.py", "..%2Fapp.py", "../app.py", "%2e%2e/app.py", ".", ""],
)
def test_no_other_file_is_reachable(name: str) -> None:
    assert_problem(Served().request("GET", f"/playground/{name}"), 404, "not_found")


def test_below_another_path_the_page_has_a_slash_at_its_end() -> None:
    service = service_of(Served().app)
    app = Litestar([build_router(service, "/ml")], openapi_config=None)

    def ask(path: str) -> tuple[int, str]:
        answer = Served.request(_Mounted(app), "GET", path, headers=BROWSER)
        return answer.status_code, answer.headers.get("location", "")

    assert ask("/ml?model=a%2Fb") == (307, "./ml/?model=a%2Fb")
    assert ask("/ml/")[0] == 200
    assert ask("/ml/playground/main.js")[0] == 200


class _Mounted(Served):
    def __init__(self, app: Litestar) -> None:
        self.app = app


def test_the_page_leads_to_the_reference() -> None:
    served = Served()
    (address,) = re.findall(r'<a href="([^"]*)"', served.request("GET", "/").text)
    answer = served.request("GET", f"/{address}")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")


def test_the_schema_does_not_speak_of_the_page() -> None:
    paths = Served().request("GET", "/schema").json()["paths"]
    assert not [path for path in paths if path == "/" or path.startswith("/playground")]
