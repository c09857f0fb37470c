"""`POST /v1/completions`."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody

from gpt2serve.api.bodies import strict_body
from gpt2serve.api.exchange import Exchange
from gpt2serve.api.generation import GENERATION, Ask, Running, begin
from gpt2serve.api.models import manifest_of
from gpt2serve.api.openai.choices import choices_of
from gpt2serve.api.openai.errors import openai_problems
from gpt2serve.api.openai.schemas import Completion, CompletionRequest
from gpt2serve.api.openai.streaming import CompletionFrames, usage_of
from gpt2serve.api.openai.translation import asks_of, in_our_terms
from gpt2serve.api.openapi import StreamingOperation
from gpt2serve.api.service import Service
from gpt2serve.errors import InvalidRequest
from gpt2serve.package import check_model_id

_ENCODER = msgspec.json.Encoder()


@post(
    "/completions",
    status_code=200,
    operation_class=StreamingOperation,
    opt=GENERATION,
    before_request=strict_body(CompletionRequest),
    summary="Complete prompts, as OpenAI's API does",
    description=(
        "With `stream: true` the answer is `text/event-stream`: `data:` events with chunks of the "
        "same shape, one choice in each, then, with `stream_options.include_usage`, one without "
        "choices that has the `usage`, then `data: [DONE]`. An error after the first byte is a "
        "`data:` event with `error`, and the stream ends without `[DONE]`."
    ),
    responses={
        200: ResponseSpec(Completion, description="The completions", generate_examples=False),
        **openai_problems(
            {
                400: "The body is no JSON object, or `param` names a value that is wrong",
                404: "There is no such model",
                413: "The body is too large",
                429: "Too many requests; `Retry-After` says when to try again",
                500: "The generation failed",
                503: "Shutting down, or the model cannot be loaded",
            }
        ),
    },
)
async def create_completion(
    request: Request[Any, Any, Any],
    data: JSONBody[CompletionRequest],
    service: NamedDependency[Service],
    exchange: NamedDependency[Exchange],
) -> Response[Any]:
    asks = await _asks(data, service, exchange)
    stream = bool(data.stream)
    try:
        running = await begin(request, service, exchange, data.model, asks, stream=stream)
    except InvalidRequest as error:
        raise in_our_terms(error) from None
    head = Completion(
        id=f"cmpl-{exchange.request_id}", created=int(time.time()), model=data.model, choices=[]
    )
    if stream:
        return await running.respond(CompletionFrames(head, data, running.prepared))
    answer = await _whole(head, data, running)
    return Response(_ENCODER.encode(answer), media_type="application/json")


async def _asks(request: CompletionRequest, service: Service, exchange: Exchange) -> list[Ask]:
    try:
        return asks_of(request, service.engine.settings)
    except InvalidRequest:
        # As on all routes, a model that is not there comes before fields that do not go together.
        await manifest_of(service, exchange, check_model_id(request.model))
        raise


async def _whole(head: Completion, request: CompletionRequest, running: Running) -> Completion:
    results = await running.results()
    return msgspec.structs.replace(
        head,
        choices=choices_of(request, results, running.prepared),
        usage=usage_of(
            sum(result.usage.prompt_tokens for result in results),
            sum(result.usage.completion_tokens for result in results),
        ),
        system_fingerprint=results[0].model_version,
    )
