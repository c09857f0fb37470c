"""A real browser for tests: headless Chromium, and what it complained about.

Fixtures `browser`, `page` and `console` (conftest.py hands them to every test of this folder).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, ViewportSize

#: What tests write for people to look at; not in git.
ARTEFACTS = Path(__file__).parents[1] / "artefacts"
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
#: The browser talks to the tests' servers only.
FLAGS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDE: ViewportSize = {"width": 1280, "height": 900}
PHONE: ViewportSize = {"width": 360, "height": 740}


class Console:
    """What a page's console shows that nobody expected: errors, warnings, CSP violations."""

    def __init__(self) -> None:
        self.complaints: list[str] = []
        self._expected: list[re.Pattern[str]] = []

    def expect(self, pattern: str) -> None:
        """A complaint that matches is what the test wants, such as a request that fails."""
        self._expected.append(re.compile(pattern))

    def watch(self, page: Page) -> None:
        page.on("console", self._on_message)
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))

    def _on_message(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    @property
    def unexpected(self) -> list[str]:
        return [
            complaint
            for complaint in self.complaints
            if not any(pattern.search(complaint) for pattern in self._expected)
        ]


def chromium() -> str | None:
    """The browser's path."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


# Of a module, not of the session: playwright runs an event loop in this thread for as long as it
# is open, and tests in other files call `asyncio.run`.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = chromium()
    if program is None:
        pytest.skip("there is no browser here: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield running
        running.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A profile of its own: nothing stored, nothing cached."""
    fresh = browser.new_context(viewport=WIDE, reduced_motion="reduce")
    fresh.set_default_timeout(15_000)
    yield fresh
    fresh.close()


@pytest.fixture
def console() -> Console:
    return Console()


@pytest.fixture
def page(context: BrowserContext, console: Console) -> Iterator[Page]:
    """An empty page. The test fails if its console complained and the test did not expect it."""
    opened = context.new_page()
    console.watch(opened)
    yield opened
    assert console.unexpected == []


def screenshot(page: Page, name: str, *, full_page: bool = True) -> Path:
    """Write `ARTEFACTS/name.png`."""
    path = ARTEFACTS / f"{name}.png"
    page.screenshot(path=path, full_page=full_page)
    return path
