"""A fake engine whose requests have a tokenizer, for the tests of OpenAI's API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from gpt2serve.engine.events import (
    Done,
    Generation,
    PromptToken,
    PromptTokens,
    Timing,
    Token,
    TokenEvent,
    TopToken,
    Usage,
)
from gpt2serve.engine.params import SamplingParams
from gpt2serve.engine.stream import Delivery
from tests.unit.api_support import FakeEngine, Served

END = 0
#: The euro sign is two tokens, neither of which is a character.
WORDS = {
    1: b"Once",
    2: b" upon",
    3: b" a",
    4: b" time",
    5: b" .",
    6: b" \xe2\x82",
    7: b"\xac",
    8: b"\n",
    9: b"end",
}
MODEL = "me/model"
MINIMAL = {"model": MODEL, "prompt": "Once upon"}


class FakeTokenizer:
    def token_bytes(self, token: int) -> bytes:
        return WORDS.get(token, b"")

    def special_name(self, token: int) -> str | None:
        return "<|endoftext|>" if token == END else None


@dataclass
class Prepared:
    prompt: str
    prompt_tokens: int = 2
    prefix_tokens: int = 0
    begun: bytes = b""
    tokenizer: FakeTokenizer = field(default_factory=FakeTokenizer)


@dataclass
class CompletionEngine(FakeEngine):
    """Notes what is asked of it as `FakeEngine` does."""

    #: What `prepare` makes of every prompt; the prompt itself, if it is a text, by default.
    prepared: Prepared | None = None

    def prepare(self, model: str, prompt: Any, params: SamplingParams) -> Any:
        super().prepare(model, prompt, params)
        return self.prepared or Prepared(prompt if isinstance(prompt, str) else "Once upon")

    @property
    def asked(self) -> list[tuple[str, Any, SamplingParams]]:
        return [given for given in self.given if isinstance(given, tuple)]


def token(number: int, text: str | None = None, logprob: float = -0.5, *top: TopToken) -> Token:
    spelled = WORDS.get(number, b"").decode(errors="ignore") if text is None else text
    return Token(number, spelled, logprob, top)


def sequence(
    index: int,
    tokens: Sequence[Token],
    reason: Any = "length",
    prompt: str = "",
    *,
    details: bool = True,
) -> list[Delivery]:
    """What the engine tells of a sequence: each token in a step of its own."""
    steps = [Delivery([TokenEvent(index, token)]) for token in tokens] or [Delivery()]
    steps[-1].events.append(
        Generation(
            index=index,
            text=prompt + "".join(token.text for token in tokens),
            finish_reason=reason,
            tokens=len(tokens),
            seed=7 + index,
            details=tuple(tokens) if details else None,
        )
    )
    return steps


def ended(steps: list[Delivery], completion_tokens: int = 3) -> list[Delivery]:
    steps[-1].events.append(
        Done(
            model_version="ab" * 8,
            usage=Usage(prompt_tokens=2, completion_tokens=completion_tokens),
            timing=Timing(queue_ms=1.0, load_ms=2.0, prefill_ms=3.0, decode_ms=4.0),
        )
    )
    return steps


def prompt_tokens(*numbers: int) -> Delivery:
    first = PromptToken(numbers[0], None)
    rest = [PromptToken(number, -1.5, (TopToken(4, -0.25),)) for number in numbers[1:]]
    return Delivery([PromptTokens((first, *rest))])


A_TIME = [token(3), token(4), token(5, "."), token(END, "")]


def served(
    steps: list[Delivery] | None = None, prepared: Prepared | None = None, **options: Any
) -> Served:
    steps = ended(sequence(0, A_TIME, "eos")) if steps is None else steps
    return Served(CompletionEngine(steps, prepared=prepared, **options))


def complete(server: Served, **fields: Any) -> httpx.Response:
    return server.request("POST", "/v1/completions", json=MINIMAL | fields)


def choices(server: Served, **fields: Any) -> list[dict[str, Any]]:
    answer = complete(server, **fields)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["choices"]
    return found


def assert_error(
    answer: httpx.Response, status: int, kind: str, code: str, param: str | None = None
) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    (error,) = answer.json().values()
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"], error["param"]) == (kind, code, param)
    message: str = error["message"]
    assert message
    return message
