"""A real server process that sends its traces to a real receiver of OTLP over HTTP."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.e2e.server_support import LONG, MODEL, PROMPT, Server, events, eventually

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HOUR = "3600000"
PHASES = ["queue", "prefill", "decode"]


class Collector(http.server.ThreadingHTTPServer):
    """Keeps what it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.bodies: list[bytes] = []
        self.asked: list[tuple[str, str | None]] = []

    @property
    def requests(self) -> list[ExportTraceServiceRequest]:
        return [ExportTraceServiceRequest.FromString(body) for body in list(self.bodies)]

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def root(self, request_id: str) -> Span:
        (span,) = (
            span
            for span in self.spans
            if attributes(span.attributes).get("gpt2serve.request_id") == request_id
        )
        return span

    def children(self, parent: Span) -> list[Span]:
        found = [span for span in self.spans if span.parent_span_id == parent.span_id]
        return sorted(found, key=lambda span: (span.start_time_unix_nano, span.end_time_unix_nano))


class _Receiver(http.server.BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        self.server.asked.append((self.path, self.headers["x-tenant"]))
        self.server.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=me")
        yield server
        server.shutdown()


def attributes(pairs: Any) -> dict[str, Any]:
    """Of protobuf, as Python has them."""
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind)


def test_what_a_collector_gets(
    serve: Callable[..., Server], collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", HOUR)  # so all comes at the end, or never
    server = serve("--traces", "otlp")
    body = {"model": MODEL, "prompt": PROMPT, "seed": 7, "max_new_tokens": 20}
    with server.client() as client:
        caller = {"x-request-id": "whole", "traceparent": f"00-{TRACE}-{PARENT}-01"}
        whole = client.post("/generate", json=body, headers=caller).json()

        streamed = {"x-request-id": "streamed"}
        asked = body | {"stream": True}
        with client.stream("POST", "/generate", json=asked, headers=streamed) as answer:
            list(events(answer.iter_lines()))

        for request_id, wrong in (("unknown", {"model": "nobody"}), ("wrong", {"top_p": 7})):
            client.post("/generate", json=body | wrong, headers={"x-request-id": request_id})

        leaving = {"x-request-id": "leaving"}
        with client.stream(
            "POST", "/generate", json=LONG | {"stream": True}, headers=leaving
        ) as answer:
            next(answer.iter_lines())
        eventually(lambda: server.metric("requests_running") == 0)
    assert collector.bodies == []
    status, log = server.stop()
    assert status == 0

    first = collector.root("whole")
    assert (first.trace_id.hex(), first.parent_span_id.hex()) == (TRACE, PARENT)
    assert (first.name, first.kind) == ("POST /generate", Span.SPAN_KIND_SERVER)
    said = attributes(first.attributes)
    assert said["http.response.status_code"] == 200
    assert said["gen_ai.request.model"] == MODEL
    assert said["gen_ai.usage.input_tokens"] == whole["usage"]["prompt_tokens"]
    assert said["gen_ai.usage.output_tokens"] == whole["usage"]["completion_tokens"]
    assert said["gen_ai.response.finish_reasons"] == [whole["generations"][0]["finish_reason"]]
    phases = collector.children(first)
    assert [span.name for span in phases] == ["load", *PHASES]
    for span, millis in zip(phases, ("load", "queue", "prefill", "decode"), strict=True):
        took = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
        assert took == pytest.approx(whole["timing"][f"{millis}_ms"], abs=0.01)
    assert phases[0].start_time_unix_nano >= first.start_time_unix_nano
    assert phases[-1].end_time_unix_nano <= first.end_time_unix_nano

    second = collector.root("streamed")
    assert second.parent_span_id == b""
    assert attributes(second.attributes)["gen_ai.request.stream"] is True
    assert [span.name for span in collector.children(second)] == PHASES

    for request_id, code, status in (
        ("unknown", "model_not_found", 404),
        ("wrong", "invalid_value", 422),
    ):
        refused = collector.root(request_id)
        said = attributes(refused.attributes)
        assert (said["error.type"], said["http.response.status_code"]) == (code, status)
        assert refused.status.code == Status.STATUS_CODE_UNSET
        assert collector.children(refused) == []

    left = collector.root("leaving")
    assert attributes(left.attributes)["error.type"] == "client_disconnected"
    assert [span.name for span in collector.children(left)] == PHASES

    lines = {line["request_id"]: line for line in log if line["event"] == "generate"}
    assert lines["streamed"]["trace_id"] == second.trace_id.hex()
    (resource,) = {str(r.resource) for q in collector.requests for r in q.resource_spans}
    assert '"gpt2serve"' in resource
    assert set(collector.asked) == {("/v1/traces", "me")}
    assert PROMPT.encode() not in b"".join(collector.bodies)
    assert whole["generations"][0]["text"].encode() not in b"".join(collector.bodies)


def test_a_collector_that_is_away_is_nobodys_problem(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, says nothing
        monkeypatch.setenv(
            "OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}"
        )
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
        server = serve("--traces", "otlp")
        with server.client() as client:
            for _ in range(3):
                answer = client.post(
                    "/generate", json={"model": MODEL, "prompt": PROMPT, "max_new_tokens": 2}
                )
                assert answer.status_code == 200
        status, log = server.stop()
    assert status == 0
    assert [line["event"] for line in log if line["event"] == "generate"] == ["generate"] * 3


def test_what_the_exporter_complains_about_is_in_the_log(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    server = serve("--traces", "otlp")
    with server.client() as client:
        assert client.get("/healthz").status_code == 200
    status, log = server.stop()
    assert status == 0
    assert any(str(line.get("logger")).startswith("opentelemetry.") for line in log)
