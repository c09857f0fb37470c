"""What k8s/components/monitoring has: rules, dashboard, monitors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from tests.cluster.programs import ROOT

COMPONENT = ROOT / "k8s" / "components" / "monitoring"
Rule = dict[str, Any]
Panel = dict[str, Any]


def groups() -> list[dict[str, Any]]:
    """The PrometheusRule's groups: what a rule file of Prometheus has."""
    document = yaml.safe_load((COMPONENT / "prometheusrule.yaml").read_text())
    assert (document["apiVersion"], document["kind"]) == (
        "monitoring.coreos.com/v1",
        "PrometheusRule",
    )
    found: list[dict[str, Any]] = document["spec"]["groups"]
    return found


def rules() -> list[Rule]:
    return [rule for group in groups() for rule in group["rules"]]


def alerts() -> list[Rule]:
    return [rule for rule in rules() if "alert" in rule]


def monitors() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((COMPONENT / "servicemonitors.yaml").read_text()))


def dashboard() -> dict[str, Any]:
    made: dict[str, Any] = json.loads((COMPONENT / "dashboard.json").read_text())
    return made


def panels() -> list[Panel]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """Title and query of every target of every panel."""
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


_NAME = r"\b(?:(?:gpt2serve|envoy|process|namespace:gpt2serve)_[\w:]+|up|ALERTS)\b"
_LABELS = r'(?:\{(?:"(?:\\.|[^"\\])*"|[^"}])*\})?'
_SELECTOR = re.compile(_NAME + _LABELS)
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right) ?\([^)]*\)")


def selectors(expression: str) -> set[str]:
    """Which series a query asks for, as queries of their own: without ranges and functions."""
    return set(_SELECTOR.findall(_GROUPING.sub("", expression)))


def metric_names(expression: str) -> set[str]:
    """The metrics that a query asks for."""
    return {selector.partition("{")[0] for selector in selectors(expression)}
