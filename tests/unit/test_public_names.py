"""What `import gpt2serve` offers. Users write these names: a change here breaks them."""

from __future__ import annotations

import inspect

import pytest

import gpt2serve
from gpt2serve import errors


def test_names_are_pinned() -> None:
    assert gpt2serve.__all__ == [
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


def test_every_name_is_there() -> None:
    for name in gpt2serve.__all__:
        assert getattr(gpt2serve, name).__name__ == name


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        gpt2serve.nothing  # noqa: B018


def test_error_codes_are_pinned() -> None:
    # Clients compare them; they are in every HTTP problem document.
    codes = {
        name: error.code
        for name, error in inspect.getmembers(errors, inspect.isclass)
        if issubclass(error, errors.Gpt2ServeError)
    }
    assert codes == {
        "ContextExceeded": "invalid_value",
        "CorruptPackage": "corrupt_package",
        "DeviceUnavailable": "device_unavailable",
        "EngineClosed": "draining",
        "EngineNotStarted": "not_ready",
        "Gpt2ServeError": "internal_error",
        "InvalidModelId": "invalid_model_id",
        "InvalidRequest": "invalid_value",
        "ModelLoadFailed": "model_load_failed",
        "ModelNotFound": "model_not_found",
        "ModelTooLarge": "model_too_large",
        "ModelUnavailable": "model_unavailable",
        "NotOnDisk": "model_unavailable",
        "Overloaded": "overloaded",
        "PackageError": "package_error",
        "PackageReplaced": "model_unavailable",
        "RequestAborted": "aborted",
        "SettingsError": "invalid_settings",
        "StepFailed": "generation_failed",
        "StoreUnavailable": "store_unavailable",
        "UnknownRevision": "unknown_package_revision",
    }


def test_fields_of_a_request_are_pinned() -> None:
    assert gpt2serve.SamplingParams.__struct_fields__ == (
        "num_return_sequences",
        "max_new_tokens",
        "min_new_tokens",
        "max_length",
        "min_length",
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "repetition_penalty",
        "no_repeat_ngram_size",
        "stop",
        "seed",
        "return_full_text",
        "details",
        "min_p",
        "typical_p",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "ignore_eos",
        "max_time",
        "top_logprobs",
        "prompt_logprobs",
        "truncate",
    )
