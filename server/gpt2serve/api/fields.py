"""Types of fields that bodies of several surfaces have, with what `/schema` tells of them."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from gpt2serve.engine.checks import MAX_STOP_LENGTH
from gpt2serve.package import MODEL_ID_PATTERN

MAX_INT32 = 2**31 - 1


def described(description: str, *examples: Any) -> Meta:
    return Meta(description=description, examples=list(examples) or None)


Count = Annotated[int, Meta(ge=1, le=MAX_INT32)]
CountOrZero = Annotated[int, Meta(ge=0, le=MAX_INT32)]
Positive = Annotated[float, Meta(gt=0)]
StopString = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_LENGTH)]
#: What it may look like is told; `check_model_id` refuses the rest, and says more.
ModelId = Annotated[
    str,
    Meta(
        description="The model's id in the store.",
        examples=["huggingtweets/bestmusiclyric-bygpt3"],
        extra_json_schema={"pattern": MODEL_ID_PATTERN},
    ),
]
