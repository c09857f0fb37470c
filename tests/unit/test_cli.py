"""`gpt2serve` options: command line over environment over defaults; errors in one line."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from gpt2serve import cli
from gpt2serve.errors import SettingsError
from gpt2serve.settings import (
    EngineSettings,
    Secret,
    ServerSettings,
    environment,
    settings_from_environment,
)


def read(arguments: list[str], variables: dict[str, str]) -> tuple[EngineSettings, ServerSettings]:
    options = vars(cli.build_parser().parse_args(arguments))
    given = {name: value for name, value in options.items() if value is not None}
    return cli.read_settings(given, environment(variables))


FIELDS = [
    field.name
    for kind in (EngineSettings, ServerSettings)
    for field in msgspec.structs.fields(kind)
]

OTHER_VALUES = {
    "store": ("elsewhere", "elsewhere"),
    "disk_cache": ("elsewhere", Path("elsewhere")),
    "disk_cache_bytes": ("3MiB", 3 * 2**20),
    "store_refresh": ("1.5", 1.5),
    "device": ("cpu", "cpu"),
    "precision": ("fp32", "fp32"),
    "preload": ("a,b/c", ("a", "b/c")),
    "pin": ("a", ("a",)),
    "host": ("0.0.0.0", "0.0.0.0"),
    "log_format": ("json", "json"),
    "model_max_wait": ("1.5", 1.5),
    "load_retry_min": ("1.5", 1.5),
    "load_retry_max": ("1.5", 1.5),
    "drain_seconds": ("1.5", 1.5),
    "model_cache_bytes": ("3MiB", 3 * 2**20),
    "kv_cache_bytes": ("3MiB", 3 * 2**20),
    "max_body_bytes": ("3MiB", 3 * 2**20),
    "admin_key": ("null-null-null-null", Secret("null-null-null-null")),
    "admin_key_file": ("null", Path("null")),
    "traces": ("console", "console"),
    "cors_origins": ("https://a.b,http://c:1", ("https://a.b", "http://c:1")),
    "api_key_file": ("null", Path("null")),
}


def test_every_setting_has_an_option_and_every_option_a_setting() -> None:
    assert sorted(cli.OPTIONS) == sorted(FIELDS)


@pytest.mark.parametrize("name", FIELDS)
def test_each_setting_from_option_and_variable(name: str) -> None:
    text, value = OTHER_VALUES.get(name, ("3", 3))
    store = [] if name == "store" else ["--store", "models"]
    flag = "--" + name.replace("_", "-")
    variable = {"GPT2SERVE_" + name.upper(): text}
    for engine, server in (
        read([*store, flag, text], {}),
        read(store, variable),
        settings_from_environment({"GPT2SERVE_STORE": "models"} | variable),
    ):
        owner = engine if name in EngineSettings.__struct_fields__ else server
        assert getattr(owner, name) == value


def test_command_line_wins_over_environment() -> None:
    engine, server = read(
        ["--store", "here", "--port", "0"],
        {"GPT2SERVE_STORE": "there", "GPT2SERVE_PORT": "9", "GPT2SERVE_MAX_QUEUE": "5"},
    )
    assert (engine.store, server.port, engine.max_queue) == ("here", 0, 5)


def test_list_options_are_repeated() -> None:
    engine, _ = read(["--store", "s", "--pin", "a", "--pin", "b/c"], {})
    assert engine.pin == ("a", "b/c")


@pytest.mark.parametrize(
    ("arguments", "variables", "culprit"),
    [
        ([], {}, "--store"),
        (["--store", "s", "--max-queue", "x"], {}, "--max-queue"),
        (["--store", "s", "--max-queue", "0"], {}, "max_queue"),
        (["--store", "s", "--port", "65536"], {}, "port"),
        (["--store", "s", "--drain-seconds", "nan"], {}, "drain_seconds"),
        (["--store", "s", "--model-cache-bytes", "much"], {}, "--model-cache-bytes"),
        (["--store", "s", "--model-metrics", "1001"], {}, "model_metrics"),
        (["--store", "s", "--admin-key", ""], {}, "admin_key"),
        (["--store", "s", "--admin-key", "null"], {}, "admin_key"),
        (["--store", "s"], {"GPT2SERVE_ADMIN_KEY": ""}, "admin_key"),
        (["--store", "s"], {"GPT2SERVE_KV_CACHE_BYTES": "101%"}, "GPT2SERVE_KV_CACHE_BYTES"),
        (["--store", "s"], {"GPT2SERVE_DEVICE": "tpu"}, "GPT2SERVE_DEVICE"),
        (["--store", "s"], {"GPT2SERVE_LOG_FORMAT": "xml"}, "GPT2SERVE_LOG_FORMAT"),
    ],
)
def test_wrong_value_names_its_origin(
    arguments: list[str], variables: dict[str, str], culprit: str
) -> None:
    with pytest.raises(SettingsError, match=culprit):
        read(arguments, variables)


def test_what_kubernetes_injects_is_no_setting() -> None:
    _, server = read(["--store", "s"], {"GPT2SERVE_PORT": "tcp://10.0.0.1:80"})
    assert server.port == 8000


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--help"])
    assert exit_.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name in FIELDS:
        assert "--" + name.replace("_", "-") in text
        assert f"[GPT2SERVE_{name.upper()}]" in text
    for part in ("gpt2serve --store models/", "curl", "512MiB", "(default: 50%)", "SIGTERM"):
        assert part in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith("gpt2serve ")


@pytest.mark.parametrize(
    "arguments", [["--store", "/nowhere"], ["--store", "/tmp", "--max-queue", "x"]]
)
def test_wrong_usage_is_one_line_and_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gpt2serve: error: ")


def test_unusable_admin_key_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "key"
    file.write_text("hunter2\n")
    store = ["--store", str(tmp_path), "--port", "0"]
    for options in (["--admin-key", "hunter2"], ["--admin-key-file", str(file)]):
        assert cli.main([*store, *options]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "16" in line
        assert "hunter2" not in line
    both = ["--admin-key", "x" * 16, "--admin-key-file", str(file)]
    assert cli.main([*store, *both]) == 2
    assert "one of them" in capsys.readouterr().err


def test_port_in_use_is_one_line_and_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["--store", str(tmp_path), "--port", str(port)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"127.0.0.1:{port}" in line
    assert "in use" in line


def test_unknown_model_to_preload_is_one_line_and_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--store", str(tmp_path), "--port", "0", "--preload", "nobody"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "nobody" in line


def test_options_are_answered_before_heavy_imports() -> None:
    code = (
        "import sys; from gpt2serve import cli\n"
        "assert cli.main(['--store', '/nowhere']) == 2\n"
        "assert not {'litestar', 'onnxruntime', 'uvicorn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_sigterm_during_the_start_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Process 1 has no default action: without a handler the signal would be lost."""

    async def start(*_: object) -> int:
        signal.raise_signal(signal.SIGTERM)
        return 3

    monkeypatch.setattr(cli, "_serve", start)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as good as none, in process 1
    try:
        with pytest.raises(SystemExit) as exit_:
            cli.main(["--store", str(tmp_path)])
        assert exit_.value.code == 0
    finally:
        signal.signal(signal.SIGTERM, before)


def test_as_many_open_files_as_the_system_allows() -> None:
    """In a process of its own, which begins with a small limit."""
    program = (
        "import resource; from gpt2serve.api.serving import allow_open_files;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, 700)); allow_open_files();"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "(700, 700)\n", done.stderr
