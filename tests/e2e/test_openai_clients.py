"""The `openai` package, as it comes, against a real server with real models."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types import Completion
from tokenizers import Tokenizer

from tests.conftest import ROOT, export
from tests.e2e.server_support import LONG, Server

MODEL, WITH_OWNER = "george-washington", "presidents/washington"
PROMPT = "My fellow citizens,"
END = 4095
#: The same wishes in the words of `POST /generate`.
SAME: dict[str, Any] = {
    "do_sample": True,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_new_tokens": 0,
    "max_new_tokens": 16,
    "return_full_text": False,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("openai-store")
    checkpoint = str(ROOT / "samples" / MODEL)
    export(folder, checkpoint)
    export(folder, checkpoint, "--id", WITH_OWNER)
    return folder


@pytest.fixture(scope="module")
def url(store: Path) -> Iterator[str]:
    server = Server(store)
    yield server.url
    server.process.kill()
    server.process.communicate()


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def tokenizer(store: Path) -> Tokenizer:
    return Tokenizer.from_file(str(store / MODEL / "cpu-int8" / "tokenizer.json"))


def complete(client: openai.OpenAI, prompt: Any = PROMPT, **fields: Any) -> Completion:
    made = client.completions.create(**({"model": MODEL, "prompt": prompt, "seed": 7} | fields))
    assert isinstance(made, Completion)
    return made


def text(client: openai.OpenAI, prompt: Any = PROMPT, **fields: Any) -> str:
    (choice,) = complete(client, prompt, **fields).choices
    return choice.text


def token_lines(logprobs: Any) -> list[tuple[Any, ...]]:
    lists = (logprobs.text_offset, logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs)
    return list(zip(*lists, strict=True))


def generate(url: str, **fields: Any) -> list[dict[str, Any]]:
    body = {"model": MODEL, "prompt": PROMPT, "seed": 7} | SAME | fields
    answer = httpx.post(f"{url}/generate", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    generations: list[dict[str, Any]] = answer.json()["generations"]
    return generations


# -- the same text as /generate, whole, streamed, alone, together -------------------------------


def test_the_same_seed_gives_the_same_text_as_generate(client: openai.OpenAI, url: str) -> None:
    made = complete(client)
    (choice,) = made.choices
    (generation,) = generate(url)
    assert choice.text == generation["text"] != ""
    assert (made.object, made.model, choice.finish_reason) == ("text_completion", MODEL, "length")
    assert made.usage is not None
    assert made.usage.completion_tokens == 16
    assert made.usage.total_tokens == made.usage.prompt_tokens + 16


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ({"temperature": 0}, {"do_sample": False}),
        ({"temperature": 0.5, "top_p": 0.75}, {"temperature": 0.5, "top_p": 0.75}),
        ({"max_tokens": 40, "n": 3}, {"max_new_tokens": 40, "num_return_sequences": 3}),
        ({"stop": [" the", ","]}, {"stop": [" the", ","]}),
        ({"echo": True}, {"return_full_text": True}),
        (
            {"extra_body": {"top_k": 5, "repetition_penalty": 1.5, "min_tokens": 8}},
            {"top_k": 5, "repetition_penalty": 1.5, "min_new_tokens": 8},
        ),
    ],
    ids=str,
)
def test_equal_wishes_give_equal_texts(
    client: openai.OpenAI, url: str, fields: dict[str, Any], same: dict[str, Any]
) -> None:
    choices = complete(client, **fields).choices
    assert [choice.text for choice in choices] == [one["text"] for one in generate(url, **same)]
    assert [choice.index for choice in choices] == list(range(len(choices)))


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("logprobs", [None, 2])
def test_a_stream_adds_up_to_the_whole(
    client: openai.OpenAI, logprobs: int | None, echo: bool
) -> None:
    fields = {"n": 3, "max_tokens": 30, "logprobs": logprobs, "echo": echo, "stop": [" of"]}
    whole = complete(client, **fields)
    stream = client.completions.create(
        model=MODEL, prompt=PROMPT, seed=7, stream=True, stream_options={"include_usage": True},
        **fields,
    )  # fmt: skip
    texts, reasons = [""] * 3, [""] * 3
    tokens: list[list[Any]] = [[], [], []]
    usage = None
    for chunk in stream:
        usage = chunk.usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason
            if choice.logprobs is not None:
                tokens[choice.index] += token_lines(choice.logprobs)
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage
    if logprobs is not None:
        assert tokens == [token_lines(choice.logprobs) for choice in whole.choices]


def test_many_at_once_say_what_each_says_alone(client: openai.OpenAI, url: str) -> None:
    alone = [text(client, seed=seed) for seed in range(8)]

    async def one(busy: openai.AsyncOpenAI, seed: int) -> str:
        pieces = ""
        stream = await busy.completions.create(model=MODEL, prompt=PROMPT, seed=seed, stream=True)
        async for chunk in stream:
            pieces += chunk.choices[0].text
        return pieces

    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as busy:
            whole = await busy.completions.create(model=MODEL, prompt=PROMPT, seed=0)
            assert whole.choices[0].text == alone[0]
            return await asyncio.gather(*(one(busy, seed) for seed in range(8)))

    assert asyncio.run(main()) == alone


def test_prompts_in_a_list_say_what_each_says_alone(client: openai.OpenAI) -> None:
    prompts = [PROMPT, "The war", ""]
    made = complete(client, prompts, n=2)
    each = [complete(client, prompt, n=2) for prompt in prompts]
    alone = [choice.text for one in each for choice in one.choices]
    assert [choice.text for choice in made.choices] == alone
    assert made.usage is not None
    assert made.usage.total_tokens == sum(one.usage.total_tokens for one in each)
    assert text(client, None) == text(client, "")


def test_token_ids_say_what_their_text_says(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<|endoftext|>" + PROMPT).ids  # with the model's prefix
    assert text(client, ids) == text(client)
    other = tokenizer.encode("<|endoftext|>The war").ids
    made = complete(client, [ids, other])
    assert [choice.text for choice in made.choices] == [text(client), text(client, "The war")]
    assert text(client, ids, echo=True) == PROMPT + text(client)


# -- what else is honoured ----------------------------------------------------------------------


def test_best_of_returns_the_likeliest(client: openai.OpenAI) -> None:
    all_of_them = complete(client, n=5, logprobs=0)
    every = all_of_them.choices
    means = [sum(c.logprobs.token_logprobs) / len(c.logprobs.tokens) for c in every]
    ranked = sorted(range(5), key=means.__getitem__, reverse=True)
    best = complete(client, n=2, best_of=5)
    assert [choice.text for choice in best.choices] == [every[i].text for i in ranked[:2]]
    assert best.usage == all_of_them.usage


def test_logprobs_belong_to_the_tokens_of_the_text(client: openai.OpenAI) -> None:
    (choice,) = complete(client, max_tokens=40, logprobs=5).choices
    found = choice.logprobs
    assert found is not None
    assert "".join(found.tokens) == choice.text
    for token, offset, logprob, top in zip(
        found.tokens, found.text_offset, found.token_logprobs, found.top_logprobs, strict=True
    ):
        assert choice.text[offset:].startswith(token)
        assert top[token] == logprob
        assert len(top) - (len(top) > 5) == 5
        assert sum(map(math.exp, top.values())) <= 1 + 1e-5
        # Not one of the five, or a token that is: nothing that is left out is likelier.
        assert min(top, key=top.__getitem__) == token or len(top) == 5


def test_echo_scores_the_prompt(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    """Tokens that were generated score nearly as they did while they were generated."""
    (made,) = complete(client, max_tokens=12, logprobs=1, echo=True).choices
    assert made.logprobs is not None
    assert "".join(made.logprobs.tokens) == made.text
    assert made.text.startswith(PROMPT)
    # The first has a logprob: the model's prefix, which is not shown, comes before it.
    assert None not in made.logprobs.token_logprobs
    ids = [one for name in made.logprobs.tokens for one in tokenizer.encode(name).ids]
    (scored,) = complete(client, [END, *ids], max_tokens=0, logprobs=1, echo=True).choices
    assert (scored.text, scored.finish_reason) == (made.text, "length")
    assert scored.logprobs is not None
    assert scored.logprobs.tokens == ["<|endoftext|>", *made.logprobs.tokens]
    assert scored.logprobs.text_offset == [0, *made.logprobs.text_offset]
    first, *rest = scored.logprobs.token_logprobs
    assert first is None
    assert rest == pytest.approx(made.logprobs.token_logprobs, abs=0.1)
    assert scored.logprobs.top_logprobs[0] is None


def test_logit_bias_forces_and_bans(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    (wanted,) = tokenizer.encode(" war").ids
    assert text(client, max_tokens=3, logit_bias={str(wanted): 100}) == " war war war"
    greedy = complete(client, temperature=0, max_tokens=1, logprobs=0).choices[0]
    assert greedy.logprobs is not None
    (likeliest,) = tokenizer.encode(greedy.text).ids
    banned = text(client, temperature=0, max_tokens=1, logit_bias={str(likeliest): -100})
    assert banned != greedy.text


@pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty"])
def test_penalties_bring_more_different_tokens(client: openai.OpenAI, penalty: str) -> None:
    greedy: dict[str, Any] = {"temperature": 0, "max_tokens": 100, "logprobs": 0}

    def different(**fields: Any) -> int:
        (choice,) = complete(client, **greedy, **fields).choices
        assert choice.logprobs is not None
        return len(set(choice.logprobs.tokens))

    assert different(**{penalty: 2}) > different() > different(**{penalty: -2})


def test_ignore_eos_goes_on(client: openai.OpenAI) -> None:
    end = {"logit_bias": {str(END): 100}, "max_tokens": 5}
    stopped = complete(client, **end)
    assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == ("", "stop")
    going = complete(client, **end, extra_body={"ignore_eos": True})
    assert going.choices[0].finish_reason == "length"
    assert going.usage is not None
    assert going.usage.completion_tokens == 5


def test_the_example(url: str) -> None:
    command = [sys.executable, str(ROOT / "examples" / "openai_client.py"), url, MODEL, PROMPT]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(PROMPT) == 4


# -- models and errors --------------------------------------------------------------------------


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL, WITH_OWNER]
    model = client.models.retrieve(WITH_OWNER)
    assert (model.id, model.object, model.owned_by) == (WITH_OWNER, "model", "presidents")
    assert text(client, model=WITH_OWNER) == text(client)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody/here")


def test_errors_are_openais_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        complete(client, model="nobody")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as long:
        complete(client, max_tokens=300)
    assert (long.value.type, long.value.param) == ("invalid_request_error", "max_tokens")
    assert long.value.code == "context_length_exceeded"
    # litellm knows it by these words.
    assert "this model's maximum context length is 256 tokens" in long.value.message
    with pytest.raises(openai.BadRequestError) as unknown:
        complete(client, extra_body={"beam_width": 4})
    assert unknown.value.param == "beam_width"
    with pytest.raises(openai.BadRequestError) as suffix:
        complete(client, suffix="the end")
    assert suffix.value.param == "suffix"
    with pytest.raises(openai.BadRequestError) as token:
        complete(client, [4096])
    assert token.value.param == "prompt"
    with pytest.raises(openai.APIStatusError) as method:
        client.models.delete(MODEL)
    assert (method.value.status_code, method.value.code) == (405, "method_not_allowed")
    with pytest.raises(openai.NotFoundError, match="/v1/completions"):
        client.models.retrieve("one/two/three")
    with pytest.raises(openai.NotFoundError, match="/v1/completions"):
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hi"}])


def test_a_full_server_is_a_rate_limit_error(serve: Callable[..., Server]) -> None:
    server = serve("--max-queue", "1")
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
        server.client() as other,
        other.stream("POST", "/generate", json=LONG | {"stream": True}) as running,
    ):
        lines = running.iter_lines()  # which would close the answer if nobody held it
        next(lines)
        with pytest.raises(openai.RateLimitError) as full:
            complete(client)
        assert full.value.type == "rate_limit_error"
        assert full.value.response.headers["retry-after"] == "1"
        with pytest.raises(openai.BadRequestError) as many:
            complete(client, [PROMPT, PROMPT])
        assert many.value.param == "prompt"
