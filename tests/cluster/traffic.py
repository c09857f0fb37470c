"""Clients that ask for many models at once, and remember how each request went."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import httpx

from tests.e2e.server_support import events

PROMPT = "We have"
SEEDS = 3


@dataclass
class Sent:
    """A request. Times are of `time.monotonic`."""

    id: str
    model: str
    seed: int
    stream: bool
    begin: float
    end: float = 0.0
    #: What the client saw go wrong; empty if all was well.
    failure: str = ""
    text: str = ""


@dataclass
class Traffic:
    """`clients` that send one request after the other to `url` while the block runs."""

    url: str
    models: Sequence[str]
    clients: int = 6
    tokens: int = 40
    sent: list[Sent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number,)) for number in range(self.clients)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def failed(self) -> list[Sent]:
        return [one for one in self.sent if one.failure]

    def _run(self, number: int) -> None:
        draw = random.Random(number)
        with httpx.Client(base_url=self.url, timeout=60) as client:
            for count in range(1_000_000):
                if self._stop.is_set():
                    return
                one = Sent(
                    id=f"client-{number}-{count}",
                    model=draw.choice(self.models),
                    seed=draw.randrange(SEEDS),
                    # The first of a client is, so that there are some from the start.
                    stream=count % 2 == 0,
                    begin=time.monotonic(),
                )
                try:
                    one.text = self._text(client, one)
                except (httpx.TransportError, AssertionError) as error:
                    one.failure = repr(error)
                one.end = time.monotonic()
                self.sent.append(one)

    def _text(self, client: httpx.Client, one: Sent) -> str:
        body = {"model": one.model, "prompt": PROMPT, "seed": one.seed, "do_sample": True}
        body |= {"max_new_tokens": self.tokens, "min_new_tokens": self.tokens}
        headers = {"X-Request-Id": one.id}
        if not one.stream:
            answer = client.post("/generate", json=body, headers=headers)
            assert answer.status_code == 200, (answer.status_code, answer.text)
            return str(answer.json()["generations"][0]["text"])
        body["stream"] = True
        with client.stream("POST", "/generate", json=body, headers=headers) as answer:
            assert answer.status_code == 200, (answer.status_code, answer.read())
            received: list[Any] = list(events(answer.iter_lines()))
        assert received[-1] == "[DONE]", received[-1]
        (ended,) = [event for event in received if "finish_reason" in event]
        assert ended["tokens"] == self.tokens, ended
        return str(ended["text"])

    def assert_texts_are_the_same_everywhere(self) -> None:
        """One text for each model and seed, whichever replica made it, streamed or not."""
        texts: dict[tuple[str, int], str] = {}
        for one in self.sent:
            if not one.failure:
                assert texts.setdefault((one.model, one.seed), one.text) == one.text, one
