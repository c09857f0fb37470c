"""<gpt2-generate> on a page of another origin, in a real browser, against a real server."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.browser_support import PHONE, Console, screenshot
from tests.e2e.server_support import LONG, MODEL, PROMPT, SEQUENCES, TOKENS, Server, eventually
from tests.e2e.site_support import Site, running_site

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

EXAMPLES = Path(__file__).parents[2] / "examples"
OTHER_MODEL = "ronald-reagan"
SHORT = f'model="{MODEL}" prompt="{PROMPT}" max-new-tokens="20" seed="7"'
ENDLESS = (
    f'model="{MODEL}" prompt="{PROMPT}" count="{SEQUENCES}" max-new-tokens="{TOKENS}" '
    f'min-new-tokens="{TOKENS}"'
)
#: A page's own script: keeps the component's events, to be asked about.
RECORDER = """
<script>
  window.seen = [];
  for (const name of ["token", "done", "error", "stop"]) {
    addEventListener(`gpt2-${name}`, ({ detail, target }) => {
      seen.push({ name, detail, id: target.id });
    });
  }
</script>
"""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with running_site() as running:
        yield running


@pytest.fixture(scope="module")
def server(sample_store: Path, site: Site) -> Iterator[Server]:
    """Lets `site` in."""
    running = Server(sample_store, "--cors-origins", site.origin)
    yield running
    running.process.kill()
    running.process.communicate()


def embedding(server: Server, *components: str) -> str:
    script = f'<script type="module" src="{server.url}/playground/embed.js"></script>'
    tags = [f"<gpt2-generate {attributes}></gpt2-generate>" for attributes in components]
    return RECORDER + script + "".join(tags)


def text_of(server: Server, **fields: Any) -> str:
    with server.client() as client:
        answer = client.post("/generate", json={"prompt": PROMPT, **fields}).json()
    text: str = answer["generations"][0]["text"]
    return text


def seen(page: Page, name: str) -> list[Any]:
    found: list[Any] = page.evaluate("name => seen.filter(event => event.name === name)", name)
    return found


def wait_for(page: Page, name: str) -> Any:
    """The first event of that name."""
    page.wait_for_function("name => seen.some(event => event.name === name)", arg=name)
    return seen(page, name)[0]


def part(page: Page | Locator, name: str) -> Locator:
    return page.locator(f"[part~={name}]")


def test_tokens_come_as_they_are_made_and_the_text_is_the_models(
    page: Page, site: Site, server: Server
) -> None:
    page.goto(site.publish(embedding(server, SHORT)))
    page.get_by_role("button", name="Generate").click()
    done = wait_for(page, "done")["detail"]
    expected = text_of(server, model=MODEL, max_new_tokens=20, seed=7)
    assert part(page, "result").text_content() == expected
    assert part(page, "given").text_content() == PROMPT
    assert part(page, "notice").text_content() == "Written by a machine."
    assert part(page, "error").is_hidden()
    assert part(page, "stop").is_hidden()

    (generation,) = done["generations"]
    assert PROMPT + generation["text"] == expected
    assert (generation["seed"], done["prompt"]) == (7, PROMPT)
    assert done["timing"]["decode_ms"] > 0
    tokens = [event["detail"]["token"]["text"] for event in seen(page, "token")]
    assert len(tokens) == generation["tokens"] == done["usage"]["completion_tokens"]
    assert PROMPT + "".join(tokens) == expected
    screenshot(page, "embedded")


def test_it_shows_tokens_before_the_end(page: Page, site: Site, server: Server) -> None:
    page.goto(site.publish(embedding(server, ENDLESS)))
    page.get_by_role("button", name="Generate").click()
    part(page, "text").first.filter(has_text=" ").wait_for()
    assert seen(page, "done") == []
    assert page.get_by_role("button", name="Stop").is_visible()


def test_an_origin_that_is_not_allowed_reads_nothing(
    page: Page, console: Console, site: Site, serve: Any
) -> None:
    console.expect("blocked by CORS policy|net::ERR_FAILED")
    stranger = serve("--cors-origins", "https://other.example")
    page.goto(site.publish(embedding(stranger, SHORT)))
    page.get_by_role("button", name="Generate").click()
    error = page.get_by_role("alert")
    error.wait_for()
    assert "cannot be reached" in error.inner_text()
    assert f"does not let pages of {site.origin} in" in error.inner_text()
    assert part(page, "result").count() == 0
    assert seen(page, "token") == []
    assert wait_for(page, "error")["detail"]["status"] == 0
    # Its preflight was refused, so the server has never been asked for a text.
    assert stranger.metric("generation_tokens_total") == 0


def test_errors_of_the_server_can_be_read(
    page: Page, console: Console, site: Site, server: Server
) -> None:
    console.expect("the server responded with a status of 4")
    page.goto(site.publish(embedding(server, f'{SHORT} temperature="-1"', 'model="nobody"')))
    for index, words in enumerate(["A value is wrong. temperature", "Unknown model. There is no"]):
        component = page.locator("gpt2-generate").nth(index)
        component.get_by_role("button", name="Generate").click()
        component.get_by_role("alert").filter(has_text=words).wait_for()
    details = [event["detail"] for event in seen(page, "error")]
    assert [detail["status"] for detail in details] == [422, 404]
    assert [detail["code"] for detail in details] == ["invalid_value", "model_not_found"]
    assert [detail["field"] for detail in details] == ["temperature", "model"]
    assert all(detail["requestId"] for detail in details)


def test_it_says_when_to_try_again(page: Page, console: Console, site: Site, serve: Any) -> None:
    console.expect("the server responded with a status of 429")
    busy = serve("--cors-origins", "*", "--max-queue", "1")
    page.goto(site.publish(embedding(busy, ENDLESS, SHORT)))
    first, second = page.locator("gpt2-generate").all()
    first.get_by_role("button", name="Generate").click()
    part(first, "text").first.wait_for()
    second.get_by_role("button", name="Generate").click()
    second.get_by_role("alert").filter(has_text="Try again in 1 s.").wait_for()
    assert wait_for(page, "error")["detail"]["retryAfter"] == 1


@pytest.mark.parametrize(
    ("attribute", "words"),
    [
        ('count="five"', 'count="five" is not a whole number.'),
        ('count="1.5"', 'count="1.5" is not a whole number.'),
        ('top-p=""', 'top-p="" is not a number.'),
        # JavaScript would make 9007199254740992 of it.
        ('seed="9007199254740993"', 'seed="9007199254740993" is not a whole number.'),
        ('server="http://["', 'server="http://[" is not an address.'),
    ],
)
def test_attributes_that_mean_nothing_are_refused_by_name(
    page: Page, site: Site, server: Server, attribute: str, words: str
) -> None:
    page.goto(site.publish(embedding(server, f'{attribute} model="{MODEL}" prompt="{PROMPT}"')))
    page.get_by_role("button", name="Generate").click()
    assert page.get_by_role("alert").inner_text() == f"An attribute is wrong. {words}"
    assert wait_for(page, "error")["detail"]["field"] == attribute.partition("=")[0]


def test_markup_in_texts_stays_text(page: Page, site: Site, server: Server) -> None:
    said = "<script>window.hit = 1</script><img src=x onerror='window.hit = 1'>"
    frames = [
        {"index": 0, "token": {"id": 1, "text": said, "logprob": -1.0}},
        {"index": 0, "finish_reason": "eos", "text": said, "tokens": 1, "seed": 1},
    ]
    body = page.evaluate("frames => frames.map(f => `data: ${JSON.stringify(f)}\\n\\n`)", frames)
    page.route(
        f"{server.url}/generate",
        lambda route: route.fulfill(
            content_type="text/event-stream",
            headers={"Access-Control-Allow-Origin": "*"},
            body="".join(body) + "data: [DONE]\n\n",
        ),
    )
    page.goto(site.publish(embedding(server, f'model="{MODEL}"')))
    page.get_by_label("Prompt").fill(said)
    page.get_by_role("button", name="Generate").click()
    wait_for(page, "done")
    assert part(page, "result").text_content() == said + said
    assert page.locator("gpt2-generate img, gpt2-generate script").count() == 0
    assert page.evaluate("window.hit") is None


def idle_again(server: Server) -> bool:
    return server.metric("requests_running") == 0


def test_stop(page: Page, site: Site, server: Server) -> None:
    page.goto(site.publish(embedding(server, ENDLESS)))
    page.get_by_role("button", name="Generate").click()
    part(page, "text").first.filter(has_text=" ").wait_for()
    page.get_by_role("button", name="Stop").click()
    wait_for(page, "stop")
    eventually(lambda: idle_again(server))
    assert seen(page, "done") == []
    assert part(page, "stop").is_hidden()
    assert page.get_by_role("button", name="Generate").evaluate(
        "node => node.getRootNode().activeElement === node"
    ), "the focus must not be lost with the button"
    assert part(page, "notice").is_visible()
    assert part(page, "text").first.inner_text() != ""


def test_a_component_that_is_taken_away_stops(page: Page, site: Site, server: Server) -> None:
    page.goto(site.publish(embedding(server, ENDLESS)))
    page.get_by_role("button", name="Generate").click()
    part(page, "text").first.filter(has_text=" ").wait_for()
    page.locator("gpt2-generate").evaluate("node => node.remove()")
    eventually(lambda: idle_again(server))


def test_a_new_request_takes_the_place_of_the_old_one(
    page: Page, site: Site, server: Server
) -> None:
    page.goto(site.publish(embedding(server, ENDLESS)))
    component = page.locator("gpt2-generate")
    page.get_by_role("button", name="Generate").click()
    part(page, "text").first.filter(has_text=" ").wait_for()
    page.get_by_role("button", name="Generate").click()
    wait_for(page, "stop")
    # The end of the first is not taken for the end of the second.
    assert page.get_by_role("button", name="Stop").is_visible()
    for name, value in (("count", "1"), ("seed", "7"), ("min-new-tokens", "0")):
        component.evaluate("(node, [name, value]) => node.setAttribute(name, value)", [name, value])
    component.evaluate("node => node.setAttribute('max-new-tokens', '20')")
    page.get_by_role("button", name="Generate").click()
    wait_for(page, "done")
    assert len(seen(page, "stop")) == 2
    expected = text_of(server, model=MODEL, max_new_tokens=20, seed=7)
    assert part(page, "result").all_text_contents() == [expected]
    eventually(lambda: idle_again(server))


def test_several_on_a_page(page: Page, site: Site, server: Server) -> None:
    other = SHORT.replace(MODEL, OTHER_MODEL)
    page.goto(site.publish(embedding(server, f"{SHORT} id=one", f"{other} id=two count=2")))
    for button in page.get_by_role("button", name="Generate").all():
        button.click()
    page.wait_for_function("seen.filter(event => event.name === 'done').length === 2")
    results = [part(component, "result") for component in page.locator("gpt2-generate").all()]
    assert [result.count() for result in results] == [1, 2]
    for result, model in zip(results, (MODEL, OTHER_MODEL), strict=True):
        assert result.first.text_content() == text_of(
            server, model=model, max_new_tokens=20, seed=7
        )
    assert {event["id"] for event in seen(page, "token")} == {"one", "two"}


def test_under_the_strictest_policy(page: Page, site: Site, server: Server) -> None:
    # No inline style, no inline script, no HTML from strings; only what docs/embedding.md names.
    policy = (
        f"default-src 'none'; script-src {server.url}; connect-src {server.url}; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; "
        "trusted-types 'none'"
    )
    html = embedding(server, SHORT).replace(RECORDER, "")
    page.goto(site.publish(html, Content_Security_Policy=policy))
    page.get_by_role("button", name="Generate").click()
    part(page, "notice").wait_for()
    page.get_by_role("status").filter(has_text=PROMPT).wait_for(state="attached")
    expected = text_of(server, model=MODEL, max_new_tokens=20, seed=7)
    assert part(page, "result").text_content() == expected
    # The component's styles are in force.
    assert part(page, "result").evaluate("node => getComputedStyle(node).whiteSpace") == "pre-wrap"


def test_keyboard_and_screen_readers(page: Page, site: Site, server: Server) -> None:
    page.goto(site.publish(embedding(server, SHORT)))
    field = page.get_by_role("textbox", name="Prompt")
    assert field.input_value() == PROMPT
    page.keyboard.press("Tab")
    assert field.evaluate("node => node.getRootNode().activeElement === node")
    page.keyboard.press("Control+Enter")
    wait_for(page, "done")
    expected = text_of(server, model=MODEL, max_new_tokens=20, seed=7)
    # Said once, when it is whole, and that a machine wrote it is said with it.
    assert page.get_by_role("status").locator("p").all_text_contents() == [
        "Written by a machine.",
        expected,
    ]
    assert part(page, "results").get_attribute("aria-busy") == "false"


def test_a_text_can_be_selected(page: Page, site: Site, server: Server) -> None:
    page.goto(site.publish(embedding(server, SHORT)))
    page.get_by_role("button", name="Generate").click()
    wait_for(page, "done")
    page.evaluate("document.activeElement.blur()")
    box = part(page, "result").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 5, box["y"] + 9)
    page.mouse.down()
    page.mouse.move(box["x"] + 150, box["y"] + 9, steps=3)
    page.mouse.up()
    assert len(page.evaluate("getSelection().toString()")) > 5
    # On a phone the focus would bring the keyboard up.
    assert page.evaluate("document.activeElement === document.body")
    page.locator("gpt2-generate").evaluate("component => component.focus()")
    assert part(page, "prompt").evaluate("node => node.getRootNode().activeElement === node")


def test_a_prompt_that_was_set_before_the_component_was_there(
    page: Page, site: Site, server: Server
) -> None:
    early = "<script>document.querySelector('gpt2-generate').prompt = 'Early';</script>"
    component = f'<gpt2-generate model="{MODEL}" prompt="{PROMPT}"></gpt2-generate>'
    page.goto(site.publish(component + early + embedding(server)))
    page.locator("gpt2-generate:defined").wait_for()
    assert page.get_by_label("Prompt").input_value() == "Early"
    page.locator("gpt2-generate").evaluate("component => { component.prompt = 'Late'; }")
    assert page.get_by_label("Prompt").input_value() == "Late"


def test_attributes_are_watched(page: Page, site: Site, server: Server) -> None:
    page.goto(site.publish(embedding(server, SHORT)))
    component = page.locator("gpt2-generate")
    for name, value in {
        "prompt": "Mes chers concitoyens,",
        "prompt-label": "Début",
        "label": "Continuer",
        "stop-label": "Arrêter",
        "notice": "Écrit par une machine.",
    }.items():
        component.evaluate("(node, [name, value]) => node.setAttribute(name, value)", [name, value])
    assert page.get_by_label("Début").input_value() == "Mes chers concitoyens,"
    page.get_by_role("button", name="Continuer").click()
    wait_for(page, "done")
    assert part(page, "notice").inner_text() == "Écrit par une machine."
    # Nothing takes the notice away.
    component.evaluate(
        "node => { node.setAttribute('notice', ' '); node.removeAttribute('label'); }"
    )
    assert part(page, "notice").inner_text() == "Written by a machine."
    assert page.get_by_role("button", name="Generate").is_visible()


def test_from_a_script(page: Page, site: Site, server: Server) -> None:
    page.goto(site.publish(embedding(server, f'model="{MODEL}" max-new-tokens="20" seed="7"')))
    text = page.evaluate(
        """async (prompt) => {
          const component = document.querySelector("gpt2-generate");
          component.prompt = prompt;
          const done = await component.generate();
          return component.prompt + done.generations[0].text;
        }""",
        PROMPT,
    )
    assert text == text_of(server, model=MODEL, max_new_tokens=20, seed=7)
    halted = page.evaluate(
        """async () => {
          const component = document.querySelector("gpt2-generate");
          component.addEventListener("gpt2-token", () => component.stop(), { once: true });
          component.setAttribute("min-new-tokens", 200);
          component.setAttribute("max-new-tokens", 200);
          return component.generate();
        }"""
    )
    assert halted is None


def test_a_key_and_another_server(
    page: Page, console: Console, site: Site, server: Server, serve: Any, tmp_path: Path
) -> None:
    console.expect("the server responded with a status of 401")
    key = "a-key-that-all-may-see"
    keys = tmp_path / "keys"
    keys.write_text(f"sha256:{hashlib.sha256(key.encode()).hexdigest()} page\n")
    other = serve("--cors-origins", site.origin, "--api-key-file", str(keys))
    page.goto(site.publish(embedding(server, f'{SHORT} server="{other.url}"')))
    page.get_by_role("button", name="Generate").click()
    page.get_by_role("alert").filter(has_text="key is missing or wrong").wait_for()
    assert wait_for(page, "error")["detail"]["status"] == 401
    component = page.locator("gpt2-generate")
    component.evaluate("(node, key) => node.setAttribute('api-key', key)", key)
    page.get_by_role("button", name="Generate").click()
    wait_for(page, "done")
    assert page.get_by_role("alert").count() == 0
    assert other.metric("generation_tokens_total") > 0


def test_the_page_sets_fonts_and_colours(page: Page, site: Site, server: Server) -> None:
    style = """<style>
      body { background: black; color: rgb(1, 250, 3); font-family: monospace; }
      gpt2-generate { --gpt2-accent: rgb(9, 8, 7); }
      gpt2-generate::part(text) { letter-spacing: 3px; }
    </style>"""
    page.goto(site.publish(style + embedding(server, SHORT)))
    page.get_by_role("button", name="Generate").click()
    wait_for(page, "done")

    def computed(name: str, style: str) -> str:
        node = part(page, name).first
        value: str = node.evaluate("(node, name) => getComputedStyle(node)[name]", style)
        return value

    for name in ("prompt", "result", "notice"):
        assert computed(name, "color") == "rgb(1, 250, 3)"
        assert computed(name, "fontFamily") == "monospace"
    assert computed("button", "backgroundColor") == "rgb(9, 8, 7)"
    assert computed("text", "letterSpacing") == "3px"


def test_on_a_dark_phone(page: Page, site: Site, server: Server) -> None:
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size(PHONE)
    style = """<meta name=viewport content="width=device-width">
      <style>:root { color-scheme: light dark; }</style>"""
    page.goto(site.publish(style + embedding(server, SHORT)))
    page.get_by_label("Prompt").fill("Wh" + "y" * 200 + "?")
    page.get_by_role("button", name="Generate").click()
    wait_for(page, "done")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    screenshot(page, "embedded-dark-phone")


def test_scripts_of_an_allowed_page(page: Page, site: Site, server: Server) -> None:
    """What clients in a browser do by themselves: headers of their own, and answers' headers."""
    page.goto(site.publish(""))
    status, request_id = page.evaluate(
        """async ([url, body]) => {
          const answer = await fetch(url, {
            method: "POST",
            headers: {
              "Authorization": "Bearer none",
              "Content-Type": "application/json",
              "X-Request-Id": "mine",
              "X-Stainless-Lang": "js",
              "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            },
            body: JSON.stringify(body),
          });
          await answer.text();
          return [answer.status, answer.headers.get("X-Request-Id")];
        }""",
        [f"{server.url}/v1/completions", {"model": MODEL, "prompt": PROMPT, "max_tokens": 3}],
    )
    assert (status, request_id) == (200, "mine")


def test_scripts_of_an_allowed_page_cannot_read_what_is_for_operators(
    page: Page, console: Console, site: Site, server: Server
) -> None:
    console.expect("blocked by CORS policy|net::ERR_FAILED")
    page.goto(site.publish(""))
    for path in ("/metrics", "/readyz", "/"):
        with pytest.raises(Exception, match="Failed to fetch"):
            page.evaluate("url => fetch(url).then(answer => answer.text())", server.url + path)


def test_the_example_page(page: Page, site: Site, server: Server) -> None:
    html = (EXAMPLES / "page.html").read_text(encoding="utf-8")
    assert "http://localhost:8000" in html
    page.goto(site.publish(html.replace("http://localhost:8000", server.url)))
    page.get_by_role("button", name="Ask Washington").click()
    page.get_by_text("tokens per second").wait_for()
    page.get_by_role("button", name="Ask Reagan").click()
    part(page, "result").nth(2).wait_for()
    assert LONG["prompt"] in part(page, "result").first.inner_text()
    screenshot(page, "example-page")
