"""What the Hugging Face surface asks of the engine, field by field."""

from __future__ import annotations

from typing import Any

import pytest

from gpt2serve.api.huggingface.params import inference_wish, tgi_wish
from gpt2serve.api.huggingface.schemas import PipelineParameters, TextGenerationParameters
from gpt2serve.engine.params import SamplingParams
from tests.unit.api_support import PROMPT, Served
from tests.unit.test_api_huggingface import GENERATE, ONE, STREAM, refused, served

#: A value for each field that goes to the engine, and what becomes of it there.
BOTH: dict[str, tuple[Any, dict[str, Any]]] = {
    "max_new_tokens": (5, {"max_new_tokens": 5}),
    "do_sample": (True, {"do_sample": True}),
    "temperature": (0.5, {"temperature": 0.5, "do_sample": True}),
    "top_k": (3, {"top_k": 3, "do_sample": True}),
    "top_p": (1.0, {"top_p": 1.0, "do_sample": True}),
    "typical_p": (0.9, {"typical_p": 0.9, "do_sample": True}),
    "repetition_penalty": (1.5, {"repetition_penalty": 1.5}),
    "frequency_penalty": (-0.5, {"frequency_penalty": -0.5}),
    "stop": (["x", "y"], {"stop": ("x", "y")}),
    "stop_sequences": (["x", "y"], {"stop": ("x", "y")}),
    "seed": (7, {"seed": 7}),
    "truncate": (9, {"truncate": 9}),
    "return_full_text": (True, {"return_full_text": True}),
    "best_of": (1, {"num_return_sequences": 1}),
    "details": (True, {"details": True}),
    "decoder_input_details": (True, {"details": True, "prompt_logprobs": True}),
    "top_n_tokens": (3, {"top_logprobs": 3}),
    "watermark": (False, {}),
    "grammar": (None, {}),
    "adapter_id": (None, {}),
}
PIPELINE: dict[str, tuple[Any, dict[str, Any]]] = {
    "num_return_sequences": (3, {"num_return_sequences": 3}),
    "max_time": (2.5, {"max_time": 2.5}),
    "max_length": (50, {"max_length": 50}),
    "min_length": (5, {"min_length": 5}),
    "min_new_tokens": (2, {"min_new_tokens": 2}),
    "no_repeat_ngram_size": (3, {"no_repeat_ngram_size": 3}),
}
INFERENCE = SamplingParams(do_sample=True, return_full_text=True, num_return_sequences=1)
TGI = SamplingParams(
    do_sample=False,
    return_full_text=False,
    num_return_sequences=1,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    repetition_penalty=1.0,
    no_repeat_ngram_size=0,
    min_length=0,
)


def fields_of(params: SamplingParams) -> dict[str, Any]:
    return {name: getattr(params, name) for name in params.__struct_fields__}


@pytest.fixture(scope="module")
def server() -> Served:
    return served()


def asked(at: str, parameters: Any = None, **body: Any) -> SamplingParams:
    """What the engine is given for a body."""
    server = served()
    body |= {} if parameters is None else {"parameters": parameters}
    answer = server.request("POST", at, json={"inputs": PROMPT} | body)
    assert answer.status_code == 200, answer.text
    params = server.engine.given[0][2]
    assert isinstance(params, SamplingParams)
    return params


def test_every_field_has_a_test() -> None:
    assert set(TextGenerationParameters.__struct_fields__) == set(BOTH)
    assert set(PipelineParameters.__struct_fields__) == set(BOTH) | set(PIPELINE)


@pytest.mark.parametrize("field", [*BOTH, *PIPELINE])
def test_inference_field(field: str) -> None:
    value, becomes = (BOTH | PIPELINE)[field]
    expected = fields_of(INFERENCE) | becomes
    assert fields_of(asked(ONE, {field: value})) == expected


@pytest.mark.parametrize("at", [GENERATE, STREAM])
@pytest.mark.parametrize("field", BOTH)
def test_tgi_field(field: str, at: str) -> None:
    if (field, at) == ("decoder_input_details", STREAM):
        return  # which is refused, and tested elsewhere
    value, becomes = BOTH[field]
    assert fields_of(asked(at, {field: value})) == fields_of(TGI) | becomes


@pytest.mark.parametrize("field", [*BOTH, *PIPELINE])
def test_null_is_as_good_as_left_out(field: str) -> None:
    assert inference_wish(PipelineParameters(**{field: None})).params == INFERENCE
    if field in BOTH:
        assert asked(GENERATE, {field: None}) == TGI


@pytest.mark.parametrize("stream", [False, True])
def test_the_inference_api_takes_the_models_own_defaults(stream: bool) -> None:
    assert asked(ONE, stream=stream) == asked(ONE, {}, stream=stream) == INFERENCE
    # Which defaults apply does not depend on other fields.
    assert asked(ONE, {"details": True}, stream=stream).return_full_text is True


@pytest.mark.parametrize("at", [GENERATE, STREAM])
def test_tgi_draws_without_parameters_and_does_not_with_none_of_them(at: str) -> None:
    assert asked(at).do_sample is True
    assert asked(at, {}) == TGI


@pytest.mark.parametrize("at", [ONE, GENERATE, STREAM])
@pytest.mark.parametrize(
    ("field", "neutral", "shaping"),
    [("temperature", 1.0, 0.5), ("top_k", 0, 5), ("top_p", 1.0, 0.9), ("typical_p", 1.0, 0.9)],
)
def test_what_shapes_a_draw_draws_whatever_do_sample_says(
    at: str, field: str, neutral: float, shaping: float
) -> None:
    """Clients say false of themselves, and their users who set a temperature want to see it."""
    assert asked(at, {"do_sample": False, field: shaping}).do_sample is True
    assert asked(at, {"do_sample": False, field: neutral}).do_sample is False
    assert asked(at, {"do_sample": False}).do_sample is False


def test_best_of_may_be_had_by_a_temperature() -> None:
    fields = {"best_of": 2, "do_sample": False, "temperature": 0.5}
    assert tgi_wish(TextGenerationParameters(**fields)).params.do_sample is True


def test_the_names_of_stop_agree(server: Served) -> None:
    both = {"stop": ["x"], "stop_sequences": ["x"]}
    assert asked(ONE, both).stop == ("x",)
    assert asked(ONE, both | {"stop_sequences": []}).stop == ("x",)
    assert asked(ONE, both | {"stop": []}).stop == ("x",)
    body = {"inputs": PROMPT, "parameters": both | {"stop": ["y"]}}
    answer = server.request("POST", ONE, json=body)
    assert refused(answer, 422, "validation").startswith("stop_sequences: ")


#: What clients send of themselves, as they were seen to.
SENT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "text-generation 0.7": (
        {
            "inputs": PROMPT,
            "parameters": {
                "do_sample": False,
                "max_new_tokens": 20,
                "repetition_penalty": None,
                "frequency_penalty": None,
                "return_full_text": False,
                "stop": [],
                "seed": None,
                "temperature": 0.7,
                "top_k": None,
                "top_p": None,
                "truncate": None,
                "typical_p": None,
                "best_of": None,
                "watermark": False,
                "details": True,
                "decoder_input_details": False,
                "top_n_tokens": None,
                "grammar": None,
            },
            "stream": False,
        },
        {"do_sample": True, "temperature": 0.7, "max_new_tokens": 20, "details": True}
        | {"return_full_text": False},
    ),
    "langchain-huggingface 0.1": (
        {
            "inputs": PROMPT,
            "parameters": {
                "max_new_tokens": 512,
                "top_k": None,
                "top_p": 0.95,
                "typical_p": 0.95,
                "temperature": 0.8,
                "repetition_penalty": None,
                "return_full_text": False,
                "truncate": None,
                "stop_sequences": ["|"],
                "stop": ["|"],
                "seed": None,
                "do_sample": False,
                "watermark": False,
            },
        },
        {"do_sample": True, "temperature": 0.8, "max_new_tokens": 512, "top_p": 0.95}
        | {"typical_p": 0.95, "stop": ("|",), "return_full_text": False},
    ),
    "@huggingface/inference 2.6": (
        {
            "inputs": PROMPT,
            "parameters": {"max_new_tokens": 8, "stop_sequences": ["|"]},
            "options": {
                "use_cache": False,
                "wait_for_model": True,
                "retry_on_error": True,
                "use_gpu": False,
                "dont_load_model": False,
            },
        },
        {"max_new_tokens": 8, "stop": ("|",)},
    ),
}


@pytest.mark.parametrize("client", SENT)
def test_bodies_of_real_clients(client: str) -> None:
    body, becomes = SENT[client]
    assert fields_of(asked(ONE, **body)) == fields_of(INFERENCE) | becomes


def test_best_of_needs_the_probabilities() -> None:
    params = TextGenerationParameters(best_of=3, do_sample=True)
    wish = tgi_wish(params)
    assert (wish.params.num_return_sequences, wish.params.details) == (3, True)
    assert (wish.best_of, wish.texts, wish.details) == (3, 1, False)


@pytest.mark.parametrize(("best_of", "texts", "drawn"), [(3, 2, 3), (2, 3, 3), (None, 3, 3)])
def test_best_of_draws_at_least_what_is_returned(
    best_of: int | None, texts: int, drawn: int
) -> None:
    wish = inference_wish(PipelineParameters(best_of=best_of, num_return_sequences=texts))
    assert (wish.params.num_return_sequences, wish.texts) == (drawn, texts)


WRONG: dict[str, list[Any]] = {
    "max_new_tokens": [0, -1, 1.5, "5", True, 2**31],
    "do_sample": [1, "true"],
    "temperature": [0, -0.1, "1"],
    "top_k": [-1, 1.5],
    "top_p": [0, -0.1, 1.01],
    "typical_p": [0, 1.01],
    "repetition_penalty": [0, -1],
    "frequency_penalty": [-2.1, 2.1],
    "stop": ["x", [1], 17 * ["x"], [""], [257 * "x"]],
    "stop_sequences": ["x", [1], 17 * ["x"], [""], [257 * "x"]],
    "seed": [-1, 2**63, 1.5],
    "truncate": [0, -1],
    "return_full_text": ["yes"],
    "best_of": [0, -1],
    "details": [1],
    "decoder_input_details": [1],
    "top_n_tokens": [-1, 21],
    "watermark": [True, 1],
    "grammar": [{"type": "json", "value": {}}, "x", 0, False],
    "adapter_id": ["x", ""],
    "num_return_sequences": [0, 1.5],
    "max_time": [0, -1],
    "max_length": [0],
    "min_length": [-1],
    "min_new_tokens": [-1],
    "no_repeat_ngram_size": [-1],
    "a field of nobody": [1],
}


@pytest.mark.parametrize("at", [ONE, GENERATE, STREAM])
@pytest.mark.parametrize("field", WRONG)
def test_what_is_wrong_or_unknown_is_refused_by_name(field: str, at: str, server: Served) -> None:
    for value in WRONG[field]:
        body = {"inputs": PROMPT, "parameters": {field: value}}
        answer = server.request("POST", at, json=body)
        assert refused(answer, 422, "validation").startswith(f"{field}: "), value
        assert server.engine.given == []


@pytest.mark.parametrize("field", PIPELINE)
def test_tgi_knows_no_fields_of_the_pipeline(field: str, server: Served) -> None:
    body = {"inputs": PROMPT, "parameters": {field: PIPELINE[field][0]}}
    answer = server.request("POST", GENERATE, json=body)
    assert refused(answer, 422, "validation") == f"{field}: is not a field of this request"


@pytest.mark.parametrize(
    ("at", "body", "field"),
    [
        (ONE, {}, "inputs"),
        (ONE, {"inputs": 1}, "inputs"),
        (ONE, {"inputs": []}, "inputs"),
        (ONE, {"inputs": [1]}, "inputs"),
        (ONE, {"inputs": 129 * ["x"]}, "inputs"),
        (GENERATE, {"inputs": ["x"]}, "inputs"),
        (GENERATE, {"inputs": "x", "stream": True}, "stream"),
        (STREAM, {"inputs": "x", "stream": False}, "stream"),
        (STREAM, {"inputs": "x", "stream": 1}, "stream"),
        (ONE, {"inputs": "x", "parameters": []}, "parameters"),
        (ONE, {"inputs": "x", "stream": "yes"}, "stream"),
        (ONE, {"inputs": "x", "options": {"wait_for_model": 1}}, "wait_for_model"),
        (ONE, {"inputs": "x", "options": {"use_gpu": True}}, "use_gpu"),
        (GENERATE, {"inputs": "x", "options": {"use_gpu": True}}, "use_gpu"),
        (STREAM, {"inputs": "x", "options": {"dont_load_model": True}}, "dont_load_model"),
        (GENERATE, {"inputs": "x", "options": {"nobody": True}}, "nobody"),
    ],
)
def test_wrong_bodies(at: str, body: Any, field: str, server: Served) -> None:
    answer = server.request("POST", at, json=body)
    assert refused(answer, 422, "validation").startswith(f"{field}: ")


@pytest.mark.parametrize(("at", "stream"), [(GENERATE, False), (STREAM, True)])
def test_stream_may_be_said_where_it_is_true_anyway(at: str, stream: bool) -> None:
    assert asked(at, {}, stream=stream) == asked(at, {}, stream=None) == TGI


def test_wishes_without_a_body() -> None:
    assert inference_wish(None) == inference_wish(PipelineParameters())
    assert tgi_wish(TextGenerationParameters()).params == TGI
