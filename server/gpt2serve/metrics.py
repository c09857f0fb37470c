"""Prometheus metrics of one app: its own registry, so that many apps fit in a process.

Counters and histograms are fed as things happen: HTTP requests by the API, everything else by
the engine, whose observer a `Metrics` is. Gauges are read at scrape time, from what engine and
server have noted; a scrape never waits for the engine thread. No label takes a value that a client
can choose.

With `model_labels` N, some counters have the label `model`: the first N models that are used keep
one each until the end, as a label that changed its meaning would spoil every rate; all others
share `other`. The engine only speaks of models that are in its store.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import msgspec
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from gpt2serve.engine.observer import EngineStats, RequestSummary, StepKind

#: Without its charset: litestar adds one to every text, and with two of them Prometheus 3 cannot
#: read the header.
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4.partition("; charset=")[0]

_PREFIX = "gpt2serve_"
_OTHER = "other"
_LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 1)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)

#: Field of `EngineStats` or `ServerStats`: name and description of the gauge.
_GAUGES = {
    "ready": ("ready", "Whether /readyz says that it takes work."),
    "unresponsive": ("engine_unresponsive_seconds", "Since the engine thread took messages."),
    "requests_running": ("requests_running", "Requests that generate now."),
    "requests_waiting": ("requests_waiting", "Requests without a place in a batch yet."),
    "requests_limit": ("requests_limit", "Running and waiting requests, beyond which 429."),
    "sequences_running": ("sequences_running", "Sequences that are decoded now."),
    "kv_cache_used_bytes": ("kv_cache_used_bytes", "Memory taken by keys and values."),
    "kv_cache_limit_bytes": ("kv_cache_limit_bytes", "Memory that keys and values may take."),
    "model_cache_used_bytes": ("model_cache_used_bytes", "Memory taken by loaded models."),
    "model_cache_limit_bytes": ("model_cache_limit_bytes", "Memory that models may take."),
    "models_resident": ("models_resident", "Models in memory."),
    "models_fetching": ("models_fetching", "Models on their way from the store."),
    "leases": ("model_leases", "Requests that use a model or wait for one."),
    "disk_cache_used_bytes": ("disk_cache_used_bytes", "Packages in the disk cache."),
    "disk_cache_limit_bytes": ("disk_cache_limit_bytes", "What the disk cache may hold."),
    "oldest_load_wait": ("oldest_load_wait_seconds", "Age of the oldest unfinished load."),
    "store_reachable": ("store_reachable", "Whether the store answered when last asked."),
    "api_keys_current": (
        "api_keys_last_reload_successful",
        "Whether the file of API keys could be used when it last changed.",
    ),
}


class ServerStats(msgspec.Struct, frozen=True, kw_only=True):
    """The server around the engine, now. `api_keys_current` is None if there are no keys."""

    ready: bool = False
    api_keys_current: bool | None = None


class Metrics:
    """All metrics of one app, and the observer of its engine. Thread-safe."""

    def __init__(self, *, model_labels: int = 0) -> None:
        self._registry = _Registry()
        ProcessCollector(registry=self._registry)
        self._watched = False
        self._models = _ModelLabels(model_labels)
        count, time, by_model = self._counter, self._histogram, self._model_counter
        self._http = count(
            "http_requests", "HTTP requests by route, status and code.", ("route", "status", "code")
        )
        self._http_seconds = time(
            "http_request_duration_seconds", "From head to last byte.", _LONG, ("route",)
        )
        # A label in place of one counter each for success and failure: ratios stay one query.
        self._requests = by_model("requests", "Generation requests that ended.", ("code",))
        self._request_seconds = time("request_duration_seconds", "From submit to end.", _LONG)
        self._queue = time("queue_seconds", "Waiting for a place in the batch.", _SHORT)
        self._load_wait = time("load_wait_seconds", "A request's wait for its model.", _SHORT)
        self._first = time("time_to_first_token_seconds", "From submit to first token.", _SHORT)
        self._token = time("time_per_output_token_seconds", "Between two tokens.", _PER_TOKEN)
        self._prompt_tokens = count("prompt_tokens", "Tokens of prompts.")
        self._output_tokens = by_model("generation_tokens", "Tokens generated.")
        self._generations = count("generations", "Sequences that ended.", ("finish_reason",))
        self._batch = time("batch_size", "Rows of an engine step.", _BATCHES, ("kind",))
        self._step = time("step_seconds", "Time of an engine step.", _SHORT, ("kind",))
        self._hits = by_model("model_cache_hits", "Requests whose model was in memory.")
        self._misses = by_model("model_cache_misses", "Requests whose model was not in memory.")
        self._fetches = by_model("model_fetches", "Packages fetched from the store.", ("outcome",))
        self._fetched_bytes = count("fetched_bytes", "What came of packages from the store.")
        self._loads = by_model("model_loads", "Loads of models.", ("outcome",))
        self._load_seconds = time("model_load_seconds", "Time of a load that succeeded.", _LONG)
        self._packs = count("model_packs", "Models packed after they were loaded.", ("outcome",))
        self._phase_seconds = time(
            "model_load_phase_seconds", "Parts of loads that succeeded.", _LONG, ("phase",)
        )
        self._evictions = by_model("model_evictions", "Models put out of memory.", ("reason",))

    def watch(
        self,
        engine: Callable[[], EngineStats],
        server: Callable[[], ServerStats] = ServerStats,
        **info: str,
    ) -> None:
        """Show the snapshots of engine and server as gauges, and `info`, which never changes, as
        labels. One engine per `Metrics`."""
        if not self._watched:
            self._registry.register(_Gauges(engine, server, info))
            self._watched = True

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self._registry)

    # -- fed by the API -------------------------------------------------------------------

    def on_http_request(self, *, route: str, status: int, code: str, seconds: float) -> None:
        self._http.labels(route, str(status), code).inc()
        self._http_seconds.labels(route).observe(seconds)

    # -- the engine's observer ------------------------------------------------------------

    def on_request_finished(self, summary: RequestSummary) -> None:
        timing, usage = summary.timing, summary.usage
        self._requests.inc(summary.model, summary.error or "ok")
        self._prompt_tokens.inc(usage.prompt_tokens)
        self._output_tokens.inc(summary.model, amount=usage.completion_tokens)
        for reason in summary.finish_reasons:
            self._generations.labels(reason).inc()
        if summary.error is not None:
            return  # the times of what failed half-way would flatter or spoil the histograms
        first_ms = timing.queue_ms + timing.load_ms + timing.prefill_ms
        self._queue.observe(timing.queue_ms / 1e3)
        self._load_wait.observe(timing.load_ms / 1e3)
        self._first.observe(first_ms / 1e3)
        self._request_seconds.observe((first_ms + timing.decode_ms) / 1e3)
        # Prefill makes each sequence's first token, decode the others.
        decoded = usage.completion_tokens / max(1, len(summary.finish_reasons)) - 1
        if decoded > 0:
            self._token.observe(timing.decode_ms / 1e3 / decoded)

    def on_step(self, kind: StepKind, rows: int, seconds: float) -> None:
        self._batch.labels(kind).observe(rows)
        self._step.labels(kind).observe(seconds)

    def on_model_wanted(self, model: str, *, hit: bool) -> None:
        (self._hits if hit else self._misses).inc(model)

    def on_fetch(self, model: str, seconds: float, size: int, *, ok: bool) -> None:
        self._fetches.inc(model, "ok" if ok else "failed")
        self._fetched_bytes.inc(size)
        if ok:
            self._phase_seconds.labels("fetch").observe(seconds)

    def on_load(self, model: str, seconds: float, *, ok: bool) -> None:
        self._loads.inc(model, "ok" if ok else "failed")
        if ok:
            self._load_seconds.observe(seconds)
            self._phase_seconds.labels("map").observe(seconds)

    def on_pack(self, model: str, seconds: float, *, ok: bool) -> None:
        del model  # loads have the label already
        self._packs.labels("ok" if ok else "failed").inc()
        if ok:
            self._phase_seconds.labels("pack").observe(seconds)

    def on_first_run(self, model: str, seconds: float) -> None:
        del model
        self._phase_seconds.labels("first_run").observe(seconds)

    def on_evict(self, model: str, reason: str) -> None:
        self._evictions.inc(model, reason)

    # -- inside ---------------------------------------------------------------------------

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(_PREFIX + name, text, labels, registry=self._registry)

    def _model_counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> _ModelCounter:
        labels = (*labels, "model") if self._models.limit else labels
        return _ModelCounter(self._counter(name, text, labels), self._models)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()
    ) -> Histogram:
        return Histogram(_PREFIX + name, text, labels, registry=self._registry, buckets=buckets)


class _ModelLabels:
    """Which models have a label of their own. Thread-safe."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._known: set[str] = set()
        self._lock = threading.Lock()

    def label(self, model: str) -> str:
        with self._lock:
            if model not in self._known:
                if len(self._known) >= self.limit:
                    return _OTHER
                self._known.add(model)
        return model


class _ModelCounter:
    """A counter that has the label `model`, last, if any model is to have one."""

    def __init__(self, counter: Counter, models: _ModelLabels) -> None:
        self._counter = counter
        self._models = models

    def inc(self, model: str, *labels: str, amount: float = 1) -> None:
        if self._models.limit:
            labels = (*labels, self._models.label(model))
        (self._counter.labels(*labels) if labels else self._counter).inc(amount)


class _Registry(CollectorRegistry):
    """Without the `_created` series, which double the page; the library's own switch is global."""

    def collect(self) -> Iterator[Metric]:
        for metric in super().collect():
            metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
            yield metric


class _Gauges(Collector):
    def __init__(
        self,
        engine: Callable[[], EngineStats],
        server: Callable[[], ServerStats],
        info: dict[str, str],
    ) -> None:
        self._engine = engine
        self._server = server
        self._info = info

    def collect(self) -> Iterator[Metric]:
        values = msgspec.structs.asdict(self._engine()) | msgspec.structs.asdict(self._server())
        for field, (name, text) in _GAUGES.items():
            if values[field] is not None:  # there is no such thing in this engine or server
                yield GaugeMetricFamily(_PREFIX + name, text, value=values[field])
        if self._info:
            yield InfoMetricFamily(_PREFIX.rstrip("_"), "What runs here.", value=self._info)
