"""`GET /models` and `GET /models/{id}/info`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from litestar import get
from litestar.di import NamedDependency
from litestar.params import PathParameter, QueryParameter
from msgspec import UNSET, Meta, UnsetType

from gpt2serve.api.exchange import Exchange
from gpt2serve.api.openapi import problem_specs
from gpt2serve.api.service import Service
from gpt2serve.engine.checks import MAX_STOP_STRINGS
from gpt2serve.engine.status import WARM_STATES, ModelStatus
from gpt2serve.errors import InvalidRequest
from gpt2serve.package import (
    MODEL_NAME_PATTERN,
    Dimensions,
    GenerationDefaults,
    Manifest,
    ModelCard,
    check_model_id,
)
from gpt2serve.settings import EngineSettings

MAX_PAGE = 1000
LONGEST_SEARCH = 200
_WRONG = "A value is wrong; `field` names it"
#: Instead of the engine's own words, which may name paths and buckets.
_HIDDEN_ERROR = "The model could not be loaded; the server's log has the reason."


#: An id in a path: its only part, or both. What is in the schema is checked by `model_id`, whose
#: error says more.
ModelName = Annotated[
    str,
    PathParameter(
        description="The id, or the part of it behind the slash.",
        schema_extra={"pattern": MODEL_NAME_PATTERN},
    ),
]
ModelOwner = Annotated[
    str,
    PathParameter(
        description="The part of the id before the slash.",
        schema_extra={"pattern": MODEL_NAME_PATTERN},
    ),
]


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
    title: Annotated[
        str | UnsetType, Meta(description="The model card's name for it, if that is known.")
    ] = UNSET
    handle: Annotated[
        str | UnsetType, Meta(description="Whose model it is, such as @somebody, if known.")
    ] = UNSET
    picture: Annotated[
        str | UnsetType, Meta(description="Address of a picture, or a data URL, if known.")
    ] = UNSET
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
    """A `ModelEntry`, with what concerns only those who have the admin key."""

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
    card = status.card or ModelCard()
    return {
        "id": status.id,
        "state": status.state,
        "bytes": status.bytes,
        "version": status.version,
        "last_used": status.last_used,
        "pinned": status.pinned,
        "title": card.title or UNSET,
        "handle": card.handle or UNSET,
        "picture": card.picture or UNSET,
        "fetched_bytes": UNSET if fetched is None else fetched,
        "fetch_total_bytes": UNSET if total is None else total,
    }


class ModelPage(msgspec.Struct, frozen=True, kw_only=True):
    """Models in order of id, or of a search; `next` is the next page's `after`, if there is one."""

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
    # The rest is what clients of Text Generation Inference read, under the names it has there.
    model_id: str
    model_dtype: str
    model_pipeline_tag: Literal["text-generation"] = "text-generation"
    max_concurrent_requests: Annotated[
        int, Meta(description="Requests that are worked on or wait; one more is refused.")
    ]
    max_best_of: Annotated[int, Meta(description="Sequences that one request can ask for.")]
    max_stop_sequences: int
    max_input_tokens: Annotated[
        int, Meta(description="Of a prompt, with the model's prefix; one is to be generated.")
    ]
    max_total_tokens: Annotated[int, Meta(description="Of prompt and generated text together.")]

    @classmethod
    def of(cls, model: str, manifest: Manifest, settings: EngineSettings) -> ModelInfo:
        """Of the model of that id; a package that was copied still has another in its manifest."""
        context = manifest.dimensions.context_length
        return cls(
            id=model,
            version=manifest.version,
            target=manifest.target,
            precision=manifest.precision,
            bytes=manifest.bytes_needed,
            dimensions=manifest.dimensions,
            generation_defaults=manifest.generation_defaults,
            card=manifest.card,
            verification=manifest.verification,
            model_id=model,
            model_dtype=manifest.precision,
            max_concurrent_requests=settings.max_queue,
            max_best_of=settings.max_batch_size,
            max_stop_sequences=MAX_STOP_STRINGS,
            max_input_tokens=context - 1,
            max_total_tokens=context,
        )


@get(
    "/models",
    summary="List the models in the store, or search them",
    responses=problem_specs({422: _WRONG, 503: "The store does not answer"}),
)
async def list_models(
    service: NamedDependency[Service],
    exchange: NamedDependency[Exchange],
    limit: Annotated[int, QueryParameter(ge=1, le=MAX_PAGE, description="Models per page.")] = 100,
    after: Annotated[str, QueryParameter(description="Begin behind this id.")] = "",
    search: Annotated[
        str,
        QueryParameter(
            max_length=LONGEST_SEARCH,
            description="Words that all occur in a model's id, title or handle.",
        ),
    ] = "",
    # `state` itself is a name that Litestar has given away, so it is checked here.
    warm: Annotated[
        str | None,
        QueryParameter(
            name="state",
            description="Only models that are in memory, or on their way there.",
            schema_extra={"enum": [*WARM_STATES]},
        ),
    ] = None,
) -> ModelPage:
    if warm not in (None, *WARM_STATES):
        raise InvalidRequest("state", f"must be one of {', '.join(WARM_STATES)}")
    allowed = exchange.caller.allowed
    if search and after and allowed is not None and not allowed(after):
        # Where the results go on would tell what its card says.
        raise InvalidRequest("after", "must be a model that the key may use, in a search")
    # One more than asked for tells whether there is a next page.
    found = await exchange.caller.in_thread(
        service.engine.list_models,
        after=after,
        limit=limit + 1,
        search=search,
        state=warm,
        allowed=allowed,
    )
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
    service: NamedDependency[Service],
    exchange: NamedDependency[Exchange],
    name: ModelName,
    owner: ModelOwner = "",
) -> ModelInfo:
    model = model_id(owner, name)
    manifest = await manifest_of(service, exchange, model)
    return ModelInfo.of(model, manifest, service.engine.settings)


async def manifest_of(service: Service, exchange: Exchange, model: str) -> Manifest:
    """What the model's package says of it, for a caller who may use it.

    Raises `ModelNotAllowed`, or what `Engine.describe` raises.
    """
    exchange.about(model)
    return await exchange.caller.in_thread(service.engine.describe, model)


def model_id(owner: str, name: str) -> str:
    """The id in a path, of one part or of two. Raises `InvalidModelId`."""
    return check_model_id(f"{owner}/{name}" if owner else name)
