"""`GET /models` and `GET /models/{id}/info`."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
from litestar import get
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, QueryParameter
from msgspec import UNSET, UnsetType

from gpt2serve.api.problems import Problem
from gpt2serve.api.service import Service
from gpt2serve.package import (
    Dimensions,
    GenerationDefaults,
    Manifest,
    ModelCard,
    check_model_id,
)

MAX_PAGE = 1000


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A model of the store. `bytes` is the memory that it takes when it is loaded."""

    id: str
    state: str
    bytes: int


class ModelPage(msgspec.Struct, frozen=True, kw_only=True):
    """Models in the order of their ids. `next` is the `after` of the next page, if there is one."""

    models: list[ModelEntry]
    next: str | UnsetType = UNSET


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a client may know about a model: no paths, no files."""

    id: str
    version: str
    target: str
    precision: str
    bytes: int
    dimensions: Dimensions
    generation_defaults: GenerationDefaults
    card: ModelCard
    verification: dict[str, Any]

    @classmethod
    def of(cls, manifest: Manifest) -> ModelInfo:
        return cls(
            id=manifest.id,
            version=manifest.version,
            target=manifest.target,
            precision=manifest.precision,
            bytes=manifest.bytes_needed,
            dimensions=manifest.dimensions,
            generation_defaults=manifest.generation_defaults,
            card=manifest.card,
            verification=manifest.verification,
        )


@get("/models", summary="List the models in the store")
async def list_models(
    service: NamedDependency[Service],
    limit: Annotated[int, QueryParameter(ge=1, le=MAX_PAGE, description="Models per page.")] = 100,
    after: Annotated[str, QueryParameter(description="Begin behind this id.")] = "",
) -> ModelPage:
    # One more than asked for tells whether there is a next page.
    found = await asyncio.to_thread(service.engine.list_models, after=after, limit=limit + 1)
    page = found[:limit]
    return ModelPage(
        models=[ModelEntry(id=model.id, state=model.state, bytes=model.bytes) for model in page],
        next=page[-1].id if len(found) > limit else UNSET,
    )


# A `path` parameter would swallow `/info`; an id has one part or two.
@get(
    ["/models/{name:str}/info", "/models/{owner:str}/{name:str}/info"],
    summary="Describe a model",
    responses={404: ResponseSpec(Problem, description="Unknown model", generate_examples=False)},
)
async def describe_model(
    service: NamedDependency[Service], name: FromPath[str], owner: FromPath[str] = ""
) -> ModelInfo:
    model = check_model_id(f"{owner}/{name}" if owner else name)
    return ModelInfo.of(await asyncio.to_thread(service.engine.describe, model))
