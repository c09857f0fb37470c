"""Traces of requests: the only module that imports OpenTelemetry, and only when they are wanted.

A request's spans are made when it has ended, from the times that were noted on the way, so nothing
is done for them while it runs. They hold names and numbers, never a prompt, a text or a query.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from litestar.datastructures import Headers
from opentelemetry.context import Context, get_current
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SimpleSpanProcessor,
)
from opentelemetry.trace import (
    Span,
    SpanKind,
    Status,
    StatusCode,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gpt2serve.api.exchange import Exchange
from gpt2serve.api.version import version
from gpt2serve.engine.events import Timing
from gpt2serve.settings import OTLP_PROTOCOL, otlp_protocol

#: At the end, spans that are not sent yet have this many seconds; a collector may be away.
FLUSH_SECONDS = 5.0

_NAME = "gpt2serve"
_UNKNOWN_SERVICE = "unknown_service"


class Traces:
    """Spans of one app, with a tracer provider of its own: nothing global is set.

    Endpoint, headers, the service's name, sampling and batches come from the `OTEL_` variables
    that every SDK reads. Raises `ValueError` if one of them is wrong.
    """

    def __init__(self, kind: Literal["otlp", "console"]) -> None:
        self._provider = TracerProvider(resource=_resource())
        self._provider.add_span_processor(_processor(kind))
        self._tracer = self._provider.get_tracer(_NAME, version())
        self._propagator = TraceContextTextMapPropagator()

    def record(self, scope: Any, exchange: Exchange, route: str, *, generates: bool) -> str:
        """Make the spans of an exchange that ends now. Returns the trace's id."""
        clock = _Clock(time.time_ns(), time.perf_counter())
        span = self._tracer.start_span(
            f"{scope['method']} {route}",
            self._context(scope),
            SpanKind.SERVER,
            _attributes(scope, exchange, route) | (_gen_ai(exchange) if generates else {}),
            start_time=clock.at(exchange.begun),
        )
        if span.is_recording():
            if exchange.error is not None or exchange.status >= 500:
                span.set_status(Status(StatusCode.ERROR, exchange.code))
            self._record_phases(span, exchange, clock)
        span.end(clock.now_ns)
        return f"{span.get_span_context().trace_id:032x}"

    def _context(self, scope: Any) -> Context:
        """With the span above ours: that of an app around this one, else that of the caller."""
        around = get_current()
        if get_current_span(around).get_span_context().is_valid:
            return around
        return self._propagator.extract(Headers.from_scope(scope))

    def _record_phases(self, parent: Span, exchange: Exchange, clock: _Clock) -> None:
        context = set_span_in_context(parent)
        several = len(exchange.requests) > 1
        for index, (submitted, timing) in enumerate(exchange.requests):
            attributes = {"gpt2serve.prompt.index": index} if several else None
            for name, begin, end in phases(submitted, timing()):
                child = self._tracer.start_span(
                    name, context, attributes=attributes, start_time=clock.at(begin)
                )
                child.end(clock.at(end))

    def close(self) -> None:
        """Send what is left, if that can be done soon. Blocks for `FLUSH_SECONDS` at most."""
        closing = threading.Thread(
            target=self._provider.shutdown, name="gpt2serve-traces", daemon=True
        )
        closing.start()
        closing.join(FLUSH_SECONDS)


class _Clock(NamedTuple):
    """Unix time of moments on the clock of `time.perf_counter`, which never jumps."""

    now_ns: int
    now: float

    def at(self, moment: float) -> int:
        return min(self.now_ns, self.now_ns - round((self.now - moment) * 1e9))


def phases(submitted: float, timing: Timing) -> Iterator[tuple[str, float, float]]:
    """Name, begin and end of what an engine's request went through, one after the other."""
    begin = submitted
    for name, milliseconds in (
        ("load", timing.load_ms),
        ("queue", timing.queue_ms),
        ("prefill", timing.prefill_ms),
        ("decode", timing.decode_ms),
    ):
        if milliseconds > 0:
            end = begin + milliseconds / 1e3
            yield name, begin, end
            begin = end


def _attributes(scope: Any, exchange: Exchange, route: str) -> dict[str, Any]:
    """As the semantic conventions for HTTP servers have them. The query may hold anything."""
    attributes = {
        "http.request.method": scope["method"],
        "http.response.status_code": exchange.status,
        "http.route": route,
        "network.protocol.version": scope["http_version"],
        "url.path": scope["path"],
        "url.scheme": scope["scheme"],
        "gpt2serve.request_id": exchange.request_id,
    }
    if exchange.caller.name:
        attributes["gpt2serve.key"] = exchange.caller.name
    if exchange.code != "ok":
        attributes["error.type"] = exchange.code
    return attributes


def _gen_ai(exchange: Exchange) -> dict[str, Any]:
    """As the semantic conventions for generative AI have them, as far as it is known."""
    numbers = exchange.numbers
    known = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": _NAME,
        "gen_ai.request.model": exchange.model,
        "gen_ai.request.stream": exchange.stream,
        "gen_ai.response.finish_reasons": exchange.finish_reasons or None,
        "gen_ai.usage.input_tokens": numbers.get("prompt_tokens"),
        "gen_ai.usage.output_tokens": numbers.get("completion_tokens"),
        "gpt2serve.model_version": exchange.model_version,
    }
    return {name: value for name, value in known.items() if value is not None}


def _resource() -> Resource:
    """What the `OTEL_` variables say of this service; its name is ours if they give none."""
    resource = Resource.create({"service.version": version()})
    if str(resource.attributes["service.name"]).startswith(_UNKNOWN_SERVICE):
        resource = resource.merge(Resource({"service.name": _NAME}))
    return resource


def _processor(kind: Literal["otlp", "console"]) -> SpanProcessor:
    if kind == "otlp":
        # The exporter does not look, and would send to a port that speaks something else.
        if (protocol := otlp_protocol()) != OTLP_PROTOCOL:
            raise ValueError(
                f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}; spans are sent with {OTLP_PROTOCOL} "
                "only, mostly to port 4318."
            )
        # In a thread of its own, which drops spans when it cannot get rid of them.
        return BatchSpanProcessor(OTLPSpanExporter())
    return SimpleSpanProcessor(
        # Not where the log is, so that either can be read alone.
        ConsoleSpanExporter(out=sys.stderr, formatter=lambda span: f"{span.to_json(indent=None)}\n")
    )
