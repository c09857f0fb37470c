"""The playground where something is wrong: the request, the model, the key, the server."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from gpt2serve.api.key_file import digest_of, new_key
from tests.e2e.browser_support import Console, screenshot
from tests.e2e.playground_support import MODEL, Playground, copy_model, expect, streaming
from tests.e2e.server_support import LONG, Server

if TYPE_CHECKING:
    from playwright.sync_api import Page

#: What the console says of every answer that is an error.
REFUSED = "status of (401|404|422|429)"


def test_a_wrong_value_is_named_and_its_field_focused(site: Playground, console: Console) -> None:
    console.expect(REFUSED)
    site.open_model()
    before = site.run()
    site.set("Top p", "1.5")
    site.page.get_by_text("Sampling settings").click()  # fold it away
    site.generate.click()
    expect(site.problem).to_contain_text("A value is wrong")
    expect(site.problem).to_contain_text("top_p")
    field = site.page.get_by_label("Top p")
    expect(field).to_be_focused()
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(field).to_have_accessible_description(re.compile("top_p"))
    assert site.texts == before
    screenshot(site.page, "playground-error")
    field.fill("")
    site.run()
    expect(site.problem).to_be_hidden()
    expect(field).not_to_have_attribute("aria-invalid", "true")


@pytest.mark.parametrize("seed", ["9007199254740993", "-1", "1.5", "x"])
def test_a_seed_that_a_browser_cannot_send_is_refused(site: Playground, seed: str) -> None:
    site.open_model()
    site.set("Seed", seed)
    site.generate.click()
    expect(site.problem).to_contain_text("A seed is a whole number")
    expect(site.page.get_by_label("Seed")).to_be_focused()


def test_a_model_that_is_not_there(site: Playground, console: Console) -> None:
    console.expect(REFUSED)
    site.open(model="nobody/here", prompt="Hello")
    expect(site.problem).to_contain_text("Unknown model")
    site.generate.click()
    expect(site.problem).to_contain_text("nobody/here")
    expect(site.model).to_be_focused()
    expect(site.model).to_have_attribute("aria-invalid", "true")
    expect(site.cards).to_have_count(0)


def test_a_model_that_is_no_id(site: Playground, console: Console) -> None:
    console.expect(REFUSED)
    with site.page.expect_response("**/info") as found:
        site.open(model="../models?limit=1#")
    assert urlsplit(found.value.url).path.endswith("models%3Flimit%3D1%23/info")
    expect(site.problem).to_be_visible()


def test_no_model_at_all(site: Playground) -> None:
    site.open()
    site.generate.click()
    expect(site.problem).to_contain_text("Choose a model first.")


def test_an_overloaded_server_says_when_to_come_again(
    page: Page, console: Console, serve: Callable[..., Server], playground_store: Path
) -> None:
    console.expect(REFUSED)
    server = serve("--max-queue", "1", store=playground_store)
    site = Playground(page, server.url)
    site.open_model()
    with streaming(server, LONG):
        site.generate.click()
        expect(site.problem).to_contain_text("Too many requests")
        expect(site.problem).to_contain_text(re.compile(r"Try again in \d+ seconds?\."))


def test_a_text_that_cannot_be_made_again_is_not_lost(site: Playground, console: Console) -> None:
    console.expect(REFUSED)
    site.open_model()
    before, facts = site.run(), site.page.locator(".facts").all_inner_texts()
    timing = site.page.locator("#timing").inner_text()
    body = {"title": "Too many requests", "detail": "Full.", "code": "overloaded"}
    site.page.route("**/generate", lambda route: route.fulfill(status=429, json=body))
    site.page.get_by_role("button", name="Make prediction 2 again").click()
    expect(site.problem).to_contain_text("Too many requests")
    site.finish()
    assert site.texts == before
    assert site.page.locator(".facts").all_inner_texts() == facts
    assert site.page.locator("#timing").inner_text() == timing


def test_a_reader_can_tell_the_operator_which_request_failed(
    site: Playground, console: Console, playground_store: Path
) -> None:
    console.expect("status of 503")
    copy_model(playground_store / MODEL, playground_store, "tests/broken")
    (playground_store / "tests/broken/cpu-int8/model.onnx.data").write_bytes(b"cut short")
    with site.page.expect_response("**/info") as answer:
        site.open(model="tests/broken")
    request_id = answer.value.headers["x-request-id"]
    expect(site.problem).to_contain_text(f"The request's id is {request_id}.")
    shutil.rmtree(playground_store / "tests/broken")


def test_a_key_that_cannot_be_one(site: Playground) -> None:
    """Headers carry no such letters: browsers refuse to send them."""
    site.open_model()
    site.page.get_by_text("API key").click()
    site.page.locator("#key").fill("cut short\N{HORIZONTAL ELLIPSIS}")
    site.page.locator("#key").press("Enter")
    expect(site.problem).to_contain_text("This is no API key")
    expect(site.problem).to_contain_text("Enter an API key below.")
    above, below = (node.bounding_box() or {} for node in (site.problem, site.page.locator("#key")))
    assert above["y"] < below["y"]
    expect(site.page.locator("#key")).to_be_focused()


def test_a_server_that_goes_away(
    page: Page, console: Console, serve: Callable[..., Server], playground_store: Path
) -> None:
    console.expect("ERR_CONNECTION|ERR_INCOMPLETE_CHUNKED|ERR_EMPTY_RESPONSE")
    server = serve(store=playground_store)
    site = Playground(page, server.url)
    site.open_model()
    site.number.fill(str(LONG["num_return_sequences"]))
    site.set("Fewest new tokens", str(LONG["min_new_tokens"]))
    site.set("Most new tokens", str(LONG["max_new_tokens"]))
    site.generate.click()
    expect(site.made.last).not_to_be_empty()
    server.process.kill()
    expect(site.problem).to_contain_text("The answer broke off")
    expect(site.cards.last).to_contain_text("failed")
    server.process.wait()
    site.generate.click()
    expect(site.problem).to_contain_text("The server cannot be reached")


def test_a_key_is_asked_for_kept_and_never_shown(
    page: Page,
    console: Console,
    serve: Callable[..., Server],
    playground_store: Path,
    tmp_path: Path,
) -> None:
    console.expect(REFUSED)
    secret = new_key()
    keys = tmp_path / "keys"
    keys.write_text(f"sha256:{digest_of(secret).hex()} reader rate=100\n")
    site = Playground(page, serve("--api-key-file", str(keys), store=playground_store).url)
    key = page.locator("#key")
    site.open(model=MODEL)
    expect(site.problem).to_contain_text("Enter an API key")
    expect(key).to_be_focused()
    key.fill(secret)
    key.press("Enter")
    expect(site.name).to_have_text("George Washington")
    expect(site.problem).to_be_hidden()
    site.set("Most new tokens", "20")
    site.run()
    site.generate.click()  # the rate is used up
    expect(site.problem).to_contain_text(re.compile(r"Try again in \d+ seconds?\."))
    for tab in page.get_by_role("tab").all():
        tab.click()
        expect(page.get_by_role("tabpanel")).to_contain_text(re.compile("API_?KEY", re.IGNORECASE))
    assert secret not in page.locator("body").inner_text() + page.url
    page.reload()
    expect(site.name).to_be_visible()
    expect(key).to_have_value(secret)
