"""`GET /v1/models` and `GET /v1/models/{id}`."""

from __future__ import annotations

from typing import Annotated

from litestar import get
from litestar.di import NamedDependency
from litestar.params import QueryParameter

from gpt2serve.api.exchange import Exchange
from gpt2serve.api.models import ModelName, ModelOwner, manifest_of, model_id
from gpt2serve.api.openai.errors import openai_problems
from gpt2serve.api.openai.schemas import ModelObject, ModelObjects
from gpt2serve.api.service import Service

#: OpenAI's own list has no pages and its clients ask for none, so there is one answer as long as
#: that stays below a megabyte or so.
MAX_MODELS = 10_000
_NOBODY = "gpt2serve"


@get(
    "/models",
    summary="List the models, as OpenAI's API does",
    responses=openai_problems(
        {400: "`param` names a value that is wrong", 503: "The store does not answer"}
    ),
)
async def list_model_objects(
    service: NamedDependency[Service],
    exchange: NamedDependency[Exchange],
    limit: Annotated[
        int, QueryParameter(ge=1, le=MAX_MODELS, description="Models in one answer.")
    ] = MAX_MODELS,
    after: Annotated[str, QueryParameter(description="Begin behind this id.")] = "",
) -> ModelObjects:
    allowed = exchange.caller.allowed
    found = await exchange.caller.in_thread(
        service.engine.list_ids, after=after, limit=limit + 1, allowed=allowed
    )
    data = [_model_object(model) for model in found[:limit]]
    return ModelObjects(
        data=data,
        has_more=len(found) > limit,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
    )


# An id has one part or two; the slash may be percent-encoded, as OpenAI's clients do it.
@get(
    ["/models/{name:str}", "/models/{owner:str}/{name:str}"],
    summary="One model, as OpenAI's API tells of it",
    responses=openai_problems({404: "Unknown model", 503: "The store does not answer"}),
)
async def retrieve_model_object(
    service: NamedDependency[Service],
    exchange: NamedDependency[Exchange],
    name: ModelName,
    owner: ModelOwner = "",
) -> ModelObject:
    model = model_id(owner, name)
    await manifest_of(service, exchange, model)
    return _model_object(model)


def _model_object(model: str) -> ModelObject:
    owner, slash, _ = model.partition("/")
    return ModelObject(id=model, owned_by=owner if slash else _NOBODY)
