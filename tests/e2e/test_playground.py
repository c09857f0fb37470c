"""The playground in a real browser, before a real server: choosing and generating.

Every test fails, too, if the page's console complains: of an error, or of something that the
Content-Security-Policy forbids (fixture `page`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from tests.e2e.browser_support import Console
from tests.e2e.playground_support import (
    EXACT_MODEL,
    GREEDY_MODEL,
    HTML_CARD,
    HTML_MODEL,
    MODEL,
    PROMPT,
    Playground,
    expect,
    generated,
)
from tests.e2e.server_support import LONG, Server, eventually

if TYPE_CHECKING:
    from playwright.sync_api import Route


# --- choosing ---------------------------------------------------------------------------------


def test_choose_and_generate_with_the_keyboard_alone(site: Playground) -> None:
    site.open()
    keys = site.page.keyboard
    site.model.focus()
    keys.type("jeff")
    expect(site.options).to_have_count(1)
    expect(site.options.first).to_contain_text("Thomas Jefferson")
    expect(site.model).to_have_attribute("aria-expanded", "true")
    keys.press("Enter")
    expect(site.model).to_have_value("thomas-jefferson")
    expect(site.model).to_have_attribute("aria-expanded", "false")
    expect(site.name).to_have_text("Thomas Jefferson")
    expect(site.page.locator("#card-handle")).to_have_text("@thomas_jefferson")
    expect(site.page).to_have_title("Thomas Jefferson · gpt2serve")
    expect(site.prompt).to_have_value(PROMPT)
    keys.press("Tab")
    expect(site.prompt).to_be_focused()
    keys.press("Control+Enter")
    expect(site.cards).to_have_count(5)
    site.finish()
    assert all(text.startswith(PROMPT) and len(text) > len(PROMPT) for text in site.texts)


def test_arrows_move_through_the_list_and_escape_leaves_it(site: Playground) -> None:
    site.open_model()
    site.model.fill("person-1")
    expect(site.options).to_have_count(10)
    for key, active in (("ArrowDown", 1), ("ArrowUp", 0), ("ArrowUp", 9), ("ArrowDown", 0)):
        site.model.press(key)
        expect(site.model).to_have_attribute("aria-activedescendant", f"model-option-{active}")
        expect(site.page.locator("[role=option][aria-selected=true]")).to_have_count(1)
        expect(site.options.nth(active)).to_have_attribute("aria-selected", "true")
    site.model.press("Escape")
    expect(site.options.first).to_be_hidden()
    expect(site.model).to_have_value(MODEL)


def test_what_is_typed_replaces_the_name_that_stands_there(site: Playground) -> None:
    site.open_model()
    for _ in range(2):  # without and with the focus
        site.model.click()
        expect(site.options).to_have_count(20)
        site.page.keyboard.type("reagan")
        expect(site.model).to_have_value("reagan")
        expect(site.options).to_have_count(1)
        site.model.press("Escape")


def test_an_id_that_is_typed_in_full_is_the_first(site: Playground) -> None:
    """However many others have it within them."""
    site.open()
    site.model.fill(EXACT_MODEL)
    expect(site.options.first).to_contain_text("Ordinary")
    site.model.press("Enter")
    expect(site.name).to_have_text("Ordinary")


def test_enter_before_the_list_is_there_takes_its_first(site: Playground) -> None:
    site.open()
    site.model.press_sequentially("person-07")
    site.model.press("Enter")
    expect(site.name).to_have_text("Person 7")


def test_a_search_that_is_out_of_date_is_given_up(site: Playground) -> None:
    held: list[Route] = []
    given_up: list[str] = []
    site.page.route("**/models?search=per&*", lambda route: held.append(route))
    site.page.on("requestfailed", lambda request: given_up.append(request.url))
    site.open()
    with site.page.expect_request("**/models?search=per&*"):
        site.model.fill("per")
    site.model.fill("reagan")
    expect(site.options).to_have_count(1)
    assert [urlsplit(url).query.split("&")[0] for url in given_up] == ["search=per"]


def test_a_search_without_a_match_says_so(site: Playground) -> None:
    site.open()
    site.model.fill("nobody at all")
    expect(site.page.locator("#model-more")).to_have_text("No model matches")
    expect(site.page.locator("#model-count")).to_have_text("No model matches")
    site.model.fill("person")
    expect(site.page.locator("#model-count")).to_have_text("The first 20 models")


def test_suggestions_for_those_who_know_no_name(site: Playground) -> None:
    site.open()
    site.page.get_by_role("button", name="George Washington").click()
    expect(site.name).to_have_text("George Washington")
    assert urlsplit(site.page.url).query == f"model={MODEL}"


def test_addresses_lead_back_and_forward(site: Playground) -> None:
    site.open_model("ronald-reagan", prompt="A deep link")
    expect(site.prompt).to_have_value("A deep link")
    site.model.fill("person-03")
    expect(site.options).to_have_count(1)
    site.model.press("Enter")
    expect(site.name).to_have_text("Person 3")
    expect(site.prompt).to_have_value("A deep link")
    site.page.go_back()
    expect(site.name).to_have_text("Ronald Reagan")
    expect(site.model).to_have_value("ronald-reagan")
    site.page.go_forward()
    expect(site.name).to_have_text("Person 3")


def test_an_address_has_the_settings_too(site: Playground) -> None:
    site.open_model()
    site.number.fill("2")
    site.set("Temperature", "0.7")
    site.set("Stop at", "the\n\\n")
    site.set("Seed", "7")
    texts = site.run()
    query = {"model": MODEL, "prompt": PROMPT, "num_return_sequences": "2"}
    query |= {"temperature": "0.7", "stop": "the\n\\n", "seed": "7"}
    assert dict(parse_qsl(urlsplit(site.page.url).query)) == query
    address = site.page.url
    site.open_model()
    expect(site.page.locator("#changed")).to_be_hidden()
    expect(site.number).to_have_value("5")
    site.page.goto(address)
    expect(site.page.locator("#changed")).to_have_text("3 changed")
    assert site.run() == texts


def test_a_prompt_that_is_too_long_for_an_address_outlives_a_reload(
    site: Playground, console: Console
) -> None:
    console.expect("status of 422")
    long = "one two three " * 1000
    site.open_model()
    site.prompt.evaluate("(field, text) => { field.value = text; }", long)
    site.generate.click()
    expect(site.problem).to_be_visible()
    assert len(site.page.url) < 6000
    site.page.reload()
    expect(site.name).to_be_visible()
    expect(site.prompt).to_have_value(long)


def test_a_card_s_example_does_not_overwrite_what_somebody_wrote(site: Playground) -> None:
    site.open_model()
    expect(site.prompt).to_have_value(PROMPT)
    site.open_model(HTML_MODEL)
    expect(site.prompt).to_have_value(HTML_CARD["example_prompts"][0])
    site.page.get_by_role("button", name="& <i>more</i>").click()
    expect(site.prompt).to_have_value("& <i>more</i>")


# --- generating -------------------------------------------------------------------------------


def test_tokens_appear_as_they_are_made(site: Playground, playground_server: Server) -> None:
    site.open_model()
    site.set("Seed", "7")
    site.page.evaluate("""() => {
      window.lengths = [];
      const cards = document.getElementById("cards");
      new MutationObserver(() => {
        const made = cards.querySelector(".running .made");
        if (made) window.lengths.push(made.textContent.length);
      }).observe(cards, { subtree: true, childList: true });
    }""")
    texts = site.run()
    lengths = site.page.evaluate("window.lengths")
    assert len(set(lengths)) >= 5, "it came in one piece"
    assert texts == generated(playground_server.url, PROMPT, seed=7, num_return_sequences=5)
    notice = site.page.get_by_text("Written by a machine, not by George Washington.")
    expect(notice).to_be_visible()
    timing = site.page.locator("#timing").inner_text()
    assert re.findall(r"Queue|Load|First token|Speed", timing) == (
        ["Queue", "Load", "First token", "Speed"]
    )
    # A screen reader hears whole texts, and nothing twice.
    assert sorted(site.page.locator("#announcer p").all_text_contents()) == sorted(
        f"Prediction {number}: {text}" for number, text in enumerate(texts, 1)
    )


def test_a_seed_makes_the_same_text_again(site: Playground) -> None:
    site.open_model()
    site.set("Temperature", "1.3")
    before = site.run()
    assert len(set(before)) == 5
    site.set("Temperature", "0.2")  # "again" is of the request that made the text, not of this
    seeds = [site.seed_of(card) for card in site.cards.all()]
    site.page.get_by_role("button", name="Make prediction 3 again").click()
    site.finish()
    assert site.texts == before
    assert [site.seed_of(card) for card in site.cards.all()] == seeds


def test_a_prediction_is_made_again_while_others_are_still_made(site: Playground) -> None:
    site.open_model()
    # The first one ends at once; the others, and the first once more, would go on for ever.
    site.page.evaluate("""async () => {
      const { server } = await import(new URL("playground/api.js", location.href));
      const token = { index: 0, token: { text: " word" } };
      const end = { index: 0, finish_reason: "eos", text: " word", tokens: 1, seed: 7 };
      server.generate = async function* ({ seed }, signal) {
        yield seed ? [token] : [token, end];
        await new Promise((_, reject) => {
          signal.addEventListener("abort", () => reject(signal.reason));
        });
      };
    }""")
    site.generate.click()
    expect(site.running).to_have_count(4)
    site.page.get_by_role("button", name="Make prediction 1 again").click()
    facts = site.page.locator(".prediction .facts")
    expect(facts).to_have_text(["", *["stopped"] * 4])
    expect(site.running.locator(".made")).to_have_text([" word"])
    site.stop.click()
    expect(facts).to_have_text(["stopped"] * 5)


def test_stop(site: Playground, playground_server: Server) -> None:
    site.open_model()
    site.number.fill(str(LONG["num_return_sequences"]))
    site.set("Fewest new tokens", str(LONG["min_new_tokens"]))
    site.set("Most new tokens", str(LONG["max_new_tokens"]))
    site.generate.click()
    expect(site.made.last).not_to_be_empty()
    site.stop.press("Enter")
    expect(site.running).to_have_count(0)
    expect(site.cards.last).to_contain_text("stopped")
    expect(site.generate).to_be_focused()
    assert len(site.made.last.inner_text()) > 0
    eventually(lambda: playground_server.metric("requests_running") == 0)


def test_a_new_run_ends_the_one_before(site: Playground) -> None:
    site.open_model()
    site.set("Fewest new tokens", "200")
    site.set("Most new tokens", "200")
    site.generate.click()
    expect(site.made.last).not_to_be_empty()
    site.prompt.fill("Something else")
    site.set("Fewest new tokens", "0")
    site.set("Most new tokens", "4")
    texts = site.run()
    assert all(text.startswith("Something else") for text in texts)
    expect(site.problem).to_be_hidden()


def test_the_models_own_defaults_are_shown_and_used(
    site: Playground, playground_server: Server
) -> None:
    site.open_model()
    site.page.get_by_text("Sampling settings").click()
    shown = {
        label: site.page.get_by_label(label).get_attribute("placeholder")
        for label in ("Temperature", "Top k", "Top p", "Most new tokens", "Repetition penalty")
    }
    assert list(shown.values()) == ["1", "50", "0.95", "160 in all", "1"]
    expect(site.page.get_by_label("Draw at random")).to_have_value("")
    site.open_model(GREEDY_MODEL, prompt=PROMPT)
    # Five texts of the likeliest tokens would be one text five times, which the server refuses.
    expect(site.page.get_by_label("Draw at random")).to_have_value("true")
    assert len(set(site.run())) > 1
    site.set("Draw at random", "false")
    site.number.fill("1")
    assert site.run() == generated(playground_server.url, PROMPT, model=GREEDY_MODEL)
    site.page.get_by_role("button", name="Back to the defaults").click()
    expect(site.page.locator("#changed")).to_be_hidden()


def test_stop_texts(site: Playground, playground_server: Server) -> None:
    site.open_model()
    site.set("Seed", "3")
    site.set("Stop at", "the\n\\n")
    options = {"seed": 3, "num_return_sequences": 5}
    texts = site.run()
    assert texts == generated(playground_server.url, PROMPT, stop=["the", "\n"], **options)
    assert texts != generated(playground_server.url, PROMPT, **options)
    assert "stop text" in site.cards.all_inner_texts()[0] + site.cards.all_inner_texts()[1]
