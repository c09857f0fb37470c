"""create_app: where its settings come from, what it owns, what it imports."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2serve.app import create_app, service_of
from gpt2serve.errors import EngineClosed, SettingsError
from tests.unit.api_support import assert_problem, send


def test_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GPT2SERVE_STORE", str(tmp_path))
    monkeypatch.setenv("GPT2SERVE_MAX_QUEUE", "7")
    monkeypatch.setenv("GPT2SERVE_MAX_BODY_BYTES", "2MiB")
    service = service_of(create_app())
    assert service.engine.settings.store == str(tmp_path)
    assert service.engine.settings.max_queue == 7
    assert service.settings.max_body_bytes == 2 * 2**20


def test_without_a_store_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPT2SERVE_STORE", raising=False)
    with pytest.raises(SettingsError, match="GPT2SERVE_STORE"):
        create_app()


def test_one_source_of_settings_only(tmp_path: Path) -> None:
    engine = service_of(create_app(tmp_path)).engine
    with pytest.raises(SettingsError, match="one of them"):
        create_app(tmp_path, engine=engine)


def test_its_own_engine_lives_as_long_as_the_app(tmp_path: Path) -> None:
    app = create_app(tmp_path)
    engine = service_of(app).engine

    async def main() -> None:
        async with app.lifespan():
            assert await engine.ping(5)
        assert not await engine.ping(0.1)

    asyncio.run(main())
    with pytest.raises(EngineClosed):
        engine.start()


def test_the_engine_is_there_for_the_app_around(tmp_path: Path) -> None:
    app = create_app(tmp_path)
    assert app.state.engine is service_of(app).engine


def test_a_request_to_an_engine_that_nobody_started(sample_store: Path) -> None:
    # A mounted app whose lifespan nobody runs.
    app = create_app(sample_store)
    body = {"model": "ronald-reagan", "prompt": "My"}
    answer = asyncio.run(send(app, "POST", "/generate", json=body))
    problem = assert_problem(answer, 503, "not_ready")
    assert "lifespan" in problem["detail"]


def test_two_apps_in_one_process_share_nothing(tmp_path: Path) -> None:
    one, other = (service_of(create_app(tmp_path)) for _ in range(2))
    assert one.engine is not other.engine
    assert one.metrics is not other.metrics


def test_import_loads_no_torch() -> None:
    code = (
        "import sys; import gpt2serve.app\n"
        "found = {'torch', 'transformers', 'onnx', 'gpt2export'} & set(sys.modules)\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
