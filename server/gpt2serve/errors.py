"""Every error that gpt2serve raises on purpose.

    Gpt2ServeError
    ├── InvalidRequest          the caller's value is wrong; `field` names it
    │   └── ContextExceeded     more tokens than the model's context has
    ├── ModelNotFound           no such model in the store
    ├── PackageError            a model package cannot be used
    │   ├── InvalidModelId
    │   ├── UnknownRevision     written by a newer exporter
    │   └── CorruptPackage      missing, truncated or altered file
    ├── ModelUnavailable        cannot be loaded now; `retry_after` says when to try again
    │   ├── ModelTooLarge       can never fit into the budget
    │   ├── ModelLoadFailed
    │   ├── StoreUnavailable    the store does not answer, and the model is not on the disk
    │   ├── PackageReplaced     published again while this version was being fetched or read
    │   └── NotOnDisk           evicted from the disk cache meanwhile: fetch it again
    ├── Overloaded              the queue is full
    ├── EngineNotStarted        it takes work once it was started
    ├── EngineClosed            draining, or stopped
    ├── RequestAborted          cancelled by its owner
    ├── StepFailed              the model failed while it was generating
    ├── DeviceUnavailable       CUDA was asked for and is not there
    └── SettingsError           a command-line option or environment variable is wrong

`code` is stable and public: it is the `code` of the HTTP problem document.
"""

from __future__ import annotations

from typing import Self


class Gpt2ServeError(Exception):
    """Base of all. `str(error)` is a sentence that can be shown to the caller."""

    code = "internal_error"


class InvalidRequest(Gpt2ServeError):
    """A value is out of range or does not go together with another one."""

    code = "invalid_value"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message

    def about(self, field: str) -> Self:
        """The same of a field that is called otherwise."""
        return type(self)(field, self.message)


class ContextExceeded(InvalidRequest):
    """Prompt and new tokens together are more than the model's context."""

    @classmethod
    def by(cls, field: str, context_length: int, message: str) -> Self:
        # It begins as OpenAI's does: programs look for these words.
        length = f"this model's maximum context length is {context_length} tokens"
        return cls(field, f"{length}, {message}")


class ModelNotFound(Gpt2ServeError):
    code = "model_not_found"

    def __init__(self, model: str) -> None:
        super().__init__(f"There is no model {model!r} in the store.")
        self.model = model


class PackageError(Gpt2ServeError):
    code = "package_error"


class InvalidModelId(PackageError):
    code = "invalid_model_id"


class UnknownRevision(PackageError):
    code = "unknown_package_revision"


class CorruptPackage(PackageError):
    code = "corrupt_package"


class ModelUnavailable(Gpt2ServeError):
    """The model is in the store, but cannot be served now.

    `retry_after` is in seconds; None says that waiting will not help.
    """

    code = "model_unavailable"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ModelTooLarge(ModelUnavailable):
    code = "model_too_large"


class ModelLoadFailed(ModelUnavailable):
    code = "model_load_failed"


class StoreUnavailable(ModelUnavailable):
    """`everywhere`: the store as a whole does not answer, not only for this model."""

    code = "store_unavailable"

    def __init__(
        self, message: str, *, retry_after: float | None = None, everywhere: bool = True
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.everywhere = everywhere


class PackageReplaced(ModelUnavailable):
    """The next request gets the new version."""

    def __init__(self, model: str) -> None:
        super().__init__(
            f"{model!r} was published again while its last version was being read; try again.",
            retry_after=1.0,
        )
        self.model = model


class NotOnDisk(ModelUnavailable):
    """A package was evicted from the disk cache between its fetch and its use."""

    def __init__(self, model: str) -> None:
        super().__init__(
            f"{model!r} was evicted from the disk cache before it was loaded; try again.",
            retry_after=1.0,
        )
        self.model = model


class Overloaded(Gpt2ServeError):
    code = "overloaded"

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineNotStarted(Gpt2ServeError):
    code = "not_ready"

    def __init__(self) -> None:
        super().__init__(
            "The engine has not been started. An app that is mounted in another one starts with "
            "that one's lifespan: docs/embedding.md shows how."
        )
        self.retry_after = 1.0


class EngineClosed(Gpt2ServeError):
    code = "draining"

    def __init__(self, message: str = "The server is shutting down.") -> None:
        super().__init__(message)
        self.retry_after = 5.0


class RequestAborted(Gpt2ServeError):
    code = "aborted"


class StepFailed(Gpt2ServeError):
    code = "generation_failed"


class DeviceUnavailable(Gpt2ServeError):
    code = "device_unavailable"


class SettingsError(Gpt2ServeError):
    code = "invalid_settings"
