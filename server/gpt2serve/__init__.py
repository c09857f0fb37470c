"""gpt2serve: thousands of fine-tuned GPT-2 models, served from one process.

    from gpt2serve import Engine, SamplingParams

`create_app` and `create_router` make the web application; they are imported when used, so
that the engine can be embedded without the web framework being loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt2serve.app import create_app, create_router
    from gpt2serve.engine.engine import Engine
    from gpt2serve.engine.events import (
        Generation,
        GenerationResult,
        PromptToken,
        PromptTokens,
        Token,
        TokenEvent,
        TopToken,
    )
    from gpt2serve.engine.params import SamplingParams

_HOME = {
    "Engine": "gpt2serve.engine.engine",
    "Generation": "gpt2serve.engine.events",
    "GenerationResult": "gpt2serve.engine.events",
    "PromptToken": "gpt2serve.engine.events",
    "PromptTokens": "gpt2serve.engine.events",
    "SamplingParams": "gpt2serve.engine.params",
    "Token": "gpt2serve.engine.events",
    "TokenEvent": "gpt2serve.engine.events",
    "TopToken": "gpt2serve.engine.events",
    "create_app": "gpt2serve.app",
    "create_router": "gpt2serve.app",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Engine",
    "Generation",
    "GenerationResult",
    "PromptToken",
    "PromptTokens",
    "SamplingParams",
    "Token",
    "TokenEvent",
    "TopToken",
    "create_app",
    "create_router",
]
