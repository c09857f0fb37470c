"""The playground as a page: how it looks, what it lets in, what it hands on.

That it works below another path is in test_mounted.py.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from tests.e2e.browser_support import PHONE, WIDE, Console, screenshot
from tests.e2e.playground_support import (
    CONTRASTS,
    HTML_CARD,
    HTML_MODEL,
    PICTURE,
    PROMPT,
    RIGHT_TO_LEFT_CARD,
    RIGHT_TO_LEFT_MODEL,
    Playground,
    expect,
)
from tests.e2e.server_support import LONG

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page, ViewportSize

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>"
LEAST_CONTRAST = 4.5  # WCAG 2 AA


# --- how it looks -----------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_it_fits_and_can_be_read(site: Playground, size: ViewportSize, scheme: Any) -> None:
    name = f"playground-{size['width']}-{scheme}"
    site.page.set_viewport_size(size)
    site.page.emulate_media(color_scheme=scheme)
    site.open()
    expect(site.page.get_by_role("button", name="George Washington")).to_be_visible()
    screenshot(site.page, f"{name}-start")
    site.model.fill("per")
    expect(site.options).to_have_count(20)
    assert site.fits()
    assert faint(site.page) == []
    screenshot(site.page, f"{name}-list")
    site.open_model()
    site.set("Seed", "2")
    site.prompt.fill("A word that never ends: " + "long" * 50)
    site.run()
    assert site.fits()
    assert faint(site.page) == []
    screenshot(site.page, name)
    site.cards.last.scroll_into_view_if_needed()
    expect(site.page.locator("#notice")).to_be_in_viewport(ratio=1)


def faint(page: Page) -> list[Any]:
    texts = page.evaluate(CONTRASTS)
    assert len(texts) > 20
    return [(text, ratio) for text, ratio in texts if ratio < LEAST_CONTRAST]


def test_five_predictions_stand_side_by_side(site: Playground) -> None:
    site.open_model()
    site.run()
    boxes = [card.bounding_box() or {} for card in site.cards.all()]
    assert len({box["y"] for box in boxes}) == 1
    assert len({box["x"] for box in boxes}) == 5


def test_dark_is_dark(site: Playground) -> None:
    def lightness() -> int:
        colour = site.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in re.findall(r"\d+", colour)[:3])

    site.page.emulate_media(color_scheme="light")
    site.open()
    assert lightness() > 700
    site.page.emulate_media(color_scheme="dark")
    assert lightness() < 100


def test_nothing_moves_for_those_who_want_it_still(site: Playground) -> None:
    moving = "document.getAnimations().length"
    site.open_model()
    site.number.fill(str(LONG["num_return_sequences"]))
    site.set("Fewest new tokens", str(LONG["min_new_tokens"]))
    site.set("Most new tokens", str(LONG["max_new_tokens"]))
    site.generate.click()
    expect(site.made.last).not_to_be_empty()
    assert site.page.evaluate(moving) == 0
    site.page.emulate_media(reduced_motion="no-preference")
    assert site.page.evaluate(moving) > 0


def test_texts_from_right_to_left(site: Playground) -> None:
    site.page.set_viewport_size(PHONE)
    site.open_model(RIGHT_TO_LEFT_MODEL)
    site.number.fill("1")
    site.set("Most new tokens", "1")
    site.run()
    screenshot(site.page, "playground-right-to-left")
    begin = site.page.evaluate("""() => {
      const prompt = document.querySelector(".prediction .prompt");
      const text = prompt.parentElement.getBoundingClientRect();
      return text.right - prompt.getClientRects()[0].right;
    }""")
    assert abs(begin) < 2, "it begins at the right"
    # The id after the handle is not turned around.
    site.model.fill(RIGHT_TO_LEFT_MODEL)
    about = site.options.first.locator("bdi")
    expect(about).to_have_text([RIGHT_TO_LEFT_CARD["handle"], RIGHT_TO_LEFT_MODEL])
    expect(site.page.locator("#notice bdi")).to_have_text(RIGHT_TO_LEFT_CARD["title"])


def test_what_is_chosen_can_be_seen_without_backgrounds(site: Playground) -> None:
    """In the high contrast of an operating system there are no backgrounds and shadows."""
    site.page.emulate_media(forced_colors="active")
    site.open_model()
    site.model.fill("person-1")
    for chosen in (site.options.first, site.page.get_by_role("tab", selected=True)):
        colour = "node => getComputedStyle(node).borderColor"
        other = (
            site.options.last
            if chosen == site.options.first
            else (site.page.get_by_role("tab", selected=False).last)
        )
        assert chosen.evaluate(colour) != other.evaluate(colour)
    screenshot(site.page, "playground-forced-colors")


def test_on_paper_there_are_the_texts(site: Playground) -> None:
    site.page.emulate_media(color_scheme="dark")
    site.open_model()
    site.run()
    site.page.emulate_media(media="print", color_scheme="dark")
    expect(site.cards).to_have_count(5)
    expect(site.page.locator("#notice")).to_be_visible()
    for control in (site.generate, site.page.get_by_role("button", name="Copy").first):
        expect(control).to_be_hidden()
    assert site.page.locator(".made").first.evaluate("n => getComputedStyle(n).color") == (
        "rgb(30, 30, 27)"
    )


def test_on_a_phone_the_texts_come_into_sight_and_can_be_stopped(site: Playground) -> None:
    site.page.set_viewport_size(PHONE)
    site.open_model()
    site.set("Fewest new tokens", "240")
    site.set("Most new tokens", "240")
    site.number.fill("32")
    site.generate.scroll_into_view_if_needed()
    site.generate.click()
    expect(site.page.locator("#notice")).to_be_in_viewport(ratio=1)
    expect(site.cards.first).to_be_in_viewport()
    expect(site.stop).to_be_in_viewport(ratio=1)
    site.stop.click()
    site.finish()


def test_everything_that_takes_the_focus_has_a_name_and_shows_it(site: Playground) -> None:
    site.open_model()
    site.run()
    for summary in site.page.locator("summary").all():
        summary.click()
    nodes = site.page.context.new_cdp_session(site.page).send("Accessibility.getFullAXTree")
    focusable = [
        node
        for node in nodes["nodes"]
        if any(p["name"] == "focusable" and p["value"]["value"] for p in node.get("properties", []))
    ]
    assert len(focusable) > 25
    assert [n for n in focusable if not n.get("name", {}).get("value") and not n["ignored"]] == []
    site.page.locator("body").click(position={"x": 1, "y": 1})
    for _ in range(12):
        site.page.keyboard.press("Tab")
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert site.page.evaluate(outline) == "solid"


# --- what it lets in --------------------------------------------------------------------------


def test_html_is_text(site: Playground, console: Console) -> None:
    site.page.on("dialog", lambda dialog: console.complaints.append("a dialog"))
    site.open_model(HTML_MODEL, prompt=EVIL)
    expect(site.name).to_have_text(HTML_CARD["title"])
    expect(site.page.locator("#card-handle")).to_have_text(HTML_CARD["handle"])
    assert all(text.startswith(EVIL) for text in site.run())
    notice = f"Written by a machine, not by {HTML_CARD['title']}."
    expect(site.page.locator("#notice")).to_have_text(notice)
    site.model.fill("html")
    expect(site.options.first).to_contain_text(HTML_CARD["title"])
    assert site.page.locator("script").count() == 1
    assert site.page.locator("main b, main i").count() == 0
    assert site.page.locator("img:not(.avatar img)").count() == 0


def test_a_missed_escape_would_be_stopped_by_the_policy(site: Playground, console: Console) -> None:
    console.expect("Content Security Policy|TrustedHTML")
    site.open()
    assert (
        site.page.evaluate("""() => {
      try { document.body.innerHTML = "<b>bold</b>"; return "set"; } catch { return "refused"; }
    }""")
        == "refused"
    )


def test_no_request_leaves_the_server_but_for_the_picture(
    site: Playground, context: BrowserContext
) -> None:
    asked: list[Any] = []
    context.on("request", lambda request: asked.append(request))
    site.open_model(HTML_MODEL, prompt=PROMPT)
    picture = site.page.locator("#card img")
    expect(picture).to_be_visible()
    site.run()
    own = urlsplit(site.url).netloc
    assert {request.url for request in asked if urlsplit(request.url).netloc != own} == {PICTURE}
    (request,) = (request for request in asked if request.url == PICTURE)
    assert "referer" not in request.headers


def test_a_picture_that_does_not_come_leaves_the_letter(
    site: Playground, console: Console, context: BrowserContext
) -> None:
    console.expect("ERR_FAILED")
    context.route(PICTURE, lambda route: route.abort())
    site.open_model(HTML_MODEL)
    expect(site.page.locator("#card .avatar")).to_have_text("B")
    expect(site.page.locator("#card img")).to_have_count(0)


# --- what it hands on -------------------------------------------------------------------------


def test_copies(site: Playground, context: BrowserContext) -> None:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    site.open_model()
    texts = site.run()
    copy = site.page.get_by_role("button", name="Copy prediction 2")
    copy.click()
    expect(copy).to_have_text("Copied")
    expect(site.page.locator("#announcer p").last).to_have_text("Copied")
    assert site.page.evaluate("navigator.clipboard.readText()") == texts[1]


@pytest.mark.parametrize("language", ["curl", "Python", "JavaScript"])
def test_the_same_request_elsewhere(site: Playground, language: str) -> None:
    """With words that each of the three languages would have to escape."""
    prompt = 'It\'s "so" \\n 100 % `café` $HOME ${x} \U0001f600\n</script>'
    site.open_model(prompt=prompt)
    site.set("Seed", "11")
    site.set("Stop at", "\\n\nthe 'end'")
    site.set("Draw at random", "true")
    site.page.get_by_role("tab", name=language).click()
    texts = run_snippet(site.page, language, site.page.get_by_role("tabpanel").inner_text())
    assert texts == "\n".join(site.run())


def run_snippet(page: Page, language: str, code: str) -> str:
    if language == "JavaScript":
        body = code.replace("console.log", "lines.push")
        return page.evaluate(
            f"async () => {{ const lines = []; {body} return lines.join('\\n'); }}"
        )
    # -S: Python's own library is enough.
    command = ["bash", "-c", code] if language == "curl" else [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, capture_output=True, check=True, timeout=30)
    output = done.stdout.decode()
    if language == "curl":
        return "\n".join(generation["text"] for generation in json.loads(output)["generations"])
    return output.removesuffix("\n")


def test_tabs_by_keyboard(site: Playground) -> None:
    site.open_model()
    curl, python, javascript = site.page.get_by_role("tab").all()
    curl.focus()
    for key, tab in (
        ("ArrowRight", python),
        ("End", javascript),
        ("ArrowRight", curl),
        ("ArrowLeft", javascript),
        ("Home", curl),
    ):
        site.page.keyboard.press(key)
        expect(tab).to_be_focused()
        expect(tab).to_have_attribute("aria-selected", "true")
    expect(site.page.get_by_role("tabpanel")).to_contain_text("curl 'http://127.0.0.1")


def test_events_that_are_cut_anywhere(site: Playground) -> None:
    """The parser sees each text whole, and in two and three pieces at every place."""
    site.open()
    wrong = site.page.evaluate("""async () => {
      const { EventParser } = await import(new URL("playground/sse.js", location.href));
      const text = ": hello\\r\\n\\r\\ndata: na\\u00efve \\u{1f600}\\n\\nevent: x\\rdata:1\\r\\n"
        + "data:  2\\r\\rid: 7\\n\\ndata: last\\r\\n\\r\\ndata: no end";
      const expected = JSON.stringify(["na\\u00efve \\u{1f600}", "1\\n 2", "last"]);
      const bytes = new TextEncoder().encode(text);
      const wrong = [];
      for (let one = 0; one <= bytes.length; one++) {
        for (let two = one; two <= bytes.length; two++) {
          const parser = new EventParser();
          const pieces = [bytes.slice(0, one), bytes.slice(one, two), bytes.slice(two)];
          const events = JSON.stringify(pieces.flatMap((piece) => parser.push(piece)));
          if (events !== expected) wrong.push([one, two, events]);
        }
      }
      return wrong;
    }""")
    assert wrong == []
