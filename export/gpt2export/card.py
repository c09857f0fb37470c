"""What a model card (README.md) says about a model, for a page that shows it.

The card is decoration: whatever is wrong with it, the export goes on with what can be read.
"""

from __future__ import annotations

import base64
import html
import mimetypes
import re
from pathlib import Path
from typing import Any

import msgspec

from gpt2serve.package import ModelCard

CARD_FILE = "README.md"
#: In bytes; a larger one would make the manifest slow to read.
LARGEST_PICTURE = 32 * 1024

_FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_HEADING = re.compile(r"^#\s+(.+?)\s*#*\s*$", re.MULTILINE)
_BOLD_DIV = re.compile(r"<div[^>]*font-weight:\s*800[^>]*>([^<]*)</div>", re.IGNORECASE)
_HANDLE = re.compile(r"<div[^>]*>\s*(@[A-Za-z0-9_]+(?:[-&\s]+@?[A-Za-z0-9_]+)*)\s*</div>")
_PICTURE = re.compile(r"background-image:\s*url\(\s*(.*?)\s*\)", re.IGNORECASE)

#: The line that huggingtweets puts above the name, in the same style.
_BANNER = "AI BOT"


def load_card(folder: Path) -> ModelCard:
    try:
        text = (folder / CARD_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ModelCard()
    card = parse_card(text)
    return msgspec.structs.replace(card, picture=_carried(folder, card.picture))


def _carried(folder: Path, picture: str) -> str:
    """The address of `picture`; of a small file beside the card, one that holds the file itself.

    Nobody has the folder who has the package.
    """
    media_type, _ = mimetypes.guess_type(picture)
    path = folder / picture
    try:
        if ":" in picture or not path.resolve().is_relative_to(folder.resolve()):
            return picture
        if (media_type or "").startswith("image/") and path.stat().st_size <= LARGEST_PICTURE:
            data = base64.b64encode(path.read_bytes()).decode("ascii")
            return f"data:{media_type};base64,{data}"
    except (OSError, ValueError):  # ValueError: a name that no file can have
        pass
    return picture


def parse_card(text: str) -> ModelCard:
    """Never raises: a field that cannot be read is empty."""
    front, body = _split(text)
    return ModelCard(
        title=_text(front.get("title")) or _display_name(body) or _first(_HEADING, body),
        handle=_first(_HANDLE, body),
        example_prompts=_prompts(front.get("widget")),
        picture=_text(front.get("thumbnail")) or _picture(body),
    )


def _split(text: str) -> tuple[dict[str, Any], str]:
    """Front matter and the rest."""
    import yaml

    match = _FRONT_MATTER.match(text)
    if not match:
        return {}, text
    try:
        front = yaml.safe_load(match.group(1))
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: an impossible date
        front = None
    return (front if isinstance(front, dict) else {}), text[match.end() :]


def _prompts(widget: Any) -> tuple[str, ...]:
    items = widget if isinstance(widget, list) else [widget]
    texts = [_text(item.get("text")) for item in items if isinstance(item, dict)]
    return tuple(text for text in texts if text)


def _display_name(body: str) -> str:
    names = [_clean(name) for name in _BOLD_DIV.findall(body)]
    return next((name for name in names if name and _BANNER not in name), "")


def _picture(body: str) -> str:
    found = (_clean(url).strip("'\"") for url in _PICTURE.findall(body))
    return next((url for url in found if url), "")


def _first(pattern: re.Pattern[str], body: str) -> str:
    match = pattern.search(body)
    return _clean(match.group(1)) if match else ""


def _clean(text: str) -> str:
    return " ".join(html.unescape(text).split())


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""
