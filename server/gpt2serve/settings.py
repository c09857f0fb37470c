"""Settings: frozen, read once, handed down. The only module that reads the environment.

Each field of `EngineSettings` and `ServerSettings` is a command-line option of `gpt2serve`
(`max_queue` is `--max-queue`) and an environment variable (`GPT2SERVE_MAX_QUEUE`). The
command line wins over the environment, the environment over the default.
"""

from __future__ import annotations

import hmac
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec

from gpt2serve import package
from gpt2serve.errors import SettingsError
from gpt2serve.origins import check_origins
from gpt2serve.package import Precision
from gpt2serve.sizes import disk_size, parse_size

ENVIRONMENT_PREFIX = "GPT2SERVE_"

_Settings = TypeVar("_Settings", bound=msgspec.Struct)

#: Fewer characters can be guessed.
SHORTEST_ADMIN_KEY = 16
MOST_MODEL_METRICS = 1000


class Secret:
    """A text that no log line and no traceback shows."""

    __slots__ = ("_text",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError("a secret must be a text")
        self._text = text

    def __len__(self) -> int:
        return len(self._text)

    def __repr__(self) -> str:
        return "Secret(...)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self.matches(other._text)

    def matches(self, text: str) -> bool:
        """Whether `text` is the secret, in a time that does not tell how much of it is right."""
        return hmac.compare_digest(self._text.encode(), text.encode())

    @property
    def sendable(self) -> bool:
        """Whether it can stand in a header: visible ASCII, no spaces."""
        return all("!" <= character <= "~" for character in self._text)


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine needs to know. Sizes are in bytes, times in seconds."""

    #: A folder, or a URL such as s3://bucket/prefix.
    store: str
    device: Literal["auto", "cpu", "cuda"] = "auto"
    #: None takes the first precision that a package has: int8, fp32 (CPU); fp16 (CUDA).
    precision: Precision | None = None
    #: Memory for weights. A model that is larger is refused.
    model_cache_bytes: int
    #: Memory for the keys and values of running requests, of all models together.
    kv_cache_bytes: int
    #: Sequences that one model decodes together; also the most one request can ask for.
    max_batch_size: int = 32
    #: Requests accepted and not finished, beyond which new ones get 429.
    max_queue: int = 256
    #: Load at start; the server is ready when they are there.
    preload: tuple[str, ...] = ()
    #: Load at start and never evict.
    pin: tuple[str, ...] = ()
    #: Threads that onnxruntime computes with, shared by all models. 0: one per core.
    threads: int = 0
    #: Tokens of a long prompt that are prefilled between two decode steps.
    prefill_chunk: int = 128
    #: A request for a model that is not resident waits at most this long for hotter models
    #: to make room; then they wait.
    model_max_wait: float = 2.0
    #: A model that was not used for this long goes out of memory. 0: only when others need room.
    model_ttl: float = 0.0
    #: After a failed load, requests for the model fail at once for this long; doubled each
    #: time, up to `load_retry_max`.
    load_retry_min: float = 1.0
    load_retry_max: float = 60.0
    #: Folder for the packages of a store that is a URL; several processes may share it.
    disk_cache: Path | None = None
    #: What that folder may hold.
    disk_cache_bytes: int
    #: The store is asked at most this often whether a model was published again.
    store_refresh: float = 5.0


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the HTTP side needs to know."""

    host: str = "127.0.0.1"
    port: int = 8000
    log_format: Literal["auto", "json", "console"] = "auto"
    max_body_bytes: int = 1024 * 1024
    #: After SIGTERM, `/readyz` answers 503 at once, and requests are still taken for this long:
    #: the time that balancers need to notice.
    drain_delay: float = 0.0
    #: Then running requests have this long to end.
    drain_seconds: float = 45.0
    #: What `/admin` wants to see. Without it, and without a file, there is no `/admin`.
    admin_key: Secret | None = None
    #: The same in a file, which is read once, when the app is made.
    admin_key_file: Path | None = None
    #: Keys of those who may in, hashed, one a line; read again when it changes. Without it
    #: everybody may.
    api_key_file: Path | None = None
    #: So many models, the first that are used, get a `model` label of their own in the metrics.
    model_metrics: int = 0
    #: Where traces of requests go. The OTEL_ variables say more, such as the collector's address.
    traces: Literal["none", "otlp", "console"] = "none"
    #: Pages of these origins may read answers in a browser: https://example.com, or * for all.
    cors_origins: tuple[str, ...] = ()


def is_url(store: str) -> bool:
    """Whether `store` names a URL, not a folder."""
    return "://" in store


def allows_http(url: str) -> bool:
    """Whether the store at `url` may be reached without TLS, as the environment says."""
    return package.allows_http(url, os.environ)


def default_disk_cache(source: Mapping[str, str] | None = None) -> Path:
    """`$XDG_CACHE_HOME/gpt2serve`, or `~/.cache/gpt2serve`."""
    base = (os.environ if source is None else source).get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gpt2serve"


def environment(source: Mapping[str, str] | None = None) -> dict[str, str]:
    """The `GPT2SERVE_<NAME>` variables, as `{name in lower case: text}`."""
    source = os.environ if source is None else source
    return {
        name.removeprefix(ENVIRONMENT_PREFIX).lower(): value
        for name, value in source.items()
        # Kubernetes sets GPT2SERVE_PORT=tcp://... for a service that is called gpt2serve.
        if name.startswith(ENVIRONMENT_PREFIX) and not value.startswith("tcp://")
    }


def disable_telemetry() -> None:
    """Keep onnxruntime from sending telemetry, unless somebody has set its variable already.

    From version 1.29 on it sends to Microsoft by default, and keeps an identifier of the machine
    in the home folder. It reads the variable when it is imported.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def otlp_protocol(source: Mapping[str, str] | None = None) -> str:
    """How traces are to be sent, by the variables that every OpenTelemetry SDK reads."""
    source = os.environ if source is None else source
    names = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    return next((source[name] for name in names if source.get(name)), OTLP_PROTOCOL)


#: The only one that traces are sent with.
OTLP_PROTOCOL = "http/protobuf"

DEFAULT_MODEL_CACHE = "50%"
DEFAULT_KV_CACHE = "20%"
#: Of the disk.
DEFAULT_DISK_CACHE = "20%"


def engine_settings(
    store: str | Path,
    *,
    model_cache_bytes: int | str = DEFAULT_MODEL_CACHE,
    kv_cache_bytes: int | str = DEFAULT_KV_CACHE,
    disk_cache: str | Path | None = None,
    disk_cache_bytes: int | str = DEFAULT_DISK_CACHE,
    **options: object,
) -> EngineSettings:
    """`EngineSettings` from what people write: sizes as text, lists for tuples.

    Raises `SettingsError` for a name or a value that does not exist.
    """
    folder = Path(disk_cache) if disk_cache else default_disk_cache()
    values = {
        "store": str(store),
        "model_cache_bytes": _bytes(model_cache_bytes),
        "kv_cache_bytes": _bytes(kv_cache_bytes),
        "disk_cache": folder if disk_cache or is_url(str(store)) else None,
        "disk_cache_bytes": _disk_bytes(disk_cache_bytes, folder),
        **options,
    }
    settings = _converted(values, EngineSettings)
    for field, low in (
        ("max_batch_size", 1),
        ("max_queue", 1),
        ("threads", 0),
        ("prefill_chunk", 1),
        ("model_cache_bytes", 1),
        ("kv_cache_bytes", 1),
        ("disk_cache_bytes", 1),
    ):
        if getattr(settings, field) < low:
            raise SettingsError(f"{field} must be at least {low}.")
    _check_seconds(
        settings,
        ("model_max_wait", "model_ttl", "load_retry_min", "load_retry_max", "store_refresh"),
    )
    return settings


def server_settings(
    *, max_body_bytes: int | str | None = None, **options: object
) -> ServerSettings:
    """`ServerSettings` from what people write. Raises `SettingsError`."""
    if max_body_bytes is not None:
        options["max_body_bytes"] = _bytes(max_body_bytes)
    settings = _converted(options, ServerSettings)
    if not 0 <= settings.port <= 65535:
        raise SettingsError("port must be between 0 and 65535.")
    _check_seconds(settings, ("drain_delay", "drain_seconds"))
    if not 0 <= settings.model_metrics <= MOST_MODEL_METRICS:
        raise SettingsError(f"model_metrics must be between 0 and {MOST_MODEL_METRICS}.")
    check_origins(settings.cors_origins)
    if settings.admin_key is not None:
        read_admin_key(settings)
    return settings


def _converted(values: Mapping[str, object], kind: type[_Settings]) -> _Settings:
    """Raises `SettingsError` for a name or a value that does not exist."""
    unknown = values.keys() - set(kind.__struct_fields__)
    if unknown:
        raise SettingsError(f"There is no setting {', '.join(sorted(unknown))}.")
    try:
        return msgspec.convert(values, kind, strict=False, dec_hook=_made)
    except msgspec.ValidationError as error:
        raise SettingsError(str(error)) from error


def _check_seconds(settings: msgspec.Struct, fields: Sequence[str]) -> None:
    for field in fields:
        if not 0 <= getattr(settings, field) < math.inf:
            raise SettingsError(f"{field} must be a number of seconds, 0 or more.")


def read_admin_key(settings: ServerSettings) -> Secret | None:
    """The admin key, of the setting or of the file; None if there is to be no `/admin`.

    Raises `SettingsError` if both are given, or if the key or its file cannot be used.
    """
    key, path = settings.admin_key, settings.admin_key_file
    if key is not None and path is not None:
        raise SettingsError("Give admin_key or admin_key_file, one of them.")
    origin = "admin_key"
    if path is not None:
        origin = f"admin_key_file {path}"
        try:
            key = Secret(path.read_text(encoding="utf-8").rstrip("\r\n"))
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise SettingsError(f"{origin} cannot be read: {reason}.") from error
    if key is None:
        return None
    if len(key) < SHORTEST_ADMIN_KEY:
        raise SettingsError(
            f"{origin}: the key has {len(key)} characters and needs {SHORTEST_ADMIN_KEY} or more; "
            "`openssl rand -hex 32` makes one."
        )
    if not key.sendable:
        raise SettingsError(
            f"{origin}: the key must be of ASCII letters, digits and signs, without spaces; "
            "`openssl rand -hex 32` makes one."
        )
    return key


def settings_from_texts(
    texts: Mapping[str, str | Sequence[str]], origins: Mapping[str, str]
) -> tuple[EngineSettings, ServerSettings]:
    """Both settings from options as text, by field; lists may be written with commas.

    `origins` names the option or variable that a text came from, for the error message.
    Raises `SettingsError`.
    """
    engine: dict[str, Any] = {}
    server: dict[str, Any] = {}
    for kind, values in ((EngineSettings, engine), (ServerSettings, server)):
        for field in msgspec.structs.fields(kind):
            if field.name in texts:
                try:
                    values[field.name] = _from_text(field.name, field.type, texts[field.name])
                except SettingsError as error:
                    raise SettingsError(f"{origins[field.name]}: {error}") from error
    if not texts.get("store"):
        raise SettingsError("No store: give --store DIR-or-URL, or set GPT2SERVE_STORE.")
    return engine_settings(**engine), server_settings(**server)


def settings_from_environment(
    source: Mapping[str, str] | None = None,
) -> tuple[EngineSettings, ServerSettings]:
    """Both settings from `GPT2SERVE_<NAME>` variables. Raises `SettingsError`."""
    texts = environment(source)
    return settings_from_texts(
        texts, {name: f"{ENVIRONMENT_PREFIX}{name.upper()}" for name in texts}
    )


def _from_text(name: str, kind: Any, text: str | Sequence[str]) -> Any:
    if not isinstance(text, str):
        text = ",".join(text)
    if name == "disk_cache_bytes":
        parse_size(text)
        return text  # a share is of the disk, and which one that is says another setting
    if name.endswith("_bytes"):
        return parse_size(text)
    if get_origin(kind) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    for made in (Secret, Path):
        if made in get_args(kind):  # convert would make None of the text "null"
            return made(text)
    try:
        return msgspec.convert(text, kind, strict=False, dec_hook=_made)
    except msgspec.ValidationError as error:
        wanted = _WANTED.get(kind) or "one of " + ", ".join(choices(kind))
        raise SettingsError(f"{text!r} is not {wanted}.") from error


_WANTED = {int: "a whole number", float: "a number"}


def choices(kind: Any) -> tuple[str, ...]:
    """The texts that a field of this type can have: ("cpu", "cuda") of a Literal, else ()."""
    parts = [get_args(part) or (part,) for part in get_args(kind)]
    return tuple(text for part in parts for text in part if isinstance(text, str))


def _made(kind: Any, value: Any) -> Any:
    """What msgspec asks for types that are not its own: `Path` and `Secret`."""
    return value if isinstance(value, kind) else kind(value)


def _bytes(size: int | str) -> int:
    return parse_size(size) if isinstance(size, str) else size


def _disk_bytes(size: int | str, folder: Path) -> int:
    if not isinstance(size, str):
        return size
    return parse_size(size, whole=disk_size(folder) if size.strip().endswith("%") else None)
