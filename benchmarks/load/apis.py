"""How each API is asked, and how its answers are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from benchmarks.load.traffic import Ask

Json = dict[str, Any]

#: How texts are drawn. The peers, whose protocol has no top_k, draw from as many.
TEMPERATURE, TOP_K = 1.0, 50


@dataclass(slots=True)
class Answer:
    """What has been read of an answer. `arrivals` are the times when tokens came.

    tokens and prompt_tokens: as the server counted them, None until it tells. load_ms: how long
    the request waited for its model to be loaded, None where the server does not tell.
    """

    arrivals: list[float] = field(default_factory=list)
    tokens: int | None = None
    prompt_tokens: int | None = None
    text: str = ""
    load_ms: float | None = None
    error: str | None = None


class Api(Protocol):
    """One way to ask a server. `stream` says whether it answers token by token."""

    @property
    def url(self) -> str: ...

    @property
    def models_url(self) -> str: ...

    @property
    def stream(self) -> bool: ...

    def headers(self, ask: Ask) -> dict[str, str]: ...

    def body(self, ask: Ask) -> Json: ...

    def read_event(self, event: Json, now: float, answer: Answer) -> None:
        """One server-sent event that came at `now`. Raises LookupError or TypeError if odd."""

    def read_whole(self, body: Json, answer: Answer) -> None:
        """An answer that was not streamed. Raises LookupError or TypeError if odd."""


@dataclass(frozen=True)
class _Base:
    """server: the deployment's address. exact: the model may not end before `Ask.tokens`.

    extra_headers: values may hold "{model}", which becomes the model of the request.
    extra_body: put into every request's body, over what is there.
    """

    server: str
    stream: bool = True
    exact: bool = False
    extra_headers: dict[str, str] = field(default_factory=dict)
    extra_body: Json = field(default_factory=dict)

    def headers(self, ask: Ask) -> dict[str, str]:
        given = self.extra_headers.items()
        return {name: value.replace("{model}", ask.model) for name, value in given}


@dataclass(frozen=True)
class Generate(_Base):
    """`POST /generate` of this project.

    Sampling is asked for in full: what a model's package says of it must not decide how much work
    is measured. `Completions` asks for the same as far as its protocol goes, which has no top_k.
    """

    @property
    def url(self) -> str:
        return self.server.rstrip("/") + "/generate"

    @property
    def models_url(self) -> str:
        return self.server.rstrip("/") + "/models"

    def body(self, ask: Ask) -> Json:
        body: Json = {
            "model": ask.model,
            "prompt": ask.prompt,
            "max_new_tokens": ask.tokens,
            "seed": ask.seed,
            "do_sample": True,
            "temperature": TEMPERATURE,
            "top_k": TOP_K,
            "stream": self.stream,
        }
        if self.exact:
            body["min_new_tokens"] = ask.tokens
        return body | self.extra_body

    def read_event(self, event: Json, now: float, answer: Answer) -> None:
        if "token" in event:
            answer.arrivals.append(now)
        elif "finish_reason" in event:
            answer.text = event["text"]
        elif "usage" in event:
            self._read_end(event, answer)
        elif "error" in event:
            answer.error = str(event["error"]["code"])

    def read_whole(self, body: Json, answer: Answer) -> None:
        answer.text = body["generations"][0]["text"]
        self._read_end(body, answer)

    @staticmethod
    def _read_end(body: Json, answer: Answer) -> None:
        answer.prompt_tokens = body["usage"]["prompt_tokens"]
        answer.tokens = body["usage"]["completion_tokens"]
        answer.load_ms = body["timing"]["load_ms"]


@dataclass(frozen=True)
class Completions(_Base):
    """`POST /v1/completions` as OpenAI, vLLM and others have it."""

    @property
    def url(self) -> str:
        return self.server.rstrip("/") + "/v1/completions"

    @property
    def models_url(self) -> str:
        return self.server.rstrip("/") + "/v1/models"

    def body(self, ask: Ask) -> Json:
        body: Json = {
            "model": ask.model,
            "prompt": ask.prompt,
            "max_tokens": ask.tokens,
            "seed": ask.seed,
            "temperature": TEMPERATURE,
            "stream": self.stream,
        }
        if self.stream:
            body["stream_options"] = {"include_usage": True}
        if self.exact:
            body |= {"min_tokens": ask.tokens, "ignore_eos": True}
        return body | self.extra_body

    def read_event(self, event: Json, now: float, answer: Answer) -> None:
        if "error" in event:
            answer.error = _error_code(event["error"])
            return
        for choice in event["choices"]:
            if choice["text"]:
                answer.arrivals.append(now)
                answer.text += choice["text"]
        self._read_usage(event, answer)

    def read_whole(self, body: Json, answer: Answer) -> None:
        answer.text = body["choices"][0]["text"]
        self._read_usage(body, answer)

    @staticmethod
    def _read_usage(body: Json, answer: Answer) -> None:
        usage = body.get("usage")
        if usage:
            answer.prompt_tokens = usage["prompt_tokens"]
            answer.tokens = usage["completion_tokens"]


def _error_code(error: Any) -> str:
    """OpenAI's `code` is null as often as not."""
    if isinstance(error, dict):
        return str(error.get("code") or error.get("type") or "error")
    return "error"


APIS: dict[str, type[Generate] | type[Completions]] = {
    "generate": Generate,
    "completions": Completions,
}
