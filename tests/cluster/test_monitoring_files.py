"""Dashboard, rules and monitors, as files: do they fit together, the server, and the docs?"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from litestar.routes import HTTPRoute

from gpt2serve import Engine
from gpt2serve.api.generation import GENERATION
from gpt2serve.app import create_app
from gpt2serve.settings import server_settings
from tests.cluster.monitoring import (
    COMPONENT,
    alerts,
    dashboard,
    groups,
    metric_names,
    monitors,
    panels,
    queries,
    rules,
    selectors,
)
from tests.cluster.programs import ROOT, program

pytestmark = pytest.mark.cluster

RUNBOOKS = ROOT / "docs" / "operations.md"


# -- the dashboard ----------------------------------------------------------------------------


def test_the_dashboard_is_what_the_generator_writes() -> None:
    spec = importlib.util.spec_from_file_location("made", COMPONENT / "make_dashboard.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert (COMPONENT / "dashboard.json").read_text() == made.text()


def test_every_panel_can_be_read() -> None:
    everything = dashboard()["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    assert [
        n for n, count in Counter(panel["title"] for panel in panels()).items() if count > 1
    ] == []
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["targets"], panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        if panel["type"] != "table":
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        if panel["type"] == "timeseries":
            assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]


def test_no_panel_covers_another() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]


def test_legends_name_labels_that_their_query_keeps() -> None:
    for panel in panels():
        for target in panel["targets"]:
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                kept = re.findall(r"\bby \(([^)]*)\)", target["expr"])
                assert any(label in names.split(", ") for names in kept), panel["title"]


def test_units_are_those_of_the_metrics() -> None:
    """Seconds are shown as seconds, bytes as bytes, and a share of two of a kind as a share."""
    for panel in panels():
        unit = panel["fieldConfig"]["defaults"].get("unit")
        for target in panel["targets"]:
            names = metric_names(target["expr"])
            if unit in ("s", "bytes", "Bps"):
                ending = "seconds" if unit == "s" else "bytes"
                assert all(ending in name or "memory" in name for name in names), panel["title"]
            if unit == "percentunit":
                assert "/" in target["expr"], panel["title"]


def test_there_is_one_panel_by_model() -> None:
    """Only `--model-metrics` gives such series, and few."""
    asked = [title for title, query in queries() if re.search(r"\bmodel\b", query)]
    assert asked == ["The ten busiest models"]
    assert not [rule for rule in rules() if re.search(r"\bmodel\b", rule["expr"])]


# -- rules and their runbooks -----------------------------------------------------------------


def runbooks() -> str:
    """The section "Alerts" of the page."""
    (found,) = re.findall(r"^## Alerts\n(.*?)(?=^## |\Z)", RUNBOOKS.read_text(), re.M | re.S)
    return str(found)


def anchors(page: str) -> dict[str, str]:
    """Heading by the anchor that Markdown readers make of it."""
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", text).lower().replace(" ", "-"): text for text in headings}


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    page = RUNBOOKS.read_text()
    known = anchors(page)
    names = set()
    for alert in alerts():
        path, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        assert ROOT / path == RUNBOOKS
        assert known[anchor] == alert["alert"]
        names.add(alert["alert"])
    assert {text for text in known.values() if text.startswith("Gpt2serve")} == names


def test_every_runbook_says_what_it_means_and_what_to_do() -> None:
    parts = re.split(r"^### (Gpt2serve\w+)$", runbooks(), flags=re.MULTILINE)
    assert len(parts) > 1
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        text = re.split(r"^#", text, flags=re.MULTILINE)[0]
        for wanted in ("**Means.**", "**Look.**", "**Do.**"):
            assert text.count(wanted) == 1, (name, wanted)


def test_runbooks_ask_for_metrics_that_there_are() -> None:
    """Every query in a runbook is one of a metric that dashboard or rules use, too."""
    known = {name for _, query in queries() for name in metric_names(query)}
    known |= {name for rule in rules() for name in metric_names(rule["expr"])}
    known |= {rule["record"] for rule in rules() if "record" in rule}
    told = {
        name
        for code in re.findall(r"`([^`\n]+)`", runbooks())
        for name in re.findall(r"\b(?:gpt2serve|envoy)_[a-z0-9_]+(?=[{\[ )]|$)", code)
    }
    stems = {re.sub(r"_(bucket|sum|count)$", "", name) for name in known}
    assert told - known - stems == set()


def test_alerts_have_all_that_receivers_need() -> None:
    for alert in alerts():
        assert re.fullmatch(r"Gpt2serve\w+", alert["alert"])
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
        assert alert["for"]


def test_names_of_groups_and_records_are_unique() -> None:
    names = [group["name"] for group in groups()]
    assert len(set(names)) == len(names)
    records = [rule["record"] for rule in rules() if "record" in rule]
    assert len(set(records)) == len(records)


def test_requests_that_count_are_those_that_generate(tmp_path: Path) -> None:
    app = create_app(
        engine=Engine(tmp_path, device="cpu"),
        server_settings=server_settings(admin_key="k" * 20),
    )
    routes = {
        route.path_format: any(
            GENERATION.items() <= handler.opt.items() for handler in route.route_handlers
        )
        for route in app.routes
        if isinstance(route, HTTPRoute)
    }
    (pattern,) = {
        match
        for query in [query for _, query in queries()] + [rule["expr"] for rule in rules()]
        for match in re.findall(r'route=~"([^"]+)"', query)
    }
    # To look a model up counts, too: its address differs by what comes before it only.
    too_many = {"/v1/models/{name}", "/v1/models/{owner}/{name}"}
    assert {path for path in routes if re.fullmatch(pattern, path)} == too_many | {
        path for path, generates in routes.items() if generates
    }


def test_the_objective_is_where_the_histogram_has_a_bucket() -> None:
    from gpt2serve.metrics import Metrics

    bounds = set(re.findall(rb'first_token_seconds_bucket\{le="([^"]+)"\}', Metrics().render()))
    (asked,) = {
        match
        for rule in rules()
        for match in re.findall(r'first_token_seconds_bucket\{le="([^"]+)"\}', rule["expr"])
    }
    assert asked.encode() in bounds


# -- in the cluster ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Base, router and this component, as kustomize puts them together."""
    folder = tmp_path_factory.mktemp("overlay")
    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "gpt2serve",
        "resources": [os.path.relpath(ROOT / "k8s" / part, folder) for part in ("base", "envoy")],
        "components": [os.path.relpath(COMPONENT, folder)],
        # As docs/observability.md has it.
        "patches": yaml.safe_load(yaml_in(ROOT / "docs" / "observability.md"))["patches"],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    command = [program("kubectl"), "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def yaml_in(page: Path) -> str:
    (found,) = re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)
    return str(found)


def of_kind(documents: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in documents if one["kind"] == kind}


def test_everything_is_in_the_fleets_namespace(built: list[dict[str, Any]]) -> None:
    for kind in ("ServiceMonitor", "PrometheusRule", "ConfigMap"):
        assert {one["metadata"]["namespace"] for one in of_kind(built, kind).values()} == {
            "gpt2serve"
        }


def test_an_operator_that_selects_by_label_finds_them(built: list[dict[str, Any]]) -> None:
    for kind, count in (("ServiceMonitor", 2), ("PrometheusRule", 1)):
        found = of_kind(built, kind)
        assert len(found) == count
        for one in found.values():
            assert one["metadata"]["labels"]["release"] == "kube-prometheus-stack"


def test_monitors_find_their_services_and_ports(built: list[dict[str, Any]]) -> None:
    services = of_kind(built, "Service")
    found = {}
    for monitor in monitors():
        wanted = monitor["spec"]["selector"]["matchLabels"]
        (endpoint,) = monitor["spec"]["endpoints"]
        kept = [one["regex"] for one in endpoint["relabelings"] if one.get("action") == "keep"] or [
            ".*"
        ]
        behind = {
            name
            for name, service in services.items()
            if wanted.items() <= service["metadata"]["labels"].items()
            and re.fullmatch(kept[0], name)
        }
        for name in behind:
            ports = [port["name"] for port in services[name]["spec"]["ports"]]
            assert endpoint["port"] in ports
        found[monitor["metadata"]["name"]] = behind
    assert found == {
        "gpt2serve": {"gpt2serve-replicas"},
        "gpt2serve-router": {"gpt2serve-router"},
    }


def test_network_policies_let_prometheus_in(built: list[dict[str, Any]]) -> None:
    policies = of_kind(built, "NetworkPolicy")
    for name, port in (("gpt2serve", "http"), ("gpt2serve-router", "metrics")):
        assert [
            rule
            for rule in policies[name]["spec"]["ingress"]
            if any(one["port"] == port for one in rule["ports"])
            and any(
                peer.get("namespaceSelector", {}).get("matchLabels", {})
                == {"kubernetes.io/metadata.name": "monitoring"}
                for peer in rule.get("from", ())
            )
        ], name


def test_grafana_finds_the_dashboard(built: list[dict[str, Any]]) -> None:
    config = of_kind(built, "ConfigMap")["gpt2serve-dashboard"]
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert config["data"] == {"gpt2serve.json": (COMPONENT / "dashboard.json").read_text()}
    # What the API server takes at most, with the annotation that `kubectl apply` writes.
    assert len(config["data"]["gpt2serve.json"]) < 200_000


def test_selectors_are_read_right() -> None:
    query = 'sum by (code, x) (rate(gpt2serve_a{b=~"c}d",e="f"}[5m])) / on () up{job="g"} > 1'
    assert selectors(query) == {'gpt2serve_a{b=~"c}d",e="f"}', 'up{job="g"}'}
    assert metric_names(query) == {"gpt2serve_a", "up"}
