"""Hugging Face's own clients, unchanged, against a server process."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import (
    GenerationError,
    HfHubHTTPError,
    IncompleteGenerationError,
    OverloadedError,
    ValidationError,
)

from gpt2serve import errors
from gpt2serve.api.serving import listen
from gpt2serve.engine.stream import Delivery
from tests.e2e.server_support import LONG, MODEL, PROMPT, Server, events, eventually
from tests.unit.test_api_huggingface import Engine, Served, text_events

OWNED = "some-org/George_W.1"
BOTH = pytest.mark.parametrize("model", [MODEL, OWNED])
WAYS = pytest.mark.parametrize("way", ["sync", "async"])
SEEDED: dict[str, Any] = {"max_new_tokens": 12, "seed": 7}


@pytest.fixture(scope="module")
def store(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model under an id of one part, and of two."""
    folder = tmp_path_factory.mktemp("store")
    for name in (MODEL, OWNED):
        shutil.copytree(sample_store / MODEL, folder / name)
    return folder


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[Server]:
    server = Server(store)
    yield server
    server.process.kill()
    server.process.communicate()


def client(server: Server, model: str, **options: Any) -> InferenceClient:
    url = f"{server.url}/models/{model}"
    return InferenceClient(model=url, provider="hf-inference", timeout=60, **options)


def generate(url: str, way: str, /, **fields: Any) -> Any:
    """`text_generation` of either client; a stream as a list."""
    if way == "sync":
        answer = InferenceClient(model=url, timeout=60).text_generation(PROMPT, **fields)
        return list(answer) if fields.get("stream") else answer

    async def main() -> Any:
        async with AsyncInferenceClient(model=url, timeout=60) as client:
            answer: Any = await client.text_generation(PROMPT, **fields)
            return [event async for event in answer] if fields.get("stream") else answer

    return asyncio.run(main())


def own_answer(server: Server, model: str, **fields: Any) -> dict[str, Any]:
    """What `POST /generate` says to the same."""
    with server.client() as http:
        body = {"model": model, "prompt": PROMPT, "details": True} | fields
        answer = http.post("/generate", json=body)
        assert answer.status_code == 200, answer.text
        (text,) = answer.json()["generations"]
    assert isinstance(text, dict)
    return text


@WAYS
@BOTH
def test_the_text_is_that_of_our_own_route(server: Server, model: str, way: str) -> None:
    url = f"{server.url}/models/{model}"
    expected = own_answer(server, model, **SEEDED)
    assert generate(url, way, **SEEDED) == expected["text"]
    assert expected["text"].startswith(PROMPT)
    without = generate(url, way, **SEEDED, return_full_text=False)
    assert PROMPT + without == expected["text"]
    pieces = generate(url, way, **SEEDED, stream=True)
    assert len(pieces) == expected["tokens"]
    assert "".join(pieces) == without


@WAYS
def test_details(server: Server, way: str) -> None:
    url = f"{server.url}/models/{OWNED}"
    expected = own_answer(server, OWNED, **SEEDED)
    output = generate(url, way, **SEEDED, details=True)
    assert output.generated_text == expected["text"]
    details = output.details
    assert (details.finish_reason, details.generated_tokens, details.seed) == ("length", 12, 7)
    tokens = [(token.id, token.text, token.logprob) for token in details.tokens]
    assert tokens == [(t["id"], t["text"], t["logprob"]) for t in expected["details"]]
    assert output.generated_text == PROMPT + "".join(token.text for token in details.tokens)
    assert details.prefill == []

    streamed = generate(url, way, **SEEDED, details=True, stream=True)
    assert [(e.token.id, e.token.text, e.token.logprob) for e in streamed] == tokens
    assert [event.index for event in streamed] == list(range(1, 13))
    *before, last = streamed
    assert {(event.generated_text, event.details) for event in before} == {(None, None)}
    assert last.generated_text == output.generated_text
    assert (last.details.finish_reason, last.details.seed) == ("length", 7)
    assert last.details.generated_tokens == 12


@pytest.mark.parametrize(
    "fields",
    [
        {"do_sample": False},
        {"do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.9},
        {"temperature": 1.3, "top_p": 1.0, "repetition_penalty": 1.2},
        {"stop": [" the", "\n"]},
    ],
    ids=lambda fields: "-".join(fields),
)
def test_the_same_wishes_give_the_same_text(server: Server, fields: dict[str, Any]) -> None:
    wishes = SEEDED | {"max_new_tokens": 40} | fields
    expected = own_answer(server, MODEL, **wishes)
    url = f"{server.url}/models/{MODEL}"
    output = generate(url, "sync", **wishes, details=True)
    assert output.generated_text == expected["text"]
    reasons = {"stop": "stop_sequence", "eos": "eos_token", "length": "length"}
    assert output.details.finish_reason == reasons[expected["finish_reason"]]
    if "stop" in fields:
        assert output.details.finish_reason == "stop_sequence"


@pytest.mark.parametrize("last", ["", "/generate"])
def test_a_temperature_draws_even_where_the_client_says_do_sample_false(
    server: Server, last: str
) -> None:
    """As older versions of it do unless they are told otherwise."""
    url = f"{server.url}/models/{MODEL}{last}"
    said = {"do_sample": False, "return_full_text": True, "temperature": 0.9, "top_k": 20}
    drawn = own_answer(
        server, MODEL, **SEEDED, temperature=0.9, top_k=20, top_p=1.0, do_sample=True
    )
    assert generate(url, "sync", **SEEDED, **said, top_p=1.0) == drawn["text"]
    other = generate(url, "sync", **SEEDED | {"seed": 8}, **said, top_p=1.0)
    assert other != drawn["text"]


def test_each_model_answers_by_its_own_defaults(server: Server) -> None:
    """And Text Generation Inference's address by that server's."""
    seed = {"seed": 3, "max_new_tokens": 30}
    own = own_answer(server, MODEL, **seed)["text"]
    url = f"{server.url}/models/{MODEL}"
    assert generate(url, "sync", **seed) == own
    plain = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_length": 0, "do_sample": True}
    tgi = own_answer(server, MODEL, **seed, **plain)["text"]
    assert PROMPT + generate(f"{url}/generate", "sync", **seed, do_sample=True) == tgi
    greedy = own_answer(server, MODEL, **seed, **plain | {"do_sample": False})["text"]
    assert PROMPT + generate(f"{url}/generate", "sync", **seed) == greedy
    pieces = generate(f"{url}/generate_stream", "sync", **seed, stream=True)
    assert PROMPT + "".join(pieces) == greedy
    assert len({own, tgi, greedy}) == 3


def test_a_seed_from_the_details_gives_the_text_again(server: Server) -> None:
    url = f"{server.url}/models/{MODEL}"
    first = generate(url, "sync", max_new_tokens=12, details=True)
    again = generate(url, "sync", max_new_tokens=12, seed=first.details.seed)
    assert again == first.generated_text


ALL: dict[str, Any] = {
    "best_of": 1,
    "do_sample": True,
    "frequency_penalty": 0.3,
    "max_new_tokens": 12,
    "repetition_penalty": 1.1,
    "return_full_text": False,
    "seed": 7,
    "stop": ["|", "~"],
    "temperature": 0.9,
    "top_k": 40,
    "top_n_tokens": 3,
    "top_p": 0.95,
    "truncate": 2,
    "typical_p": 0.9,
    "watermark": False,
}


@WAYS
def test_all_that_can_be_wished_for_together(server: Server, way: str) -> None:
    url = f"{server.url}/models/{OWNED}"
    output = generate(url, way, **ALL, details=True)
    assert output.generated_text == generate(url, way, **ALL)
    assert output.generated_text == "".join(token.text for token in output.details.tokens)
    tokens = [dict(token) for token in output.details.tokens]
    tops = output.details.top_tokens  # which the library leaves as they came
    for token, top in zip(tokens, tops, strict=True):
        chances = [one["logprob"] for one in top]
        assert chances == sorted(chances, reverse=True)
        assert len({one["id"] for one in top}) == 3
        assert token["logprob"] <= chances[0]
        assert all(one["logprob"] == token["logprob"] for one in top if one["id"] == token["id"])
    streamed = generate(url, way, **ALL, details=True, stream=True)
    assert [dict(event.token) for event in streamed] == tokens
    assert [[dict(top) for top in event.top_tokens] for event in streamed] == tops
    assert streamed[-1].generated_text == output.generated_text
    assert streamed[-1].details.input_length == 2


@pytest.mark.parametrize(
    "fields",
    [{"typical_p": 0.1}, {"frequency_penalty": 2.0}, {"repetition_penalty": 3.0}, {"truncate": 1}],
    ids=lambda fields: "-".join(fields),
)
def test_what_our_own_route_does_not_take_has_an_effect(
    server: Server, fields: dict[str, Any]
) -> None:
    url = f"{server.url}/models/{MODEL}"
    wishes = {"max_new_tokens": 40, "seed": 7}
    assert generate(url, "sync", **wishes) != generate(url, "sync", **wishes, **fields)


@WAYS
def test_a_text_that_the_model_ends(server: Server, way: str) -> None:
    """End-of-text is a token like any other, but no text."""
    url = f"{server.url}/models/{MODEL}"
    ends = (
        seed
        for seed in range(100)
        if own_answer(server, MODEL, seed=seed, temperature=0.8)["finish_reason"] == "eos"
    )
    fields = {"seed": next(ends), "temperature": 0.8, "details": True}
    output = generate(url, way, **fields)
    assert output.details.finish_reason == "eos_token"
    *others, last = output.details.tokens
    assert (last.special, {token.special for token in others}) == (True, {False})
    assert len(others) + 1 == output.details.generated_tokens
    assert PROMPT + "".join(token.text for token in (*others, last)) == output.generated_text
    streamed = generate(url, way, **fields, stream=True)
    assert [dict(event.token) for event in streamed] == [dict(token) for token in (*others, last)]
    assert "<|endoftext|>" not in output.generated_text


@WAYS
def test_tokens_of_the_prompt(server: Server, way: str) -> None:
    url = f"{server.url}/models/{MODEL}"
    fields = {"max_new_tokens": 3, "do_sample": False, "details": True}
    output = generate(url, way, **fields, decoder_input_details=True)
    first, *others = output.details.prefill
    assert (first.text, first.logprob) == ("<|endoftext|>", None)
    assert "".join(token.text for token in others) == PROMPT
    assert all(token.logprob < 0 for token in others)
    assert output.generated_text == generate(url, way, **fields).generated_text


@WAYS
def test_best_of(server: Server, way: str) -> None:
    url = f"{server.url}/models/{MODEL}"
    output = generate(url, way, **SEEDED, best_of=3, details=True)
    others = output.details.best_of_sequences
    assert len(others) == 2

    def mean(tokens: Any) -> float:
        return sum(token.logprob for token in tokens) / len(tokens)

    assert all(mean(output.details.tokens) >= mean(other.tokens) for other in others)
    seeds = {output.details.seed, *(other.seed for other in others)}
    assert len(seeds) == 3
    for one in (output.details, *others):
        again = generate(url, way, **SEEDED | {"seed": one.seed}, details=True)
        assert [token.id for token in again.details.tokens] == [token.id for token in one.tokens]


def test_lists_of_prompts_and_sequences(server: Server) -> None:
    fields = {"num_return_sequences": 2, "max_new_tokens": 5, "seed": 1}
    with server.client() as http:
        answer = http.post(f"/models/{OWNED}", json={"inputs": PROMPT, "parameters": fields})
        two = answer.json()
        body = {"inputs": [PROMPT, "My"], "parameters": fields}
        lists = http.post(f"/models/{OWNED.replace('/', '%2F')}", json=body).json()
    assert [set(one) for one in two] == [{"generated_text"}] * 2
    assert two[0] != two[1]
    assert lists[0] == two
    assert [len(texts) for texts in lists] == [2, 2]
    assert all(text["generated_text"].startswith("My") for text in lists[1])


def test_the_example(server: Server) -> None:
    script = Path(__file__).parents[2] / "examples" / "huggingface_client.py"
    command = [sys.executable, str(script), server.url, OWNED, PROMPT]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    seeded = generate(f"{server.url}/models/{OWNED}", "sync", max_new_tokens=30, seed=7)
    assert done.stdout.startswith(f"{seeded}\n")
    assert done.stdout.count(PROMPT) == 3


@BOTH
def test_endpoint_info(server: Server, model: str) -> None:
    info = client(server, model).get_endpoint_info()
    assert (info["id"], info["model_id"], info["max_total_tokens"]) == (model, model, 256)
    with pytest.raises(HfHubHTTPError):
        client(server, "nobody").get_endpoint_info()


# -- errors ---------------------------------------------------------------------------------------


@WAYS
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"max_new_tokens": 10_000}, "max_new_tokens"),
        ({"watermark": True}, "watermark"),
        ({"adapter_id": "x"}, "adapter_id"),
        ({"best_of": 2, "do_sample": False}, "best_of"),
    ],
)
def test_wrong_values(
    server: Server, way: str, stream: bool, fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValidationError, match=f"^{named}: "):
        generate(f"{server.url}/models/{MODEL}", way, **fields, stream=stream)


def test_unknown_model(server: Server) -> None:
    url = f"{server.url}/models/nobody/at-all"
    with pytest.raises(HfHubHTTPError, match="no model 'nobody/at-all'") as refused:
        generate(url, "sync")
    assert refused.value.response.status_code == 404
    with pytest.raises(Exception, match="404") as refused_async:
        generate(url, "async")
    assert refused_async.type.__name__ == "ClientResponseError"


def test_a_client_that_does_not_wait(serve: Callable[..., Server], store: Path) -> None:
    server = serve(store=store)
    impatient = client(server, OWNED, headers={"X-Wait-For-Model": "0"})
    with pytest.raises(HfHubHTTPError, match="currently loading") as refused:
        impatient.text_generation(PROMPT, max_new_tokens=1)
    assert refused.value.response.status_code == 503
    assert refused.value.response.json()["estimated_time"] > 0

    def state() -> str:
        with server.client() as http:
            return str({m["id"]: m["state"] for m in http.get("/models").json()["models"]}[OWNED])

    eventually(lambda: state() == "resident")
    assert impatient.text_generation(PROMPT, max_new_tokens=1).startswith(PROMPT)


def test_a_key_is_a_token(serve: Callable[..., Server], store: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    secret = "gpt2serve_of-nobody-else"
    digest = hashlib.sha256(secret.encode()).hexdigest()
    keys.write_text(f"sha256:{digest} me\n", encoding="utf-8")
    server = serve("--api-key-file", str(keys), store=store)
    for token in (None, "hf_wrong"):
        with pytest.raises(HfHubHTTPError) as refused:
            client(server, OWNED, token=token).text_generation(PROMPT, max_new_tokens=1)
        assert refused.value.response.status_code == 401
    known = client(server, OWNED, token=secret)
    assert known.text_generation(PROMPT, max_new_tokens=1).startswith(PROMPT)
    assert known.get_endpoint_info()["max_total_tokens"] == 256


@WAYS
def test_a_full_queue(serve: Callable[..., Server], store: Path, way: str) -> None:
    server = serve("--max-queue", "1", store=store)
    with (
        server.client() as http,
        http.stream("POST", "/generate", json=LONG | {"stream": True}) as running,
    ):
        lines = events(running.iter_lines())  # which closes the connection when it is dropped
        next(lines)
        with pytest.raises(OverloadedError, match="worked on"):
            generate(f"{server.url}/models/{MODEL}", way)


@WAYS
def test_a_server_that_aborts(serve: Callable[..., Server], store: Path, way: str) -> None:
    server = serve(store=store)
    url = f"{server.url}/models/{MODEL}"
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(generate, url, way, max_new_tokens=240, best_of=32)
        eventually(lambda: server.metric("requests_running") == 1)
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: _draining(server))
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(IncompleteGenerationError):
            waiting.result(timeout=20)


def _draining(server: Server) -> bool:
    with server.client() as http:
        return http.get("/readyz").status_code == 503


@contextmanager
def listening(server: Served) -> Iterator[str]:
    """An app in this process, behind a real socket."""
    listener = listen("127.0.0.1", 0)
    uvicorn_server = uvicorn.Server(uvicorn.Config(server.app, log_config=None, lifespan="on"))
    thread = threading.Thread(target=uvicorn_server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        uvicorn_server.should_exit = True
        thread.join()


@WAYS
@pytest.mark.parametrize("stream", [False, True])
def test_a_generation_that_fails(way: str, stream: bool) -> None:
    steps = [Delivery([text_events()[0]]), Delivery(error=errors.StepFailed("no"))]
    with (
        listening(Served(Engine(steps))) as url,
        pytest.raises(GenerationError, match="log has the reason"),
    ):
        generate(f"{url}/models/me/model", way, stream=stream)
