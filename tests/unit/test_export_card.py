"""What a page shows about a model, from cards as they are found."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2export.card import LARGEST_PICTURE, load_card, parse_card
from gpt2serve.package import ModelCard

HUGGINGTWEETS = """\
---
language: en
thumbnail: https://github.com/borisdayma/huggingtweets/blob/master/img/logo.png?raw=true
tags:
- huggingtweets
widget:
- text: "My dream is"
---

<div class="inline-flex flex-col" style="line-height: 1.5;">
    <div class="flex">
        <div
\t\t\tstyle="display:inherit; background-image: url(&#39;https://pbs.twimg.com/a_400x400.jpg&#39;)">
        </div>
    </div>
    <div style="text-align: center; margin-top: 3px; font-size: 16px; font-weight: 800">🤖 AI BOT 🤖</div>
    <div style="text-align: center; font-size: 16px; font-weight: 800">Tom &amp; Jerry</div>
    <div style="text-align: center; font-size: 14px;">@tom_and-jerry</div>
</div>

I was made with [huggingtweets](https://github.com/borisdayma/huggingtweets).
"""  # noqa: E501


def test_a_huggingtweets_card() -> None:
    card = parse_card(HUGGINGTWEETS)
    assert card.title == "Tom & Jerry"
    assert card.handle == "@tom_and-jerry"
    assert card.example_prompts == ("My dream is",)
    assert card.picture.startswith("https://github.com/borisdayma")


def test_without_a_thumbnail_the_avatar_is_the_picture() -> None:
    text = HUGGINGTWEETS.replace("thumbnail:", "other:")
    assert parse_card(text).picture == "https://pbs.twimg.com/a_400x400.jpg"


def test_a_plain_card() -> None:
    text = (
        "---\nwidget:\n- text: One\n  example_title: x\n- text: Two\n---\n# My *model* #\n\nText."
    )
    assert parse_card(text) == ModelCard(title="My *model*", example_prompts=("One", "Two"))


def test_a_title_in_the_front_matter_wins() -> None:
    assert parse_card("---\ntitle: Front\n---\n# Body\n").title == "Front"


def test_windows_line_ends() -> None:
    assert parse_card("---\r\ntitle: Front\r\n---\r\n").title == "Front"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "---\n: : [\n---\n",
        "---\n- a list\n---\n",
        "---\nwidget: 3\nthumbnail: [1]\ntitle: {a: b}\n---\n",
        "---\nwidget:\n- text: 3\n- 7\n- other: x\n---\n",
        "---\ndate: 2020-99-99\n---\n",
        "---\nnever closed\n",
        "---\na: &a [*a]\n---\n",
    ],
)
def test_a_malformed_card_is_an_empty_one(text: str) -> None:
    assert parse_card(text) == ModelCard()


@given(st.text(alphabet=st.sampled_from("-\n:&*@#<>div [](){}url'\"ab\x00é")))
def test_no_card_stops_an_export(text: str) -> None:
    parse_card(text)
    parse_card(f"---\n{text}\n---\n{text}")


def test_no_card_and_one_that_is_not_utf8(tmp_path: Path) -> None:
    assert load_card(tmp_path) == ModelCard()
    (tmp_path / "README.md").write_bytes(b"# Caf\xe9\n")
    assert load_card(tmp_path).title == "Caf\ufffd"


# -- pictures in the folder ------------------------------------------------------------------

SVG = b"<svg xmlns='http://www.w3.org/2000/svg'/>"


def picture_of(folder: Path, address: str) -> str:
    (folder / "README.md").write_text(f"---\nthumbnail: '{address}'\n---\n", encoding="utf-8")
    return load_card(folder).picture


def test_a_small_picture_beside_the_card_is_carried_in_its_address(tmp_path: Path) -> None:
    (tmp_path / "me.svg").write_bytes(SVG)
    address = picture_of(tmp_path, "me.svg")
    assert address.startswith("data:image/svg+xml;base64,")
    assert base64.b64decode(address.partition(",")[2]) == SVG


@pytest.mark.parametrize(
    "address",
    ["https://a.example/me.svg", "missing.svg", "../out.svg", "large.png", "text.txt", ""],
)
def test_other_addresses_stay_as_they_are(tmp_path: Path, address: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "out.svg").write_bytes(SVG)
    (folder / "large.png").write_bytes(b"x" * (LARGEST_PICTURE + 1))
    (folder / "text.txt").write_bytes(b"x")
    assert picture_of(folder, address) == address
