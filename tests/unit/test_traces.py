"""Traces of requests: which spans there are, what is in them, and what is not."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id

from gpt2serve import errors
from gpt2serve.api import traces as traces_module
from gpt2serve.api.traces import phases
from gpt2serve.app import service_of
from gpt2serve.engine.events import Timing
from gpt2serve.engine.stream import Delivery
from gpt2serve.errors import SettingsError
from tests.unit.api_support import (
    GOOD,
    PROMPT,
    STEPS,
    TEXT,
    FakeEngine,
    RawClient,
    Served,
    lifespan,
    token,
    with_client,
)

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Traced(Served):
    """An app whose spans stay in memory."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, engine: FakeEngine | None = None, **settings: Any
    ) -> None:
        self.exporter = InMemorySpanExporter()
        monkeypatch.setattr(
            traces_module, "_processor", lambda kind: SimpleSpanProcessor(self.exporter)
        )
        super().__init__(engine, traces="otlp", **settings)

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    @property
    def root(self) -> ReadableSpan:
        (span,) = (span for span in self.spans if span.kind is SpanKind.SERVER)
        return span

    @property
    def children(self) -> list[ReadableSpan]:
        return [span for span in self.spans if span.kind is SpanKind.INTERNAL]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_TRACES_SAMPLER"):
        monkeypatch.delenv(name, raising=False)
    return iter([None])


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Traced:
    return Traced(monkeypatch)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_has_one_span_with_its_phases_below(traced: Traced, stream: bool) -> None:
    answer = traced.generate(stream=stream)
    assert answer.status_code == 200
    root = traced.root
    assert root.name == "POST /generate"
    assert root.status.status_code is StatusCode.UNSET
    assert root.parent is None
    assert attributes(root) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/generate",
        "network.protocol.version": "1.1",
        "url.path": "/generate",
        "url.scheme": "http",
        "gpt2serve.request_id": answer.headers["x-request-id"],
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "gpt2serve",
        "gen_ai.request.model": "me/model",
        "gen_ai.request.stream": stream,
        "gen_ai.response.finish_reasons": ("eos", "eos"),
        "gen_ai.usage.input_tokens": 4,
        "gen_ai.usage.output_tokens": 4,
        "gpt2serve.model_version": "ab" * 8,
    }
    assert [span.name for span in traced.children] == ["load", "queue", "prefill", "decode"]
    for span in traced.children:
        assert span.parent is not None
        assert span.parent.span_id == root.context.span_id
        assert span.context.trace_id == root.context.trace_id


def test_phases_follow_one_another() -> None:
    timing = Timing(queue_ms=1.0, load_ms=20.0, prefill_ms=300.0, decode_ms=4000.0)
    names, begins, ends = zip(*phases(10.0, timing), strict=True)
    assert names == ("load", "queue", "prefill", "decode")
    assert begins == pytest.approx([10.0, 10.02, 10.021, 10.321])
    assert ends == pytest.approx([10.02, 10.021, 10.321, 14.321])


def test_a_phase_that_was_not_has_no_span() -> None:
    timing = Timing(queue_ms=0.0, load_ms=0.0, prefill_ms=1.0, decode_ms=0.0)
    assert [name for name, _, _ in phases(0.0, timing)] == ["prefill"]


def test_spans_begin_and_end_with_the_request(traced: Traced) -> None:
    traced.generate()
    root = traced.root
    assert root.start_time is not None
    assert root.end_time is not None
    for span in traced.children:
        assert root.start_time <= (span.start_time or 0) <= (span.end_time or 0) <= root.end_time


def test_no_words_in_any_span(traced: Traced) -> None:
    traced.generate(details=True)
    traced.generate(stream=True, stop=[TEXT])
    traced.request("GET", "/models", params={"search": PROMPT})
    traced.engine.fails = errors.InvalidRequest("prompt", PROMPT)
    traced.generate()
    traced.engine.fails = RuntimeError(PROMPT)
    traced.generate()
    told = json.dumps([json.loads(span.to_json()) for span in traced.spans])
    assert "/models" in told
    assert PROMPT not in told
    assert "secret" not in told


# -- where a trace comes from, and where it leads ----------------------------------------------


def test_a_request_continues_its_callers_trace(traced: Traced) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
    traced.request("POST", "/generate", json=GOOD, headers=headers)
    root = traced.root
    assert root.parent is not None
    assert format_trace_id(root.context.trace_id) == TRACE
    assert format_span_id(root.parent.span_id) == PARENT
    assert root.context.trace_state["vendor"] == "1"
    assert traced.log[0]["trace_id"] == TRACE


def test_what_the_caller_does_not_sample_is_not_traced(traced: Traced) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    assert traced.request("POST", "/generate", json=GOOD, headers=headers).status_code == 200
    assert traced.spans == []
    assert traced.log[0]["trace_id"] == TRACE


@pytest.mark.parametrize("given", ["", "nonsense", f"00-{'0' * 32}-{PARENT}-01"])
def test_a_wrong_traceparent_begins_a_new_trace(traced: Traced, given: str) -> None:
    traced.request("POST", "/generate", json=GOOD, headers={"traceparent": given})
    assert traced.root.parent is None


def test_an_app_around_ours_has_its_span_above_ours(traced: Traced) -> None:
    with TracerProvider().get_tracer("host").start_as_current_span("host") as host:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        traced.request("POST", "/generate", json=GOOD, headers=headers)
    assert traced.root.parent == host.get_span_context()


def test_the_log_line_names_the_trace(traced: Traced) -> None:
    traced.generate()
    assert traced.log[0]["trace_id"] == format_trace_id(traced.root.context.trace_id)


def test_without_traces_the_log_has_none() -> None:
    served = Served()
    served.generate()
    assert service_of(served.app).traces is None
    assert "trace_id" not in served.log[0]


def test_the_service_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = Traced(monkeypatch)
    traced.request("GET", "/healthz")
    assert traced.root.resource.attributes["service.name"] == "gpt2serve"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    renamed = Traced(monkeypatch)
    renamed.request("GET", "/healthz")
    assert renamed.root.resource.attributes["service.name"] == "mine"


def test_two_apps_keep_their_spans_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = Traced(monkeypatch), Traced(monkeypatch)
    one.generate()
    other.request("GET", "/models")
    assert one.root.name == "POST /generate"
    assert other.root.name == "GET /models"


# -- what goes wrong --------------------------------------------------------------------------


def test_a_refused_request_is_no_error_of_the_server(traced: Traced) -> None:
    traced.engine.fails = errors.ModelNotFound("me/model")
    assert traced.generate().status_code == 404
    assert traced.root.status.status_code is StatusCode.UNSET
    said = attributes(traced.root)
    assert (said["http.response.status_code"], said["error.type"]) == (404, "model_not_found")
    assert traced.children == []


def test_a_failure_is_an_error(traced: Traced) -> None:
    traced.engine.fails = RuntimeError("broken at /some/where")
    assert traced.generate().status_code == 500
    status = traced.root.status
    assert (status.status_code, status.description) == (StatusCode.ERROR, "internal_error")
    assert traced.root.events == ()


def test_a_stream_that_breaks_is_an_error_with_status_200(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [Delivery([token(0, "a")]), Delivery(error=errors.StepFailed("broken"))]
    traced = Traced(monkeypatch, FakeEngine(steps=steps))
    assert traced.generate(stream=True).status_code == 200
    said = attributes(traced.root)
    assert traced.root.status.status_code is StatusCode.ERROR
    assert (said["http.response.status_code"], said["error.type"]) == (200, "generation_failed")
    assert "gen_ai.usage.output_tokens" not in said


def test_a_client_that_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = Traced(monkeypatch, FakeEngine(steps=STEPS, held_from=1))

    async def leave(client: RawClient) -> None:
        await client.until(lambda: bool(client.chunks))
        await client.leave()

    with_client(traced, leave, stream=True)
    assert attributes(traced.root)["error.type"] == "client_disconnected"
    assert traced.root.status.status_code is StatusCode.UNSET
    assert {"prefill", "decode"} <= {span.name for span in traced.children}


def test_other_routes_go_by_their_template(traced: Traced) -> None:
    traced.request("GET", "/models/me/model/info")
    said = attributes(traced.root)
    assert traced.root.name == "GET /models/{owner}/{name}/info"
    assert said["http.route"] == "/models/{owner}/{name}/info"
    assert not [name for name in said if name.startswith("gen_ai.")]


def test_several_prompts_are_told_apart(traced: Traced) -> None:
    body = {"model": "me/model", "prompt": ["a", "b"], "max_tokens": 2}
    assert traced.request("POST", "/v1/completions", json=body).status_code == 200
    indexes = [attributes(span)["gpt2serve.prompt.index"] for span in traced.children]
    assert indexes == [0] * 4 + [1] * 4


# -- the end, and settings --------------------------------------------------------------------


def test_spans_are_flushed_when_the_app_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = Traced(monkeypatch)
    ended = []
    monkeypatch.setattr(traced.exporter, "shutdown", lambda: ended.append(len(traced.spans)))

    async def main() -> None:
        async with lifespan(traced.app):
            client = RawClient(traced.app, GOOD)
            await client.task
            assert ended == []

    asyncio.run(main())
    assert ended == [5]


def test_missing_packages_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "gpt2serve.api.traces")
    monkeypatch.delattr("gpt2serve.api.traces")
    for name in [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SettingsError, match=r"pip install 'gpt2serve\[otel\]'"):
        Served(traces="otlp")


def test_a_wrong_variable_is_a_wrong_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "1")
    with pytest.raises(SettingsError, match=r"traces otlp: .*queue_size"):
        Served(traces="otlp")


@pytest.mark.parametrize("name", ["PROTOCOL", "TRACES_PROTOCOL"])
@pytest.mark.parametrize("protocol", ["grpc", "http/json"])
def test_a_protocol_that_is_not_spoken_is_a_wrong_setting(
    name: str, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", protocol)
    with pytest.raises(SettingsError, match=rf"traces otlp: .*'{protocol}'.*http/protobuf"):
        Served(traces="otlp")
    Served(traces="console")


def test_the_protocol_of_traces_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
    traces = service_of(Served(traces="otlp").app).traces
    assert traces is not None
    traces.close()


def test_the_sdk_is_not_imported_unless_traces_are_wanted(tmp_path: Path) -> None:
    code = (
        "import sys; from gpt2serve import create_app; create_app(sys.argv[1]); "
        "print([name for name in sys.modules if name.startswith("
        "('opentelemetry.sdk', 'opentelemetry.exporter', 'gpt2serve.api.traces'))])"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, check=True).stdout.strip() == b"[]"


def test_console(capsys: pytest.CaptureFixture[str]) -> None:
    Served(traces="console").request("GET", "/healthz")
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert json.loads(line)["name"] == "GET /healthz"
    assert output.out == ""
