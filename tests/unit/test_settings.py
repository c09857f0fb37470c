"""Settings: the environment, and errors that name what is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gpt2serve.errors import SettingsError
from gpt2serve.settings import (
    EngineSettings,
    Secret,
    ServerSettings,
    engine_settings,
    environment,
    read_admin_key,
    server_settings,
    settings_from_environment,
    settings_from_texts,
)
from gpt2serve.sizes import memory_limit

SIZES = {"model_cache_bytes": 100, "kv_cache_bytes": 100}

# -- what people write ------------------------------------------------------------------------


def test_defaults() -> None:
    settings = engine_settings("models")
    assert settings.store == "models"
    assert (settings.device, settings.precision) == ("auto", None)
    assert settings.model_cache_bytes == pytest.approx(memory_limit() * 0.5, abs=1)
    assert settings.kv_cache_bytes == pytest.approx(memory_limit() * 0.2, abs=1)
    assert server_settings() == ServerSettings(host="127.0.0.1", port=8000)


def test_settings_are_frozen() -> None:
    settings = engine_settings("models", **SIZES)
    with pytest.raises(AttributeError):
        settings.threads = 3  # type: ignore[misc]


def test_lists_and_sizes_are_converted() -> None:
    settings = engine_settings(
        "models", model_cache_bytes="1KiB", kv_cache_bytes=5, pin=["a", "b/c"], preload=("d",)
    )
    assert settings.model_cache_bytes == 1024
    assert (settings.pin, settings.preload) == (("a", "b/c"), ("d",))
    assert server_settings(max_body_bytes="2KiB").max_body_bytes == 2048


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("device", "tpu"),
        ("precision", "int4"),
        ("max_batch_size", 0),
        ("max_batch_size", "many"),
        ("max_queue", 0),
        ("max_queue", -1),
        ("threads", -1),
        ("prefill_chunk", 0),
        ("model_cache_bytes", 0),
        ("model_cache_bytes", "lots"),
        ("kv_cache_bytes", -5),
        ("load_retry_min", "soon"),
        ("disk_cache_bytes", 0),
        ("disk_cache_bytes", "0%"),
        ("store_refresh", -1),
        ("store_refresh", float("inf")),
    ],
)
def test_wrong_engine_values(field: str, value: Any) -> None:
    with pytest.raises(SettingsError):
        engine_settings("models", **(SIZES | {field: value}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("port", -1),
        ("port", 65536),
        ("port", "http"),
        ("log_format", "xml"),
        ("drain_delay", -1),
        ("drain_delay", float("nan")),
        ("drain_seconds", -1),
        ("drain_seconds", float("inf")),
        ("drain_seconds", float("nan")),
        ("max_body_bytes", "big"),
        ("model_metrics", -1),
        ("model_metrics", 1001),
        ("admin_key", ""),
        ("admin_key", "x" * 15),
        ("admin_key", "with space " * 5),
        ("admin_key", "naïve" * 5),
        ("admin_key", "line\n" * 5),
        ("admin_key", 5),
    ],
)
def test_wrong_server_values(field: str, value: Any) -> None:
    with pytest.raises(SettingsError):
        server_settings(**{field: value})


def test_unknown_names_are_refused() -> None:
    with pytest.raises(SettingsError, match="max_quueue"):
        engine_settings("models", max_quueue=5, **SIZES)
    with pytest.raises(SettingsError, match="prot"):
        server_settings(prot=5)


def test_a_secret_shows_itself_to_nobody() -> None:
    settings = server_settings(admin_key="correct-horse-battery")
    assert "horse" not in f"{settings} {settings!r} {settings.admin_key}"
    with pytest.raises(SettingsError) as caught:
        server_settings(admin_key="correct horse battery")
    assert "horse" not in str(caught.value)
    assert settings.admin_key is not None
    assert settings.admin_key.matches("correct-horse-battery")
    assert not settings.admin_key.matches("correct-horse-batterz")


def test_the_admin_key_is_of_the_setting_or_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    key = Secret("correct-horse-battery")
    for ending in ("", "\n", "\r\n"):
        file.write_bytes(b"correct-horse-battery" + ending.encode())
        assert read_admin_key(ServerSettings(admin_key_file=file)) == key
    assert read_admin_key(ServerSettings(admin_key=key)) == key
    assert read_admin_key(ServerSettings()) is None
    with pytest.raises(SettingsError, match="one of them"):
        server_settings(admin_key="correct-horse-battery", admin_key_file=file)


# -- the environment --------------------------------------------------------------------------


def test_only_our_variables_are_taken() -> None:
    found = environment(
        {
            "GPT2SERVE_STORE": "models",
            "GPT2SERVE_MAX_QUEUE": "9",
            "PATH": "/bin",
            "STORE": "other",
            # Kubernetes sets this one for a service that is called gpt2serve.
            "GPT2SERVE_PORT": "tcp://10.0.0.1:8000",
        }
    )
    assert found == {"store": "models", "max_queue": "9"}


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT2SERVE_STORE", "from-environment")
    assert environment()["store"] == "from-environment"


def test_every_setting_is_a_variable() -> None:
    engine, server = settings_from_environment(
        {
            "GPT2SERVE_STORE": "models",
            "GPT2SERVE_DEVICE": "cpu",
            "GPT2SERVE_PRECISION": "fp32",
            "GPT2SERVE_MODEL_CACHE_BYTES": "1GiB",
            "GPT2SERVE_KV_CACHE_BYTES": "1MiB",
            "GPT2SERVE_MAX_BATCH_SIZE": "8",
            "GPT2SERVE_MAX_QUEUE": "9",
            "GPT2SERVE_PRELOAD": "a, org/b,,",
            "GPT2SERVE_PIN": "c",
            "GPT2SERVE_THREADS": "3",
            "GPT2SERVE_PREFILL_CHUNK": "64",
            "GPT2SERVE_MODEL_MAX_WAIT": "1.5",
            "GPT2SERVE_MODEL_TTL": "60",
            "GPT2SERVE_LOAD_RETRY_MIN": "0.5",
            "GPT2SERVE_LOAD_RETRY_MAX": "10",
            "GPT2SERVE_DISK_CACHE": "/var/cache/models",
            "GPT2SERVE_DISK_CACHE_BYTES": "2GiB",
            "GPT2SERVE_STORE_REFRESH": "7.5",
            "GPT2SERVE_HOST": "0.0.0.0",
            "GPT2SERVE_PORT": "80",
            "GPT2SERVE_LOG_FORMAT": "json",
            "GPT2SERVE_MAX_BODY_BYTES": "1KiB",
            "GPT2SERVE_DRAIN_DELAY": "2.5",
            "GPT2SERVE_DRAIN_SECONDS": "5",
            "GPT2SERVE_ADMIN_KEY_FILE": "/etc/key",
            "GPT2SERVE_API_KEY_FILE": "/etc/keys",
            "GPT2SERVE_MODEL_METRICS": "6",
            "GPT2SERVE_TRACES": "otlp",
            "GPT2SERVE_CORS_ORIGINS": "https://a.example, http://b:1",
        }
    )
    assert engine == EngineSettings(
        store="models",
        device="cpu",
        precision="fp32",
        model_cache_bytes=1024**3,
        kv_cache_bytes=1024**2,
        max_batch_size=8,
        max_queue=9,
        preload=("a", "org/b"),
        pin=("c",),
        threads=3,
        prefill_chunk=64,
        model_max_wait=1.5,
        model_ttl=60.0,
        load_retry_min=0.5,
        load_retry_max=10.0,
        disk_cache=Path("/var/cache/models"),
        disk_cache_bytes=2 * 1024**3,
        store_refresh=7.5,
    )
    assert server == ServerSettings(
        host="0.0.0.0",
        port=80,
        log_format="json",
        max_body_bytes=1024,
        drain_delay=2.5,
        drain_seconds=5.0,
        admin_key_file=Path("/etc/key"),
        api_key_file=Path("/etc/keys"),
        model_metrics=6,
        traces="otlp",
        cors_origins=("https://a.example", "http://b:1"),
    )
    # No default is left among them, or a variable could be ignored unnoticed.
    for made, plain in ((engine, engine_settings("x", **SIZES)), (server, ServerSettings())):
        for field in msgspec.structs.fields(type(made)):
            if field.name == "admin_key":  # goes not together with the file
                continue
            assert getattr(made, field.name) != getattr(plain, field.name), field.name


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("MAX_QUEUE", "many", "whole number"),
        ("MODEL_MAX_WAIT", "soon", "number"),
        ("DEVICE", "tpu", "cuda"),
        ("PRECISION", "int4", "fp16"),
        ("MODEL_CACHE_BYTES", "lots", "size"),
        ("DISK_CACHE_BYTES", "lots", "size"),
        ("PORT", "http", "whole number"),
    ],
)
def test_a_wrong_variable_is_named_with_what_is_wanted(name: str, value: str, wanted: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings_from_environment({"GPT2SERVE_STORE": "models", f"GPT2SERVE_{name}": value})
    message = str(caught.value)
    assert message.startswith(f"GPT2SERVE_{name}: ")
    assert repr(value) in message
    assert wanted in message


def test_a_store_must_be_given() -> None:
    for texts in ({}, {"store": ""}):
        with pytest.raises(SettingsError, match="--store"):
            settings_from_texts(texts, dict.fromkeys(texts, "--store"))


def test_a_folder_needs_no_disk_cache(tmp_path: Path) -> None:
    assert engine_settings(tmp_path).disk_cache is None
    assert engine_settings(tmp_path, disk_cache="here").disk_cache == Path("here")


def test_packages_of_a_url_are_cached_where_caches_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/xdg")
    assert engine_settings("s3://bucket/p").disk_cache == Path("/var/xdg/gpt2serve")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert engine_settings("s3://bucket/p").disk_cache == Path("/home/me/.cache/gpt2serve")
    assert engine_settings("s3://bucket/p", disk_cache="/here").disk_cache == Path("/here")


def test_a_share_of_the_disk_cache_is_of_its_disk(tmp_path: Path) -> None:
    disk = shutil.disk_usage(tmp_path).total
    for folder in (tmp_path, tmp_path / "not" / "there" / "yet"):
        settings = engine_settings("s3://b", disk_cache=folder, disk_cache_bytes="50%")
        assert settings.disk_cache_bytes == disk // 2
        settings, _ = settings_from_texts(
            {"store": "s3://b", "disk_cache": str(folder), "disk_cache_bytes": "25%"}, {}
        )
        assert settings.disk_cache_bytes == disk // 4
    assert not (tmp_path / "not").exists()
    assert engine_settings("s3://b", disk_cache_bytes="3MiB").disk_cache_bytes == 3 * 1024**2


def test_lists_may_be_given_many_times() -> None:
    engine, _ = settings_from_texts(
        {"store": "models", "pin": ["a,b", "c"]}, {"store": "--store", "pin": "--pin"}
    )
    assert engine.pin == ("a", "b", "c")
