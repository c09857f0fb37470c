"""`gpt2serve --store DIR-or-URL`: the settings from options and environment, then the server."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from gpt2serve import settings as settings_module
from gpt2serve.api.version import version
from gpt2serve.errors import Gpt2ServeError, SettingsError
from gpt2serve.settings import (
    ENVIRONMENT_PREFIX,
    EngineSettings,
    ServerSettings,
    environment,
    settings_from_texts,
)

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

#: Field of `EngineSettings` or `ServerSettings`: placeholder and help. Names, environment
#: variables, choices and defaults come from the structs; a test compares the two.
OPTIONS: dict[str, tuple[str, str]] = {
    "store": (
        "DIR-or-URL",
        "model packages: a folder that gpt2export wrote, or s3://bucket/prefix; required",
    ),
    "host": ("ADDRESS", "address to listen on; 0.0.0.0 for all"),
    "port": ("PORT", "port to listen on; 0 takes a free one and prints it"),
    "device": ("DEVICE", "where models run; auto is cuda if it is there, else cpu"),
    "precision": ("PRECISION", "variant to serve; if not given, the first that a model has"),
    "model_cache_bytes": ("SIZE", "memory for the weights of loaded models"),
    "kv_cache_bytes": ("SIZE", "memory for keys and values of running requests"),
    "max_batch_size": ("N", "sequences of one model that are decoded together"),
    "max_queue": ("N", "requests accepted and not finished; beyond it clients get 429"),
    "preload": ("ID", "load this model at start; may be repeated"),
    "pin": ("ID", "load this model at start and never evict it; may be repeated"),
    "threads": ("N", "threads to compute with; 0 is one per core"),
    "prefill_chunk": ("TOKENS", "tokens of a long prompt that are read between two decode steps"),
    "model_max_wait": ("SECONDS", "longest wait of a cold model for hotter ones to make room"),
    "model_ttl": ("SECONDS", "put models out of memory that were idle this long; 0 is never"),
    "load_retry_min": ("SECONDS", "after a failed load, refuse the model for this long"),
    "load_retry_max": ("SECONDS", "the refusal doubles with each failure, up to this"),
    "disk_cache": ("DIR", "packages from a URL are kept here; processes may share it"),
    "disk_cache_bytes": ("SIZE", "what it may hold; a share is of the disk"),
    "store_refresh": ("SECONDS", "ask at most this often whether a model was published again"),
    "log_format": ("FORMAT", "auto is console on a terminal and json elsewhere"),
    "max_body_bytes": ("SIZE", "largest request body"),
    "drain_delay": ("SECONDS", "after SIGTERM, say not ready but take requests for this long"),
    "drain_seconds": ("SECONDS", "then refuse new ones; time for running requests to end"),
    "admin_key": ("KEY", "offer /admin to who sends this key; ps shows it, so better not here"),
    "admin_key_file": ("FILE", "file with the admin key; read once, at start"),
    "api_key_file": ("FILE", "let in only who has a key of it: python -m gpt2serve.keys --help"),
    "model_metrics": ("N", "count the first N models that are used one by one; at most 1000"),
    "traces": ("WHERE", "send traces of requests there; OTEL_EXPORTER_OTLP_ENDPOINT is for otlp"),
    "cors_origins": (
        "ORIGIN",
        "let pages of https://example.com call the server; * lets all; may be repeated",
    ),
}

_SHOWN_DEFAULTS = {
    "model_cache_bytes": settings_module.DEFAULT_MODEL_CACHE,
    "kv_cache_bytes": settings_module.DEFAULT_KV_CACHE,
    "disk_cache": "$XDG_CACHE_HOME/gpt2serve or ~/.cache/gpt2serve",
    "disk_cache_bytes": settings_module.DEFAULT_DISK_CACHE,
    "max_body_bytes": "1MiB",
}

_DESCRIPTION = """\
Serve GPT-2 model packages over HTTP, each model loaded when it is asked for.
"""

_EPILOG = """\
sizes: 512MiB, 8GiB, or a share of memory (for the disk cache: of the disk) such as 50%. Each
option can be given as the environment variable in brackets; the command line wins. Lists in
variables have commas.

examples:
  gpt2serve --store models/
  gpt2serve --store models/ --host 0.0.0.0 --model-cache-bytes 8GiB --pin me/my-model
  gpt2serve --store s3://my-bucket/models --disk-cache /var/cache/gpt2serve
  GPT2SERVE_STORE=models/ GPT2SERVE_PORT=9000 gpt2serve

  http://localhost:8000 is a page to try the models, /schema/docs has every route and field
  curl -s localhost:8000/models
  curl -s localhost:8000/generate -d '{"model": "me/my-model", "prompt": "My dream is"}'

SIGTERM or Ctrl-C: running requests end, new ones are refused, then the process exits with
status 0. A second signal aborts what still runs. Behind a balancer, --drain-delay 10 gives it
time to see that /readyz says 503 before anything is refused. Status 1: the server could not
start; status 2: an option is wrong.

The port opens at once and /healthz answers 200; /readyz answers 503 until the models of
--preload and --pin are loaded. If one of them cannot be, the process ends with status 1.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit status."""
    given = {
        key: value
        for key, value in vars(build_parser().parse_args(argv)).items()
        if value is not None
    }
    try:
        engine, server = read_settings(given, environment())
    except SettingsError as error:
        return _fail(str(error), EXIT_USAGE)
    if not settings_module.is_url(engine.store) and not Path(engine.store).is_dir():
        return _fail(f"There is no store {engine.store!r}: not a folder.", EXIT_USAGE)
    # From here until the server listens to signals itself: nothing runs yet that could be lost.
    # Without it process 1, as in a container, would not hear SIGTERM at all.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        return asyncio.run(_serve(engine, server))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


async def _serve(engine: EngineSettings, server: ServerSettings) -> int:
    # Imported here, so that --help and a wrong option do not wait for onnxruntime.
    from gpt2serve.api.serving import allow_open_files, listen, serve
    from gpt2serve.app import create_app, service_of

    try:
        listener = listen(server.host, server.port)
    except OSError as error:
        reason = error.strerror or error
        return _fail(f"Cannot listen on {server.host}:{server.port}: {reason}.", EXIT_FAILED)
    allow_open_files()
    with listener:
        try:
            app = create_app(settings=engine, server_settings=server)
            await serve(app, service_of(app), listener)
        except Gpt2ServeError as error:
            wrong_option = isinstance(error, SettingsError)
            return _fail(str(error), EXIT_USAGE if wrong_option else EXIT_FAILED)
    return 0


def read_settings(
    given: Mapping[str, Any], variables: Mapping[str, str]
) -> tuple[EngineSettings, ServerSettings]:
    """The settings of options `given`, by field, over `variables`. Raises `SettingsError`."""
    origins = {name: ENVIRONMENT_PREFIX + name.upper() for name in variables}
    origins |= {name: _flag(name) for name in given}
    return settings_from_texts({**variables, **given}, origins)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpt2serve",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gpt2serve {version()}")
    groups: tuple[tuple[type[msgspec.Struct], str], ...] = (
        (EngineSettings, "models and memory"),
        (ServerSettings, "HTTP"),
    )
    for kind, title in groups:
        group = parser.add_argument_group(title)
        for field in msgspec.structs.fields(kind):
            metavar, text = OPTIONS[field.name]
            choices = settings_module.choices(field.type)
            repeated = field.default == ()
            group.add_argument(
                _flag(field.name),
                dest=field.name,
                metavar=None if choices else metavar,
                choices=choices or None,
                action="append" if repeated else "store",
                help=_help(text, field),
            )
    return parser


def _help(text: str, field: msgspec.structs.FieldInfo) -> str:
    default = _SHOWN_DEFAULTS.get(field.name, field.default)
    shown = "" if default in (msgspec.NODEFAULT, None, ()) else f" (default: {default})"
    variable = ENVIRONMENT_PREFIX + field.name.upper()
    return f"{text}{shown} [{variable}]".replace("%", "%%")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _fail(message: str, status: int) -> int:
    sys.stderr.write(f"gpt2serve: error: {message}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
