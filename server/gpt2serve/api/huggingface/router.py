"""`POST /models/{id}`, `/models/{id}/generate` and `/models/{id}/generate_stream`."""

from __future__ import annotations

from typing import Annotated, Any

from litestar import Request, Response, Router, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import HeaderParameter, JSONBody

from gpt2serve.api.bodies import strict_body
from gpt2serve.api.exchange import Exchange
from gpt2serve.api.generation import GENERATION
from gpt2serve.api.huggingface.errors import HuggingFaceError, hugging_face_response
from gpt2serve.api.huggingface.generate import Call, json_answer
from gpt2serve.api.huggingface.headers import (
    GenerateOperation,
    GenerateStreamOperation,
    InferenceOperation,
)
from gpt2serve.api.huggingface.outputs import TextGenerationOutput
from gpt2serve.api.huggingface.params import inference_wish, tgi_wish
from gpt2serve.api.huggingface.schemas import (
    InferenceOptions,
    InferenceRequest,
    TgiRequest,
    TgiStreamRequest,
)
from gpt2serve.api.huggingface.streaming import TextGenerationStreamOutput
from gpt2serve.api.models import ModelName, ModelOwner, model_id
from gpt2serve.api.openapi import problem_specs
from gpt2serve.api.service import Service
from gpt2serve.api.streaming import EVENT_STREAM
from gpt2serve.errors import InvalidRequest

#: All below it that is not another route's; it is the list of models itself.
HUGGING_FACE_PATH = "/models"

_ERRORS = problem_specs(
    {
        400: "The body is not a JSON object",
        404: "There is no such model",
        413: "The body is too large",
        422: "A value is wrong; `error` names it",
        424: "The generation failed",
        429: "Too many requests; `Retry-After` says when to try again",
        500: "The generation was broken off",
        503: "Shutting down, or the model cannot be loaded, or is being loaded",
    },
    HuggingFaceError,
    "application/json",
)


_OUTPUTS: Any = list[TextGenerationOutput] | list[list[TextGenerationOutput]]


_WaitForModel = Annotated[
    str | None,
    HeaderParameter(
        name="X-Wait-For-Model",
        description="1 or true waits for the model, whatever `options` say; 0 or false not.",
    ),
]


# An id has one part or two; a `path` parameter would swallow what comes after it.
@post(
    ["/{name:str}", "/{owner:str}/{name:str}"],
    status_code=200,
    operation_class=InferenceOperation,
    opt=GENERATION,
    before_request=strict_body(InferenceRequest),
    summary="Continue a text, as the Inference API",
    description=(
        "The answer is a list with an object for each text; for a list of inputs, a list of such "
        "lists. What is left out takes the model's own default, as in transformers' pipeline, "
        "and inputs are put in front of the text. With `stream: true` the answer is as that of "
        "`/generate_stream`."
    ),
    responses={
        200: ResponseSpec(_OUTPUTS, description="The generated texts", generate_examples=False),
        **_ERRORS,
    },
)
async def infer_texts(
    request: Request[Any, Any, Any],
    data: JSONBody[InferenceRequest],
    service: NamedDependency[Service],
    exchange: NamedDependency[Exchange],
    name: ModelName,
    owner: ModelOwner = "",
    wait_for_model: _WaitForModel = None,
) -> Response[Any]:
    wish = inference_wish(data.parameters)
    waits = _waits(data.options, wait_for_model)
    call = Call(request, service, exchange, model_id(owner, name), wish, waits)
    if data.stream:
        return await call.stream(data.inputs)
    prompts = [data.inputs] if isinstance(data.inputs, str) else data.inputs
    outputs, headers = await call.texts(prompts)
    return json_answer(outputs[0] if isinstance(data.inputs, str) else outputs, headers)


@post(
    ["/{name:str}/generate", "/{owner:str}/{name:str}/generate"],
    status_code=200,
    operation_class=GenerateOperation,
    opt=GENERATION,
    before_request=strict_body(TgiRequest),
    summary="Continue a text, as Text Generation Inference",
    description=(
        "What is left out takes Text Generation Inference's default, whatever the model's own is; "
        "only the most tokens to generate are the model's."
    ),
    responses={
        200: ResponseSpec(
            TextGenerationOutput, description="The generated text", generate_examples=False
        ),
        **_ERRORS,
    },
)
async def tgi_generate(
    request: Request[Any, Any, Any],
    data: JSONBody[TgiRequest],
    service: NamedDependency[Service],
    exchange: NamedDependency[Exchange],
    name: ModelName,
    owner: ModelOwner = "",
    wait_for_model: _WaitForModel = None,
) -> Response[Any]:
    if data.stream:
        raise InvalidRequest("stream", "must be false here; streams are at /generate_stream")
    wish = tgi_wish(data.parameters)
    waits = _waits(data.options, wait_for_model)
    call = Call(request, service, exchange, model_id(owner, name), wish, waits)
    ((output,),), headers = await call.texts([data.inputs])
    return json_answer(output, headers)


@post(
    ["/{name:str}/generate_stream", "/{owner:str}/{name:str}/generate_stream"],
    status_code=200,
    operation_class=GenerateStreamOperation,
    opt=GENERATION,
    before_request=strict_body(TgiStreamRequest),
    summary="Continue a text token by token, as Text Generation Inference",
    description=(
        "A `data:` event for each token; the last one has `generated_text`, and `details` if they "
        "were asked for. An error after the first byte is a `data:` event with `error` and "
        "`error_type`."
    ),
    responses={
        200: ResponseSpec(
            TextGenerationStreamOutput,
            description="Server-sent events, each with such an object",
            media_type=EVENT_STREAM,
            generate_examples=False,
        ),
        **_ERRORS,
    },
)
async def tgi_generate_stream(
    request: Request[Any, Any, Any],
    data: JSONBody[TgiStreamRequest],
    service: NamedDependency[Service],
    exchange: NamedDependency[Exchange],
    name: ModelName,
    owner: ModelOwner = "",
    wait_for_model: _WaitForModel = None,
) -> Response[Any]:
    if data.stream is False:
        raise InvalidRequest("stream", "must be true here; whole answers are at /generate")
    wish = tgi_wish(data.parameters)
    waits = _waits(data.options, wait_for_model)
    call = Call(request, service, exchange, model_id(owner, name), wish, waits)
    return await call.stream(data.inputs)


def _waits(options: InferenceOptions | None, header: str | None) -> bool:
    """The header is what clients of the Inference API add when they try again.

    Raises `InvalidRequest` for an option that cannot be honoured.
    """
    if options is not None and options.use_gpu:
        raise InvalidRequest("use_gpu", "must be false: what computes is the server's choice")
    if options is not None and options.dont_load_model:
        raise InvalidRequest("dont_load_model", "must be false: models are loaded when asked for")
    if header is not None:
        return header.strip().lower() not in ("0", "false")
    return options is None or options.wait_for_model is not False


def hugging_face_router() -> Router:
    return Router(
        path=HUGGING_FACE_PATH,
        route_handlers=[infer_texts, tgi_generate, tgi_generate_stream],
        exception_handlers={Exception: hugging_face_response},
        tags=["hugging face"],
    )
