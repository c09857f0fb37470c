"""The file of API keys: one key a line, hashed.

    sha256:<64 hex digits>  NAME  [rate=TOKENS_PER_MINUTE]  [models=PATTERN,PATTERN]

Empty lines and lines that begin with `#` say nothing. A `*` in a pattern stands for any
characters of one part of a model's id: `me/*` is all of `me`, and nothing else.

A plain SHA-256 is enough, since `new_key` draws 256 bits: there is no list of words to try. No
message quotes a line, as somebody may have written the key itself where its hash belongs.
"""

from __future__ import annotations

import functools
import hashlib
import re
import secrets
from collections.abc import Iterator

import msgspec

from gpt2serve.errors import SettingsError

#: Makes keys easy to find for those who search files for secrets.
KEY_PREFIX = "gpt2serve_"
#: The most tokens a minute that a key can be given; the limit is there to find typing errors.
MOST_TOKENS = 10**12

#: What `sha256sum` makes of nothing, such as a variable that is not set.
_HASH_OF_NOTHING = hashlib.sha256(b"").digest()
_HASH = re.compile(r"sha256:([0-9a-fA-F]{64})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
_RATE = re.compile(r"[1-9][0-9]{0,12}")
_PATTERN = re.compile(r"[A-Za-z0-9._*-]+(?:/[A-Za-z0-9._*-]+)?")


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """What the file says about one key."""

    digest: bytes
    name: str
    #: Tokens per minute; None is without a limit.
    rate: int | None = None
    #: None is all models.
    models: tuple[str, ...] | None = None

    def may_use(self, model: str) -> bool:
        if self.models is None:
            return True
        return any(_compiled(pattern).fullmatch(model) for pattern in self.models)


def new_key() -> str:
    return KEY_PREFIX + secrets.token_urlsafe(32)


def digest_of(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def parse_keys(text: str, origin: str) -> dict[bytes, ApiKey]:
    """The keys of a file, by digest. Raises `SettingsError`, which names `origin` and line."""
    found: dict[bytes, ApiKey] = {}
    names: dict[str, int] = {}
    for number, line in _lines(text):
        try:
            key = parse_line(line)
            if key.digest in found:
                raise WrongLine(f"has the same key as line {names[found[key.digest].name]}")
            if key.name in names:
                raise WrongLine(f"has the same name as line {names[key.name]}")
        except WrongLine as wrong:
            raise SettingsError(f"{origin}, line {number} {wrong}.") from None
        found[key.digest] = key
        names[key.name] = number
    return found


class WrongLine(ValueError):
    """What is wrong with it, without a word of it."""


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        if line and not line.startswith("#"):
            yield number, line


def parse_line(line: str) -> ApiKey:
    """Raises `WrongLine`."""
    fields = line.split()
    digest = _HASH.fullmatch(fields[0])
    if digest is None:
        raise WrongLine(
            "begins with no `sha256:` and 64 hex digits; `python -m gpt2serve.keys NAME` makes a "
            "key and its line"
        )
    if bytes.fromhex(digest[1]) == _HASH_OF_NOTHING:
        raise WrongLine("has the hash of an empty key")
    if len(fields) < 2 or not _NAME.fullmatch(fields[1]):
        raise WrongLine(
            "has no name behind the hash: up to 64 letters, digits, and . _ @ + -, the first a "
            "letter or digit"
        )
    options = _options(fields[2:])
    return ApiKey(
        digest=bytes.fromhex(digest[1]),
        name=fields[1],
        rate=_rate(options["rate"]) if "rate" in options else None,
        models=_models(options["models"]) if "models" in options else None,
    )


def _options(fields: list[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for field in fields:
        option, _, value = field.partition("=")
        if option not in ("rate", "models"):
            raise WrongLine("has something behind the name that is neither rate= nor models=")
        if option in options:
            raise WrongLine(f"has {option}= twice")
        options[option] = value
    return options


def _rate(text: str) -> int:
    if not _RATE.fullmatch(text) or int(text) > MOST_TOKENS:
        raise WrongLine(f"has a rate= that is no whole number from 1 to {MOST_TOKENS}")
    return int(text)


def _models(text: str) -> tuple[str, ...]:
    patterns = tuple(text.split(","))
    if not all(_PATTERN.fullmatch(pattern) for pattern in patterns):
        raise WrongLine(
            "has a models= that is no list of ids with commas, in which * stands for any characters"
        )
    return patterns


@functools.lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile("[^/]*".join(map(re.escape, pattern.split("*"))))
