"""The alerts: in which situations they fire and in which not, by Prometheus' own `promtool`.

Every case is a healthy fleet of two replicas and a router with some series changed, and says all
that fires then.
"""

from __future__ import annotations

import copy
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.monitoring import Rule, alerts, groups
from tests.cluster.programs import program

pytestmark = pytest.mark.cluster

MINUTE = 1
HOUR = 60
DAY = 24 * HOUR

OK = 'gpt2serve_http_requests_total{@a,route="/generate",status="200",code="ok"}'
FAILED = 'gpt2serve_http_requests_total{@a,route="/v1/completions",status="500",code="x"}'
FIRST = "gpt2serve_time_to_first_token_seconds"
IN_TIME = FIRST + '_bucket{@a,le="1.0"}'
HITS, MISSES = "gpt2serve_model_cache_hits_total{@a}", "gpt2serve_model_cache_misses_total{@a}"
EVICTED = 'gpt2serve_model_evictions_total{@a,reason="room"}'
LOADED = 'gpt2serve_model_loads_total{@a,outcome="ok"}'
LOAD_FAILED = 'gpt2serve_model_loads_total{@a,outcome="failed"}'
FETCHED = 'gpt2serve_model_fetches_total{@a,outcome="ok"}'
FETCH_FAILED = 'gpt2serve_model_fetches_total{@a,outcome="failed"}'
DISK = "gpt2serve_disk_cache_used_bytes{@a}"
READY, READY_B = "gpt2serve_ready{@a}", "gpt2serve_ready{@b}"
WAITING = "gpt2serve_requests_waiting{@a}"
STARTED = "process_start_time_seconds{@a}"
UP, UP_ROUTER = "up{@a}", "up{@router}"
STUCK = "gpt2serve_engine_unresponsive_seconds{@a}"
LOADING = "gpt2serve_oldest_load_wait_seconds{@a}"
KEYS = "gpt2serve_api_keys_last_reload_successful{@a}"
STORE = "gpt2serve_store_reachable{@a}"
ROUTED = 'envoy_http_downstream_rq_xx{@router,envoy_http_conn_manager_prefix="gpt2serve",'
ROUTED += 'envoy_response_code_class="'
HEALTHY = 'envoy_cluster_membership_healthy{@router,envoy_cluster_name="replicas"}'

LABELS = {
    "@a": 'job="gpt2serve",namespace="gpt2serve",instance="a"',
    "@b": 'job="gpt2serve",namespace="gpt2serve",instance="b"',
    "@router": 'job="gpt2serve-router",namespace="gpt2serve",instance="router"',
}

#: A value a minute, as promtool writes them: from a value in steps, so many times.
Values = str
ALWAYS = 10_000


def steady(value: float) -> Values:
    return f"{value}x{ALWAYS}"


def each_minute(count: float) -> Values:
    return f"0+{count}x{ALWAYS}"


NORMAL: dict[str, Values] = {
    OK: each_minute(600),
    FIRST + "_count{@a}": each_minute(600),
    IN_TIME: each_minute(599),
    HITS: each_minute(590),
    MISSES: each_minute(10),
    EVICTED: each_minute(5),
    LOADED: each_minute(10),
    FETCHED: each_minute(1),
    # Full, as it is meant to be.
    DISK: steady(99),
    "gpt2serve_disk_cache_limit_bytes{@a}": steady(100),
    READY: steady(1),
    READY_B: steady(1),
    WAITING: steady(3),
    "gpt2serve_requests_limit{@a}": steady(256),
    STARTED: steady(1000),
    UP: steady(1),
    "up{@b}": steady(1),
    UP_ROUTER: steady(1),
    STUCK: steady(0.05),
    LOADING: steady(0.02),
    KEYS: steady(1),
    STORE: steady(1),
    ROUTED + '2"}': each_minute(600),
    ROUTED + '5"}': each_minute(0),
    HEALTHY: steady(2),
}


@dataclass(frozen=True)
class Case:
    name: str
    #: What differs from `NORMAL`; None if there is no such series.
    changes: dict[str, Values | None]
    #: Minutes after the beginning.
    at: int
    #: "name severity" of all that fires then.
    firing: set[str] = field(default_factory=set)


ERRORS, SLOW = "Gpt2serveErrorBudgetBurn", "Gpt2serveFirstTokenSlow"
CRITICAL, WARNING = " critical", " warning"
#: Three quiet days, then as much each minute.
AFTER_DAYS = "0x{0} 0+{1}x{0}"
OTHER = "gpt2serve_http_requests_total{{@a,route={route},status={status},code={code}}}"


def other(route: str, status: int, code: str) -> str:
    return OTHER.format(route=f'"{route}"', status=f'"{status}"', code=f'"{code}"')


CASES = [
    Case("nothing is wrong", {}, 3 * DAY),
    # -- objectives: a month's budget is 0.1 % of 600 requests a minute
    Case(
        "one request in twenty fails, for half an hour after quiet days",
        {FAILED: AFTER_DAYS.format(3 * DAY, 30)},
        3 * DAY + 30,
        {ERRORS + CRITICAL},
    ),
    Case(
        "it was over an hour ago",
        {FAILED: f"0x{3 * DAY} 0+30x20 600x{DAY}"},
        3 * DAY + 90,
    ),
    Case(
        "one in a hundred, for four hours",
        {FAILED: AFTER_DAYS.format(3 * DAY, 6)},
        3 * DAY + 4 * HOUR,
        {ERRORS + CRITICAL},
    ),
    Case("two in a thousand, for days", {FAILED: each_minute(1.2)}, 3 * DAY, {ERRORS + WARNING}),
    Case("one in two thousand, for days", {FAILED: each_minute(0.3)}, 3 * DAY),
    Case(
        "a stream that breaks off is an error",
        {other("/models/{owner}/{name}", 200, "generation_failed"): each_minute(60)},
        2 * HOUR,
        {ERRORS + CRITICAL, ERRORS + WARNING},
    ),
    Case(
        "few requests, and two of them failed",
        {OK: each_minute(0.5), FAILED: f"0x{3 * DAY} 1 2x{DAY}"},
        3 * DAY + 5,
    ),
    Case(
        "what is not our fault, or is done by another replica",
        {
            other("/generate", 404, "model_not_found"): each_minute(100),
            other("/generate", 499, "client_disconnected"): each_minute(100),
            other("/generate", 200, "client_disconnected"): each_minute(100),
            other("/generate", 503, "draining"): each_minute(100),
            other("/readyz", 503, "not_ready"): each_minute(100),
            other("/admin/models/{id}/load", 503, "model_load_failed"): each_minute(100),
        },
        2 * HOUR,
    ),
    Case(
        "a fifth of the first tokens is late, for an hour after quiet days",
        {IN_TIME: f"0+599x{3 * DAY} {599 * 3 * DAY}+480x{DAY}"},
        3 * DAY + HOUR,
        {SLOW + CRITICAL},
    ),
    Case("two in a hundred, for days", {IN_TIME: each_minute(588)}, 3 * DAY, {SLOW + WARNING}),
    # -- capacity
    Case("a long queue", {WAITING: steady(40)}, 20, {"Gpt2serveQueueGrowing warning"}),
    Case("a queue that empties now and then", {WAITING: "40x5 0 40x5 0 40x5 0 40x5"}, 20),
    Case(
        "full queues",
        {other("/generate", 429, "overloaded"): each_minute(60)},
        30,
        {"Gpt2serveRefusing warning"},
    ),
    Case("keys that used up their rate", {other("/generate", 429, "rate_limited"): "0+99x90"}, 60),
    Case(
        "models push each other out",
        {HITS: each_minute(100), MISSES: each_minute(500), EVICTED: each_minute(490)},
        90,
        {"Gpt2serveCacheThrash warning"},
    ),
    Case(
        "models go because they are old",
        {EVICTED: each_minute(0), EVICTED.replace("room", "ttl"): each_minute(490)},
        90,
    ),
    Case(
        "what is loaded is fetched first",
        {FETCHED: each_minute(9)},
        90,
        {"Gpt2serveDiskCacheFull warning"},
    ),
    Case("the disk cache fills", {FETCHED: each_minute(9), DISK: steady(50)}, 90),
    Case("hardly anything is loaded", {LOADED: "0x30 1x90", FETCHED: "0x30 1x90"}, 90),
    # -- replicas
    Case(
        "none is ready",
        {READY: "1x5 0x100", READY_B: "1x5 0x100"},
        10,
        {"Gpt2serveNoReplicaReady critical"},
    ),
    Case(
        "Prometheus knows none",
        {READY: None, READY_B: None, UP: None, "up{@b}": None},
        10,
        {"Gpt2serveNoReplicaReady critical"},
    ),
    Case("one starts", {READY_B: "0x8 1x100"}, 10),
    Case("one is not ready", {READY_B: steady(0)}, 15, {"Gpt2serveReplicaNotReady warning"}),
    Case(
        "one does not answer",
        {UP: "1x5 0x100", READY: "1x5 _x100", HEALTHY: "2x5 1x100"},
        15,
        {"Gpt2serveReplicaDown warning"},
    ),
    Case("one is gone", {READY_B: "1x5 stale", "up{@b}": "1x5 stale", HEALTHY: "2x5 1x90"}, 15),
    Case(
        "one starts again and again",
        {STARTED: "1x5 2x5 3x5 4x90"},
        22,
        {"Gpt2serveReplicaRestarting warning"},
    ),
    Case("one was started twice", {STARTED: "1x5 2x5 3x90"}, 22),
    Case(
        "the engine's thread hangs",
        {STUCK: "0+60x100"},
        5,
        {"Gpt2serveEngineStuck critical"},
    ),
    Case("a long step", {STUCK: "0x5 8 0x90"}, 6),
    Case("a load hangs", {LOADING: "0+60x100"}, 5, {"Gpt2serveLoaderStuck critical"}),
    Case("a package is fetched", {LOADING: "0+50x2 0x90"}, 5),
    Case("a broken file of keys", {KEYS: "1 0x100"}, 10, {"Gpt2serveKeysNotReloaded warning"}),
    # -- the store
    Case("the store is away", {STORE: "1 0x100"}, 10, {"Gpt2serveStoreUnreachable warning"}),
    Case("for a moment", {STORE: "1 0x2 1x100"}, 10),
    Case("loads fail", {LOAD_FAILED: each_minute(5)}, 60, {"Gpt2serveLoadsFailing warning"}),
    Case("fetches fail", {FETCH_FAILED: each_minute(5)}, 60, {"Gpt2serveLoadsFailing warning"}),
    Case("one load in twenty fails", {LOAD_FAILED: each_minute(0.5)}, 60),
    # -- the router
    Case(
        "the router finds nobody",
        {HEALTHY: "2x5 0x100"},
        9,
        {"Gpt2serveRouterNoReplica critical"},
    ),
    Case(
        "the router leaves one out",
        {HEALTHY: "2x5 1x100"},
        20,
        {"Gpt2serveRouterMissesReplicas warning"},
    ),
    Case("and takes it again", {HEALTHY: "2x5 1x8 2x100"}, 20),
    Case(
        "clients get errors that no replica knows of",
        {ROUTED + '5"}': each_minute(30)},
        15,
        {"Gpt2serveRouterErrors critical"},
    ),
    Case("very few", {ROUTED + '5"}': each_minute(3)}, 15),
    Case("a router is down", {UP_ROUTER: "1x5 0x90"}, 15, {"Gpt2serveRouterDown warning"}),
]


def promtool(folder: Path, cases: list[Case], rules: list[dict[str, Any]]) -> str:
    """What `promtool test rules` finds wrong; nothing if all is as the cases say."""
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": rules}))
    # Long cases are looked at less often, or they would take a minute each.
    files = []
    for name, step in (("short", 1), ("long", 5)):
        some = [case for case in cases if (case.at > DAY) == (name == "long")]
        file = folder / f"{name}.yaml"
        document = {
            "rule_files": ["rules.yaml"],
            "evaluation_interval": f"{step}m",
            "tests": [_test(case) for case in some],
        }
        file.write_text(yaml.safe_dump(document))
        files += [str(file)] if some else []
    done = subprocess.run(
        [program("promtool"), "test", "rules", *files], capture_output=True, text=True, check=False
    )
    found = done.stdout + done.stderr
    assert (done.returncode == 0) == ("FAILED" not in found), found
    return found if done.returncode else ""


def _test(case: Case) -> dict[str, Any]:
    series = {name: values for name, values in (NORMAL | case.changes).items() if values}
    fired = (name.split() for name in sorted(case.firing))
    return {
        "name": case.name,
        "interval": "1m",
        "input_series": [
            {"series": _labelled(name), "values": _cut(values, case.at)}
            for name, values in series.items()
        ],
        "promql_expr_test": [
            {
                "expr": 'max by (alertname, severity) (ALERTS{alertstate="firing"})',
                "eval_time": f"{case.at}m",
                "exp_samples": [
                    {"labels": f'{{alertname="{name}",severity="{severity}"}}', "value": 1}
                    for name, severity in fired
                ],
            }
        ],
    }


def _labelled(name: str) -> str:
    for short, labels in LABELS.items():
        name = name.replace(short, labels)
    return name


def _cut(values: Values, minutes: int) -> Values:
    """No longer than needed: promtool computes to the end of the longest series."""
    return values.replace(f"x{ALWAYS}", f"x{minutes}")


def changed(expression: str | None) -> list[tuple[Rule, list[dict[str, Any]]]]:
    """For each alert, the groups in which it has that expression, or is not there."""
    made = []
    for alert in alerts():
        mutant = copy.deepcopy(groups())
        for group in mutant:
            found = [rule for rule in group["rules"] if rule == alert]
            for rule in found:
                if expression is None:
                    group["rules"].remove(rule)
                else:
                    rule["expr"] = expression
        made.append((alert, [group for group in mutant if group["rules"]]))
    return made


def test_prometheus_takes_the_rules(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": groups()}))
    command = [program("promtool"), "check", "rules", "--lint=all", "--lint-fatal", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    assert promtool(tmp_path, CASES, groups()) == ""


def test_every_alert_fires_in_some_case() -> None:
    known = {f"{alert['alert']} {alert['labels']['severity']}" for alert in alerts()}
    assert {name for case in CASES for name in case.firing} == known


@pytest.mark.parametrize("expression", [None, "vector(1)"], ids=["never", "always"])
def test_the_cases_notice_an_alert_that_fires_never_or_always(
    tmp_path: Path, expression: str | None
) -> None:
    for alert, mutant in changed(expression):
        name = f"{alert['alert']} {alert['labels']['severity']}"
        cases = [case for case in CASES if (name in case.firing) == (expression is None)]
        # Of those that are longer than any `for`, the shortest.
        quick = min((c for c in cases if c.at > 30 or name in c.firing), key=lambda case: case.at)
        assert alert["alert"] in promtool(tmp_path, [quick], mutant), name
