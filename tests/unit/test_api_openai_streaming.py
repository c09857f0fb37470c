"""Streamed completions over a fake engine: chunks, usage, errors, and that they add up."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gpt2serve import errors
from gpt2serve.engine.events import TopToken
from gpt2serve.engine.stream import Delivery
from tests.unit.api_support import RawClient, Served, frames
from tests.unit.openai_support import (
    A_TIME,
    END,
    MINIMAL,
    MODEL,
    Prepared,
    choices,
    complete,
    ended,
    prompt_tokens,
    sequence,
    served,
    token,
)

LISTS = ("text_offset", "token_logprobs", "tokens", "top_logprobs")


def chunks(server: Served, **fields: Any) -> list[dict[str, Any]]:
    answer = complete(server, stream=True, **fields)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    *found, last = frames(answer.text)
    assert last == "[DONE]"
    return found


def put_together(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The choices of a whole answer, from the chunks of a stream."""
    whole: dict[int, dict[str, Any]] = {}
    for chunk in found:
        for choice in chunk["choices"]:
            empty = {"index": choice["index"], "text": "", "logprobs": None, "finish_reason": None}
            into = whole.setdefault(choice["index"], empty)
            into["text"] += choice["text"]
            assert into["finish_reason"] is None, "a chunk after the last one"
            into["finish_reason"] = choice["finish_reason"]
            if (new := choice["logprobs"]) is not None:
                old = into["logprobs"] or {name: [] for name in LISTS}
                into["logprobs"] = {name: old[name] + new[name] for name in LISTS}
    return [whole[index] for index in sorted(whole)]


def test_chunks_have_openais_shape() -> None:
    server = served()
    answer = complete(server, stream=True)
    *found, done = frames(answer.text)
    assert done == "[DONE]"
    assert found[0].pop("created") > 1.7e9
    assert found[0] == {
        "id": f"cmpl-{answer.headers['x-request-id']}",
        "object": "text_completion",
        "model": MODEL,
        "choices": [{"text": " a", "index": 0, "logprobs": None, "finish_reason": None}],
    }
    told = [(chunk["choices"][0]["text"], chunk["choices"][0]["finish_reason"]) for chunk in found]
    assert told == [(" a", None), (" time", None), (".", None), ("", "stop")]
    assert server.engine.given[-1] is True
    assert len({chunk["id"] for chunk in found}) == 1


def test_text_that_is_held_back_makes_no_chunk() -> None:
    steps = ended(sequence(0, [token(3, ""), token(4, " a time")]))
    assert [chunk["choices"][0]["text"] for chunk in chunks(served(steps))] == [" a time"]


def test_usage_is_in_the_last_chunk_and_null_in_all_others() -> None:
    *found, last = chunks(served(), stream_options={"include_usage": True})
    assert [chunk["usage"] for chunk in found] == [None] * 4
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}
    assert last["system_fingerprint"] == "ab" * 8


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}, {"include_usage": None}])
def test_no_usage_unless_asked_for(options: Any) -> None:
    found = chunks(served(), stream_options=options)
    assert all("usage" not in chunk for chunk in found)
    assert found[-1]["choices"] != []


def test_usage_so_far_in_every_chunk() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    found = chunks(served(), stream_options=options)
    assert [chunk["usage"]["completion_tokens"] for chunk in found] == [1, 2, 3, 4, 4]
    assert {chunk["usage"]["prompt_tokens"] for chunk in found} == {2}
    alone = chunks(served(), stream_options={"continuous_usage_stats": True})
    assert all("usage" not in chunk for chunk in alone)


def test_an_error_after_the_first_chunk_is_told_in_openais_shape() -> None:
    steps = [*sequence(0, A_TIME)[:1], Delivery(error=errors.StepFailed("secret"))]
    answer = complete(served(steps), stream=True)
    first, error = frames(answer.text)
    assert first["choices"][0]["text"] == " a"
    assert error["error"].pop("message")
    assert error == {"error": {"type": "server_error", "param": None, "code": "generation_failed"}}


def test_an_error_before_the_first_chunk_has_a_status() -> None:
    steps = [Delivery(error=errors.ModelLoadFailed("no", retry_after=1.0))]
    answer = complete(served(steps), stream=True)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "model_load_failed"


def test_client_that_leaves_cancels() -> None:
    server = served(held_from=1)

    async def main() -> None:
        client = RawClient(server.app, MINIMAL | {"stream": True}, "/v1/completions")
        await client.until(lambda: bool(client.chunks))
        await client.leave()

    asyncio.run(main())
    assert server.engine.cancelled > 0
    assert server.log[0]["client_gone"] is True


# -- the same whole and streamed --------------------------------------------------------------

#: With half characters, cleaned spaces, and text that comes later than its token.
LATE = [
    token(3, "", -0.1, TopToken(3, -0.1), TopToken(4, -2.0)),
    token(6, " a ", -0.2, TopToken(7, -0.1)),
    token(7, "\u20ac", -0.3),
    token(5, "", -0.4),
    token(END, ".", -0.5, TopToken(END, -0.5)),
]


def two() -> list[Delivery]:
    both = sequence(0, LATE, "eos", "Once upon") + sequence(1, A_TIME, "stop", "Once upon")
    return [prompt_tokens(END, 1, 2), *ended(both)]


@pytest.mark.parametrize("logprobs", [None, 0, 2])
@pytest.mark.parametrize("prompt", ["Once upon", ["Once upon", "Once upon"], [1, 2]])
def test_chunks_add_up_to_the_whole_answer(logprobs: int | None, prompt: Any) -> None:
    steps = two()
    fields = {"n": 2, "prompt": prompt, "logprobs": logprobs, "echo": True}
    prepared = Prepared("Once upon", prompt_tokens=3, prefix_tokens=1)
    whole = choices(served(steps, prepared), **fields)
    assert whole[0]["text"] == "Once upon a \u20ac."
    assert put_together(chunks(served(steps, prepared), **fields)) == whole


def test_an_answer_without_new_tokens() -> None:
    steps = [prompt_tokens(1, 2), *ended(sequence(0, [], prompt="Once upon"), 0)]
    fields = {"max_tokens": 0, "echo": True, "logprobs": 1}
    prepared = Prepared("Once upon")
    (choice,) = choices(served(steps, prepared), **fields)
    assert (choice["text"], choice["finish_reason"]) == ("Once upon", "length")
    assert choice["logprobs"] == {
        "text_offset": [0, 4],
        "token_logprobs": [None, -1.5],
        "tokens": ["Once", " upon"],
        "top_logprobs": [None, {" time": -0.25, " upon": -1.5}],
    }
    assert put_together(chunks(served(steps, prepared), **fields)) == [choice]
