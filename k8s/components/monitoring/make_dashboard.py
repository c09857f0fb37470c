"""Writes dashboard.json, Grafana's dashboard of a fleet: `python make_dashboard.py`.

The JSON is what is deployed; this is what is read and changed. A test compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from string import ascii_uppercase
from typing import Any

FILE = Path(__file__).parent / "dashboard.json"

#: What the dashboard's variables leave. `instance` is of replicas, so the router goes without.
REPLICAS = 'namespace=~"$namespace",instance=~"$instance"'
ROUTERS = 'namespace=~"$namespace"'
GENERATING = r'route=~".*/(generate|generate_stream|completions|models/(.owner./)?.name.)"'

_WIDTH = 24
_HEIGHT = 8
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}

Panel = dict[str, Any]
Query = tuple[str, str]


def rate(metric: str, labels: str = "", *, by: str = "", per: str = REPLICAS) -> str:
    """A counter's rate, summed."""
    selector = ",".join(part for part in (per, labels) if part)
    return f"sum{_by(by)} (rate({metric}{{{selector}}}[$__rate_interval]))"


def gauge(metric: str, labels: str = "", *, by: str = "instance", how: str = "sum") -> str:
    selector = ",".join(part for part in (REPLICAS, labels) if part)
    return f"{how}{_by(by)} ({metric}{{{selector}}})"


def router_gauge(metric: str, *, how: str = "sum", by: str = "") -> str:
    return f'{how}{_by(by)} ({metric}{{{ROUTERS},envoy_cluster_name="replicas"}})'


def quantile(q: float, histogram: str, labels: str = "", *, by: str = "") -> str:
    by = f"le, {by}" if by else "le"
    return f"histogram_quantile({q:g}, {rate(histogram + '_bucket', labels, by=by)})"


def quantiles(histogram: str, labels: str = "") -> list[Query]:
    return [(quantile(q, histogram, labels), f"p{100 * q:g}") for q in (0.5, 0.95, 0.99)]


def mean(histogram: str, labels: str = "", *, by: str = "") -> str:
    total = rate(f"{histogram}_sum", labels, by=by)
    return f"{total} / {rate(f'{histogram}_count', labels, by=by)}"


def share(parts: str, whole: str) -> str:
    return f"{parts} / on () group_left () {whole}"


def router_rate(metric: str, *, by: str = "") -> str:
    return rate(f"envoy_cluster_{metric}", 'envoy_cluster_name="replicas"', by=by, per=ROUTERS)


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""


# -- kinds of panels --------------------------------------------------------------------------


def graph(
    title: str, unit: str, *queries: Query, text: str = "", stacked: bool = False, width: int = 8
) -> Panel:
    custom = {
        "fillOpacity": 25 if stacked else 8,
        "lineWidth": 1,
        "showPoints": "never",
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
    }
    return {
        **_panel("timeseries", title, text, queries, width, _HEIGHT),
        "fieldConfig": {"defaults": {"unit": unit, "min": 0, "custom": custom}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def figure(
    title: str, unit: str, query: str, *, text: str = "", steps: tuple[tuple[float, str], ...] = ()
) -> Panel:
    """One number; `steps`: from which value on it has which colour."""
    colours: list[dict[str, Any]] = [{"value": None, "color": "green" if steps else "text"}]
    colours += [{"value": value, "color": color} for value, color in steps]
    defaults = {"unit": unit, "thresholds": {"mode": "absolute", "steps": colours}}
    return {
        **_panel("stat", title, text, [(query, "")], 3, 4),
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {
            "colorMode": "value",
            "graphMode": "area",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        },
    }


#: The column whose value says nothing; its labels are columns.
INFO = "info"


def table(title: str, columns: dict[str, tuple[str, str]], *, text: str = "") -> Panel:
    """A row for each replica; `columns`: heading to query and unit."""
    panel = _panel("table", title, text, [(q, "") for q, _ in columns.values()], _WIDTH, _HEIGHT)
    names = {}
    for target, heading in zip(panel["targets"], columns, strict=True):
        target.update(format="table", instant=True, range=False)
        if heading != INFO:
            names[f"Value #{target['refId']}"] = heading
    overrides = [
        {
            "matcher": {"id": "byName", "options": heading},
            "properties": [{"id": "unit", "value": unit}],
        }
        for heading, (_, unit) in columns.items()
    ]
    return {
        **panel,
        "fieldConfig": {"defaults": {}, "overrides": overrides},
        "options": {"showHeader": True},
        "transformations": [
            {"id": "joinByField", "options": {"byField": "instance", "mode": "outer"}},
            {
                "id": "filterFieldsByName",
                "options": {
                    "include": {"names": ["instance", "version", "device", *names]},
                },
            },
            {"id": "organize", "options": {"renameByName": names}},
        ],
    }


def _panel(
    kind: str, title: str, text: str, queries: Any, width: int, height: int
) -> dict[str, Any]:
    return {
        "type": kind,
        "title": title,
        "description": text,
        "datasource": _SOURCE,
        "gridPos": {"w": width, "h": height},
        "targets": [
            {"refId": letter, "datasource": _SOURCE, "expr": expr, "legendFormat": legend}
            for letter, (expr, legend) in zip(ascii_uppercase, queries, strict=False)
        ],
    }


# -- the dashboard ----------------------------------------------------------------------------

REQUESTS = "gpt2serve_http_requests_total"
HITS, MISSES = "gpt2serve_model_cache_hits_total", "gpt2serve_model_cache_misses_total"
FIRST = "gpt2serve_time_to_first_token_seconds"
NAMED, REFUSED = 'model!=""', 'status="429"'
SLO_ERRORS, SLO_LATE = "namespace:gpt2serve_errors", "namespace:gpt2serve_late_first_tokens"


def hit_ratio(by: str = "") -> str:
    hits, misses = rate(HITS, by=by), rate(MISSES, by=by)
    return f"{hits} / ({hits} + {misses})"


def budget_left(bad: str, all_of_them: str, objective: float) -> str:
    """What is left of 30 days' failures."""

    def total(record: str) -> str:
        return f"sum (sum_over_time({record}:rate5m{{{ROUTERS}}}[30d]))"

    return f"1 - {total(bad)} / {total(all_of_them)} / {1 - objective:g}"


ROWS: dict[str, list[Panel]] = {
    "At a glance": [
        figure(
            "Replicas that are ready",
            "short",
            gauge("gpt2serve_ready", by=""),
            text="As /readyz says.",
        ),
        figure("Requests that generate", "reqps", rate(REQUESTS, GENERATING)),
        figure(
            "Tokens generated", "short", rate("gpt2serve_generation_tokens_total"), text="A second."
        ),
        figure(
            "First token, p95",
            "s",
            quantile(0.95, FIRST),
            steps=((0.5, "orange"), (1, "red")),
        ),
        figure(
            "Models found in memory",
            "percentunit",
            hit_ratio(),
            text="Of the requests that were admitted.",
        ),
        figure("Requests that wait", "short", gauge("gpt2serve_requests_waiting", by="")),
        figure(
            "Error budget left",
            "percentunit",
            budget_left(SLO_ERRORS, "namespace:gpt2serve_requests", 0.999),
            text="99.9 % of the requests of 30 days are to end without a fault of ours. "
            "Of all replicas, whichever are chosen above.",
        ),
        figure(
            "Alerts that fire",
            "short",
            'count(ALERTS{alertname=~"Gpt2serve.*",alertstate="firing"}) or vector(0)',
            text="docs/operations.md has what to do.",
            steps=((1, "red"),),
        ),
    ],
    "Traffic": [
        graph(
            "Requests by route",
            "reqps",
            (rate(REQUESTS, GENERATING, by="route"), "{{route}}"),
            stacked=True,
        ),
        graph(
            "Requests by replica",
            "reqps",
            (rate(REQUESTS, GENERATING, by="instance"), "{{instance}}"),
            stacked=True,
        ),
        graph(
            "Tokens a second",
            "short",
            (rate("gpt2serve_generation_tokens_total"), "generated"),
            (rate("gpt2serve_prompt_tokens_total"), "of prompts"),
        ),
        graph(
            "How sequences end",
            "short",
            (rate("gpt2serve_generations_total", by="finish_reason"), "{{finish_reason}}"),
            text="A second.",
            stacked=True,
        ),
        graph(
            "Requests by code",
            "reqps",
            (rate("gpt2serve_requests_total", by="code"), "{{code}}"),
            text="Of the requests that reached an engine.",
            stacked=True,
        ),
        graph(
            "The ten busiest models",
            "reqps",
            (
                f"topk(10, {rate('gpt2serve_requests_total', NAMED, by='model')})",
                "{{model}}",
            ),
            text="Only with --model-metrics N, and only the first N models that were used.",
        ),
    ],
    "Latency": [
        graph(
            "First token",
            "s",
            *quantiles(FIRST),
            text="From when a request was admitted: waiting, loading, reading the prompt.",
        ),
        graph("Between tokens", "s", *quantiles("gpt2serve_time_per_output_token_seconds")),
        graph(
            "Whole request",
            "s",
            *quantiles("gpt2serve_request_duration_seconds"),
            text="As long as it has tokens: compare like with like.",
        ),
        graph(
            "First token by replica, p95",
            "s",
            (quantile(0.95, FIRST, by="instance"), "{{instance}}"),
        ),
        graph(
            "What a first token waits for, mean",
            "s",
            (mean("gpt2serve_load_wait_seconds"), "its model"),
            (mean("gpt2serve_queue_seconds"), "a place in the batch"),
            (mean(FIRST), "all, with the prompt's prefill"),
        ),
        graph(
            "HTTP by route, p95",
            "s",
            (
                quantile(0.95, "gpt2serve_http_request_duration_seconds", by="route"),
                "{{route}}",
            ),
            text="From the request's head to the answer's last byte.",
        ),
    ],
    "Queue and batches": [
        graph(
            "Running and waiting",
            "short",
            (gauge("gpt2serve_requests_running", by=""), "running"),
            (gauge("gpt2serve_requests_waiting", by=""), "waiting"),
            (gauge("gpt2serve_requests_limit", by=""), "limit, then 429"),
        ),
        graph("Time in the queue", "s", *quantiles("gpt2serve_queue_seconds")),
        graph(
            "Waiting by replica",
            "short",
            (gauge("gpt2serve_requests_waiting"), "{{instance}}"),
            text="One that waits alone has a hot model.",
        ),
        graph(
            "Batch size, mean",
            "short",
            (mean("gpt2serve_batch_size", by="kind"), "{{kind}}"),
            text="Sequences that are computed in one step.",
        ),
        graph(
            "Sequences",
            "short",
            (gauge("gpt2serve_sequences_running"), "{{instance}}"),
            stacked=True,
        ),
        graph(
            "Step, p95",
            "s",
            (quantile(0.95, "gpt2serve_step_seconds", by="kind"), "{{kind}}"),
        ),
    ],
    "Models in memory": [
        graph(
            "Requests whose model was in memory",
            "percentunit",
            (hit_ratio(), "all"),
            (hit_ratio("instance"), "{{instance}}"),
        ),
        graph(
            "Loads",
            "ops",
            (rate("gpt2serve_model_loads_total", by="outcome"), "{{outcome}}"),
            (rate("gpt2serve_model_packs_total", by="outcome"), "packed: {{outcome}}"),
        ),
        graph(
            "Evictions by reason",
            "ops",
            (rate("gpt2serve_model_evictions_total", by="reason"), "{{reason}}"),
            text="`room`: another model needed its memory.",
            stacked=True,
        ),
        graph(
            "Time of a load",
            "s",
            *quantiles("gpt2serve_model_load_seconds"),
            text="Without its fetch.",
        ),
        graph(
            "Parts of a load, mean",
            "s",
            (mean("gpt2serve_model_load_phase_seconds", by="phase"), "{{phase}}"),
        ),
        graph(
            "Oldest load that has not ended",
            "s",
            (gauge("gpt2serve_oldest_load_wait_seconds", how="max"), "{{instance}}"),
        ),
        graph(
            "Memory of models",
            "bytes",
            (gauge("gpt2serve_model_cache_used_bytes"), "{{instance}}"),
            (gauge("gpt2serve_model_cache_limit_bytes", by="", how="max"), "limit"),
        ),
        graph(
            "Models",
            "short",
            (gauge("gpt2serve_models_resident"), "{{instance}}"),
            (gauge("gpt2serve_model_leases", by=""), "requests that use or want one"),
        ),
        graph(
            "Keys and values",
            "bytes",
            (gauge("gpt2serve_kv_cache_used_bytes"), "{{instance}}"),
            (gauge("gpt2serve_kv_cache_limit_bytes", by="", how="max"), "limit"),
        ),
    ],
    "Store and disk cache": [
        graph(
            "Disk cache",
            "bytes",
            (gauge("gpt2serve_disk_cache_used_bytes"), "{{instance}}"),
            (gauge("gpt2serve_disk_cache_limit_bytes", by="", how="max"), "limit"),
            text="Replicas that share a cache show the same one. Only of stores at a URL.",
        ),
        graph(
            "Fetches",
            "ops",
            (rate("gpt2serve_model_fetches_total", by="outcome"), "{{outcome}}"),
            text="Packages that came from the store.",
        ),
        graph(
            "Fetched", "Bps", (rate("gpt2serve_fetched_bytes_total", by="instance"), "{{instance}}")
        ),
        graph("Models on their way", "short", (gauge("gpt2serve_models_fetching"), "{{instance}}")),
        graph(
            "Replicas that reach the store",
            "short",
            (gauge("gpt2serve_store_reachable", by=""), "replicas"),
        ),
    ],
    "Errors": [
        graph(
            "Answers that are not ok",
            "reqps",
            (
                rate(REQUESTS, 'route!~".*/(healthz|readyz|health)",code!="ok"', by="status, code"),
                "{{status}} {{code}}",
            ),
            text="By the code of the problem document. A status of 200: a stream that broke off.",
            stacked=True,
        ),
        graph(
            "Requests refused",
            "percentunit",
            (
                share(rate(REQUESTS, REFUSED, by="code"), rate(REQUESTS, GENERATING)),
                "{{code}}",
            ),
            text="429: full queues, or keys that have used up their rate.",
        ),
        graph(
            "How fast the budgets burn",
            "none",
            *(
                (f"max({bad}:ratio{window}{{{ROUTERS}}}) / {budget:g}", f"{what}, {window}")
                for bad, budget, what in ((SLO_ERRORS, 0.001, "errors"), (SLO_LATE, 0.01, "late"))
                for window in ("1h", "6h", "3d")
            ),
            text="1 uses up 30 days' budget in 30 days, 14.4 in two days.",
        ),
    ],
    "Replicas": [
        table(
            "Replicas",
            {
                INFO: (gauge("gpt2serve_info", by="instance, version, device"), "short"),
                "ready": (gauge("gpt2serve_ready"), "short"),
                "up for": (
                    f"time() - {gauge('process_start_time_seconds', how='max')}",
                    "s",
                ),
                "memory": (gauge("process_resident_memory_bytes"), "bytes"),
                "models": (gauge("gpt2serve_models_resident"), "short"),
                "keys as in the file": (
                    gauge("gpt2serve_api_keys_last_reload_successful"),
                    "short",
                ),
            },
        ),
        graph("Resident memory", "bytes", (gauge("process_resident_memory_bytes"), "{{instance}}")),
        graph(
            "Processors",
            "short",
            (rate("process_cpu_seconds_total", by="instance"), "{{instance}}"),
            text="Seconds of computing in a second.",
        ),
        graph(
            "Engine thread does not look for messages",
            "s",
            (gauge("gpt2serve_engine_unresponsive_seconds", how="max"), "{{instance}}"),
            text="As long as a step while it works. What grows is stuck.",
        ),
        graph(
            "Open files",
            "short",
            (gauge("process_open_fds"), "{{instance}}"),
            (gauge("process_max_fds", by="", how="min"), "limit"),
        ),
        graph(
            "Share of the requests",
            "percentunit",
            (
                share(rate(REQUESTS, GENERATING, by="instance"), rate(REQUESTS, GENERATING)),
                "{{instance}}",
            ),
            text="Models are where hashing puts them: with few, or hot ones, shares differ.",
            stacked=True,
        ),
    ],
    "Router": [
        graph(
            "Answers by class",
            "reqps",
            (
                rate(
                    "envoy_http_downstream_rq_xx",
                    'envoy_http_conn_manager_prefix="gpt2serve"',
                    by="envoy_response_code_class",
                    per=ROUTERS,
                ),
                "{{envoy_response_code_class}}xx",
            ),
            stacked=True,
        ),
        graph(
            "Whole answer, as the router saw it",
            "ms",
            *(
                (
                    f"histogram_quantile({q:g}, "
                    + rate(
                        "envoy_http_downstream_rq_time_bucket",
                        'envoy_http_conn_manager_prefix="gpt2serve"',
                        by="le",
                        per=ROUTERS,
                    )
                    + ")",
                    f"p{100 * q:g}",
                )
                for q in (0.5, 0.95, 0.99)
            ),
        ),
        graph(
            "Replicas it knows",
            "short",
            (router_gauge("envoy_cluster_membership_healthy", how="min"), "that take requests"),
            (router_gauge("envoy_cluster_membership_total", how="max"), "all"),
            (
                router_gauge("envoy_cluster_outlier_detection_ejections_active", how="max"),
                "ejected: connections fail",
            ),
            text="The least and the most of all routers.",
        ),
        graph(
            "Sent again",
            "reqps",
            (router_rate("upstream_rq_retry"), "sent to another replica"),
            (router_rate("upstream_rq_retry_success"), "with success"),
            (router_rate("upstream_rq_retry_limit_exceeded"), "given up"),
            text="Only what no replica had begun to work on.",
        ),
        graph(
            "Requests that reached no replica, or lost it",
            "reqps",
            (router_rate("upstream_cx_connect_fail"), "no connection"),
            (router_rate("upstream_cx_none_healthy"), "no replica"),
            (router_rate("upstream_rq_rx_reset"), "broken off"),
        ),
        graph(
            "Requests on their way",
            "short",
            (router_gauge("envoy_cluster_upstream_rq_active", by="instance"), "{{instance}}"),
            stacked=True,
        ),
        graph(
            "Memory of the router",
            "bytes",
            (f"sum by (instance) (envoy_server_memory_allocated{{{ROUTERS}}})", "{{instance}}"),
        ),
    ],
}


def variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        # Also what has no such label: a Prometheus outside of Kubernetes gives no namespace.
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def placed() -> Iterator[Panel]:
    """All panels with their places, from left to right and from top to bottom."""
    ids, y = count(1), 0
    for title, panels in ROWS.items():
        yield {
            "type": "row",
            "title": title,
            "id": next(ids),
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": y, "w": _WIDTH, "h": 1},
        }
        x, y, height = 0, y + 1, 0
        for panel in panels:
            place = panel["gridPos"]
            if x + place["w"] > _WIDTH:
                x, y = 0, y + height
            yield {**panel, "id": next(ids), "gridPos": {"x": x, "y": y, **place}}
            x, height = x + place["w"], place["h"]
        y += height


def dashboard() -> dict[str, Any]:
    return {
        "uid": "gpt2serve",
        "title": "gpt2serve",
        "description": "A fleet of gpt2serve and its router. docs/observability.md",
        "tags": ["gpt2serve"],
        "schemaVersion": 41,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Prometheus",
                    "type": "datasource",
                    "query": "prometheus",
                    "refresh": 1,
                },
                variable("namespace", "Namespace", "label_values(gpt2serve_info, namespace)"),
                variable(
                    "instance",
                    "Replica",
                    'label_values(gpt2serve_info{namespace=~"$namespace"}, instance)',
                ),
            ]
        },
        "annotations": {"list": []},
        "links": [],
        "panels": list(placed()),
    }


def text() -> str:
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
