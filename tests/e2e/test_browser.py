"""The browser that the other tests use is a real one, and notices what it should."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.e2e.browser_support import Console, screenshot

if TYPE_CHECKING:
    from playwright.sync_api import Page


def test_a_page_is_drawn(page: Page) -> None:
    page.set_content("<h1>Hello</h1>")
    assert page.evaluate("document.querySelector('h1').getBoundingClientRect().height") > 0
    assert screenshot(page, "browser").read_bytes().startswith(b"\x89PNG")


def test_complaints_are_noticed(page: Page, console: Console) -> None:
    console.expect("on purpose")
    page.set_content("<p>")
    page.evaluate("console.error('on purpose'); console.warn('by accident'); console.log('fine')")
    page.evaluate("setTimeout(() => { throw new Error('broken') })")
    page.wait_for_function("new Promise(done => setTimeout(() => done(true), 10))")
    assert console.unexpected == ["by accident", "uncaught: broken"]
    console.expect("by accident|broken")
