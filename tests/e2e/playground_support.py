"""A store for the playground's tests, and the page as its readers use it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import pytest
from playwright.sync_api import expect

from tests.conftest import SAMPLES
from tests.e2e.browser_support import chromium
from tests.e2e.server_support import Server

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

MODEL, PROMPT = "george-washington", "My fellow citizens,"
PICTURE = "https://pictures.example/face.png"
SVG = '<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>'
HTML_MODEL, GREEDY_MODEL = "tests/html", "tests/greedy"
HTML_CARD = {
    "title": "<b>Bold</b><script>alert(1)</script>",
    "handle": "<img src=x onerror=alert(1)>",
    "example_prompts": ["<script>alert(1)</script>", "& <i>more</i>"],
    "picture": PICTURE,
}
#: The second name turns around what comes after it, where it is not kept apart.
RIGHT_TO_LEFT_MODEL = "tests/right-to-left"
RIGHT_TO_LEFT_CARD = {
    "title": "\u05e9\u05dc\u05d5\u05dd",
    "handle": "@\u202eolleh",
    "example_prompts": ["\u05e9\u05dc\u05d5\u05dd,"],
}
PEOPLE = 30
EXACT_MODEL = "person"  # as are the ends of thirty ids before it
expect.set_options(timeout=15_000)


@pytest.fixture(scope="session")
def playground_store(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_store(sample_store, tmp_path_factory.mktemp("playground"))


@pytest.fixture(scope="module")
def playground_server(playground_store: Path) -> Iterator[Server]:
    if chromium() is None:
        pytest.skip("there is no browser here: apt-get install chromium")
    server = Server(playground_store)
    yield server
    server.process.kill()
    server.process.communicate()


@pytest.fixture
def site(page: Page, playground_server: Server) -> Playground:
    picture = {"content_type": "image/svg+xml", "body": SVG}
    page.context.route(PICTURE, lambda route: route.fulfill(**picture))
    return Playground(page, playground_server.url)


def build_store(samples: Path, store: Path) -> Path:
    """The samples, thirty more models with cards, and some that are odd."""
    for name in SAMPLES:
        copy_model(samples / name, store, name)
    source = samples / MODEL
    for number in range(PEOPLE):
        card = {"title": f"Person {number}", "handle": f"@person_{number}"}
        copy_model(source, store, f"people/person-{number:02}", card=card)
    copy_model(source, store, EXACT_MODEL, card={"title": "Ordinary"})
    copy_model(source, store, HTML_MODEL, card=HTML_CARD)
    copy_model(source, store, RIGHT_TO_LEFT_MODEL, card=RIGHT_TO_LEFT_CARD)
    defaults = {"do_sample": False, "temperature": 0.7, "max_new_tokens": 12}
    copy_model(source, store, GREEDY_MODEL, card={"title": "Greedy"}, generation_defaults=defaults)
    return store


def copy_model(source: Path, store: Path, model: str, **changes: dict[str, Any]) -> None:
    """The package at `source` under another id, with other words about it."""
    folder = store / model / "cpu-int8"
    shutil.copytree(source / "cpu-int8", folder)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["id"] = model
    for field, values in changes.items():
        manifest[field] = manifest[field] | values if field != "card" else values
    path.write_text(json.dumps(manifest))


class Playground:
    """What a reader can do with the page, by what they see of it."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url.rstrip("/") + "/"
        self.model = page.get_by_role("combobox", name="Model")
        self.prompt = page.get_by_role("textbox", name="Prompt")
        self.generate = page.get_by_role("button", name="Generate")
        self.stop = page.get_by_role("button", name="Stop")
        self.number = page.get_by_role("spinbutton", name="Predictions")
        self.options = page.locator("#model-list").get_by_role("option")
        self.cards = page.get_by_role("article")
        self.running = page.locator(".prediction.running")
        self.made = page.locator(".prediction .made")
        self.problem = page.get_by_role("alert")
        self.name = page.locator("#card-name")

    def open(self, **query: str) -> None:
        values = "&".join(f"{name}={quote(value)}" for name, value in query.items())
        self.page.goto(self.url + (f"?{values}" if values else ""))

    def open_model(self, model: str = MODEL, **query: str) -> None:
        self.open(model=model, **query)
        expect(self.name).to_be_visible()

    def set(self, label: str, value: str) -> None:
        """A sampling setting, by its label."""
        if not self.page.get_by_label("Temperature").is_visible():
            self.page.get_by_text("Sampling settings").click()
        field = self.page.get_by_label(label)
        field.fill(value) if field.evaluate("f => f.tagName") != "SELECT" else (
            field.select_option(value)
        )

    def run(self) -> list[str]:
        """Generate to the end; the texts."""
        self.generate.click()
        self.finish()
        return self.texts

    def finish(self) -> None:
        expect(self.running).to_have_count(0)
        expect(self.stop).to_be_hidden()

    @property
    def texts(self) -> list[str]:
        """Prompt and prediction of every card."""
        return [text or "" for text in self.page.locator(".prediction .text").all_text_contents()]

    def seed_of(self, card: Locator) -> int:
        (seed,) = re.findall(r"seed (\d+)", card.inner_text())
        return int(seed)

    def fits(self) -> bool:
        """Whether nothing has to be scrolled to the side."""
        root = "document.documentElement"
        return bool(self.page.evaluate(f"{root}.scrollWidth <= {root}.clientWidth"))


def generated(url: str, prompt: str, model: str = MODEL, **fields: Any) -> list[str]:
    """What the server itself answers."""
    body = {"model": model, "prompt": prompt, **fields}
    answer = httpx.post(f"{url}/generate", json=body, timeout=30).raise_for_status()
    return [generation["text"] for generation in answer.json()["generations"]]


@contextmanager
def streaming(server: Server, body: dict[str, Any]) -> Iterator[None]:
    """While a request of somebody else runs."""
    with (
        server.client() as client,
        client.stream("POST", "/generate", json=body | {"stream": True}) as answer,
    ):
        assert answer.status_code == 200
        yield


#: Every text that can be seen, and the contrast of its colour with what is behind it (WCAG 2).
CONTRASTS = """() => {
  const context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    return context.getImageData(0, 0, 1, 1).data;
  };
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => c / 255).map(
      (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = rgba(getComputedStyle(node).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return rgba("white");
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (texts.nextNode()) {
    const text = texts.currentNode.data.trim();
    const parent = texts.currentNode.parentElement;
    if (!text || !parent.checkVisibility()) continue;
    const [one, other] = [rgba(getComputedStyle(parent).color), behind(parent)].map(luminance);
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    found.push([text.slice(0, 40), ratio]);
  }
  return found;
}"""
