"""`GET /models` and `GET /models/{id}/info`."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
from litestar import get
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter
from msgspec import UNSET, Meta, UnsetType

from gpt2serve.api.openapi import problem_specs
from gpt2serve.api.service import Service
from gpt2serve.engine.status import ModelStatus
from gpt2serve.package import (
    Dimensions,
    GenerationDefaults,
    Manifest,
    ModelCard,
    check_model_id,
)

MAX_PAGE = 1000
#: Instead of the engine's own words, which may name paths and buckets.
_WRONG = "A value is wrong; `field` names it"
_HIDDEN_ERROR = "The model could not be loaded; the server's log has the reason."


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A model of the store, and how the server has it."""

    id: str
    state: Annotated[str, Meta(description="cold, fetching, loading, resident or failed.")]
    bytes: Annotated[
        int, Meta(description="Memory that it takes; expected, as long as it is not resident.")
    ]
    version: Annotated[str | None, Meta(description="Names the weights; null if unknown.")]
    last_used: Annotated[
        float | None, Meta(description="Unix time of the last request; null if there was none.")
    ]
    pinned: Annotated[bool, Meta(description="Stays in memory whatever else needs room.")]
    error: Annotated[str | None, Meta(description="Why the last load failed.")]
    fetched_bytes: Annotated[
        int | UnsetType, Meta(description="While fetching: bytes that have come from the store.")
    ] = UNSET
    fetch_total_bytes: Annotated[
        int | UnsetType, Meta(description="While fetching: bytes to come in all.")
    ] = UNSET

    @classmethod
    def of(cls, status: ModelStatus) -> ModelEntry:
        """What everybody may see: not where the models lie."""
        return cls(**_shared(status), error=None if status.error is None else _HIDDEN_ERROR)


class AdminEntry(ModelEntry, frozen=True, kw_only=True):
    """The same with what concerns only those who have the admin key."""

    leases: Annotated[int, Meta(description="Requests that use it or wait for it.")]
    old_versions: Annotated[
        int, Meta(description="Earlier versions in memory, which requests still use.")
    ]

    @classmethod
    def of(cls, status: ModelStatus) -> AdminEntry:
        return cls(
            **_shared(status),
            error=status.error,
            leases=status.leases,
            old_versions=status.old_versions,
        )


def _shared(status: ModelStatus) -> dict[str, Any]:
    fetched, total = status.fetched_bytes, status.fetch_total_bytes
    return {
        "id": status.id,
        "state": status.state,
        "bytes": status.bytes,
        "version": status.version,
        "last_used": status.last_used,
        "pinned": status.pinned,
        "fetched_bytes": UNSET if fetched is None else fetched,
        "fetch_total_bytes": UNSET if total is None else total,
    }


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


@get(
    "/models",
    summary="List the models in the store",
    responses=problem_specs({422: _WRONG, 503: "The store does not answer"}),
)
async def list_models(
    service: NamedDependency[Service],
    limit: Annotated[int, QueryParameter(ge=1, le=MAX_PAGE, description="Models per page.")] = 100,
    after: Annotated[str, QueryParameter(description="Begin behind this id.")] = "",
) -> ModelPage:
    # One more than asked for tells whether there is a next page.
    found = await asyncio.to_thread(service.engine.list_models, after=after, limit=limit + 1)
    page = found[:limit]
    return ModelPage(
        models=[ModelEntry.of(status) for status in page],
        next=page[-1].id if len(found) > limit else UNSET,
    )


# A `path` parameter would swallow `/info`; an id has one part or two.
@get(
    ["/models/{name:str}/info", "/models/{owner:str}/{name:str}/info"],
    summary="Describe a model",
    responses=problem_specs(
        {
            404: "There is no such model",
            422: "This is no model id",
            503: "Its package cannot be used, or the store does not answer",
        }
    ),
)
async def describe_model(
    service: NamedDependency[Service], name: FromPath[str], owner: FromPath[str] = ""
) -> ModelInfo:
    model = model_id(owner, name)
    return ModelInfo.of(await asyncio.to_thread(service.engine.describe, model))


def model_id(owner: str, name: str) -> str:
    """The id in a path, of one part or of two. Raises `InvalidModelId`."""
    return check_model_id(f"{owner}/{name}" if owner else name)
