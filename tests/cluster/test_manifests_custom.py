"""Kinds that do not come with Kubernetes: no field in them that their definitions do not have.

No package that this project could install has these definitions for the versions that are meant
here, so the fields that the manifests use are listed; they were compared with the definitions by
hand. A typing error does not get past it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.manifests import COMBINATIONS, Manifest, manifests_of

pytestmark = pytest.mark.cluster

_POLICY = {"type", "value", "periodSeconds"}
_BEHAVIOR = "advanced.horizontalPodAutoscalerConfig.behavior"
_RULES = {"stabilizationWindowSeconds", "selectPolicy", *(f"policies.{name}" for name in _POLICY)}
_TARGETS = {f"targetRefs.{name}" for name in ("group", "kind", "name")}

#: By kind: the version, and fields of `spec` with dots between them.
FIELDS: dict[str, tuple[str, set[str]]] = {
    # KEDA 2.18
    "ScaledObject": (
        "keda.sh/v1alpha1",
        {
            *(f"scaleTargetRef.{name}" for name in ("apiVersion", "kind", "name")),
            *("pollingInterval", "minReplicaCount", "maxReplicaCount"),
            *(f"fallback.{name}" for name in ("failureThreshold", "replicas", "behavior")),
            *(f"{_BEHAVIOR}.scaleUp.{name}" for name in _RULES),
            *(f"{_BEHAVIOR}.scaleDown.{name}" for name in _RULES),
            *(f"triggers.{name}" for name in ("type", "name", "metricType")),
            # Of the trigger `prometheus`.
            *(f"triggers.metadata.{name}" for name in ("serverAddress", "query", "threshold")),
            "triggers.metadata.ignoreNullValues",
        },
    ),
    # Gateway API 1.2
    "Gateway": (
        "gateway.networking.k8s.io/v1",
        {
            "gatewayClassName",
            *(f"listeners.{name}" for name in ("name", "protocol", "port", "hostname")),
            "listeners.tls.mode",
            *(f"listeners.tls.certificateRefs.{name}" for name in ("kind", "name")),
            "listeners.allowedRoutes.namespaces.from",
        },
    ),
    "HTTPRoute": (
        "gateway.networking.k8s.io/v1",
        {
            *(f"parentRefs.{name}" for name in ("name", "sectionName")),
            "hostnames",
            *(f"rules.matches.path.{name}" for name in ("type", "value")),
            *(f"rules.timeouts.{name}" for name in ("request", "backendRequest")),
            *(f"rules.backendRefs.{name}" for name in ("name", "port")),
        },
    ),
    # Envoy Gateway 1.5
    "BackendTrafficPolicy": (
        "gateway.envoyproxy.io/v1alpha1",
        {
            *_TARGETS,
            "loadBalancer.type",
            *(f"loadBalancer.consistentHash.{name}" for name in ("type", "header.name")),
            "loadBalancer.consistentHash.tableSize",
            *(f"healthCheck.active.{name}" for name in ("type", "interval", "timeout")),
            *(f"healthCheck.active.{name}" for name in ("unhealthyThreshold", "healthyThreshold")),
            *(f"healthCheck.active.http.{name}" for name in ("path", "method")),
            "healthCheck.active.http.expectedStatuses",
            *(f"healthCheck.passive.{name}" for name in ("interval", "baseEjectionTime")),
            "healthCheck.passive.maxEjectionPercent",
            "healthCheck.passive.consecutive5XxErrors",
            "healthCheck.passive.consecutiveGatewayErrors",
            "healthCheck.passive.consecutiveLocalOriginFailures",
            "healthCheck.passive.splitExternalLocalOriginErrors",
            *("retry.numRetries", "retry.retryOn.triggers"),
            "timeout.tcp.connectTimeout",
            *(f"timeout.http.{name}" for name in ("requestTimeout", "connectionIdleTimeout")),
            *(f"circuitBreaker.max{name}" for name in ("Connections", "ParallelRequests")),
            *(f"circuitBreaker.max{name}" for name in ("PendingRequests", "ParallelRetries")),
        },
    ),
    "ClientTrafficPolicy": (
        "gateway.envoyproxy.io/v1alpha1",
        {*_TARGETS, "connection.bufferLimit"},
    ),
    "EnvoyExtensionPolicy": (
        "gateway.envoyproxy.io/v1alpha1",
        {*_TARGETS, "lua.type", *(f"lua.valueRef.{name}" for name in ("group", "kind", "name"))},
    ),
}

#: Words that a field may be, where not every text will do.
WORDS = {
    "fallback.behavior": {"static", "currentReplicas", "currentReplicasIfHigher"},
    "triggers.metricType": {"AverageValue", "Value"},
    "triggers.metadata.ignoreNullValues": {"true", "false"},
    "loadBalancer.type": {"ConsistentHash"},
    "loadBalancer.consistentHash.type": {"Header", "SourceIP", "Cookie"},
    "retry.retryOn.triggers": {"connect-failure", "refused-stream"},
    "lua.type": {"Inline", "ValueRef"},
    "rules.matches.path.type": {"Exact", "PathPrefix", "RegularExpression"},
    "listeners.protocol": {"HTTP", "HTTPS", "TLS"},
    "listeners.tls.mode": {"Terminate", "Passthrough"},
}


def fields(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path and value of everything that is not a mapping or a list."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from fields(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for inner in value:
            yield from fields(inner, path)
    else:
        yield path, value


def wrong(manifest: Manifest) -> list[str]:
    version, known = FIELDS[manifest["kind"]]
    found = list(fields(manifest["spec"]))
    lines = [path for path, _ in found if path not in known]
    lines += [f"{path}: {text}" for path, text in found if text not in WORDS.get(path, {text})]
    return lines + ([] if manifest["apiVersion"] == version else [manifest["apiVersion"]])


@pytest.mark.parametrize("combination", COMBINATIONS, ids="+".join)
def test_all_fields_are_known(combination: tuple[str, ...]) -> None:
    for manifest in manifests_of(*combination):
        if manifest["kind"] in FIELDS:
            assert wrong(manifest) == [], manifest["kind"]


def test_all_kinds_are_looked_at_and_all_fields_are_used() -> None:
    manifests = [each for combination in COMBINATIONS for each in manifests_of(*combination)]
    for kind, (_, known) in FIELDS.items():
        used = {
            path for each in manifests if each["kind"] == kind for path, _ in fields(each["spec"])
        }
        assert used == known, kind


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("ScaledObject", "triggers.0.metadata.treshold", "4"),
        ("ScaledObject", "triggers.0.metricType", "Average"),
        ("HTTPRoute", "rules.0.timeout", {"request": "0s"}),
        ("BackendTrafficPolicy", "loadBalancer.consistentHash.headers", [{"name": "x"}]),
        ("BackendTrafficPolicy", "retry.retryOn.triggers", ["connection-failure"]),
    ],
)
def test_a_typing_error_is_noticed(kind: str, path: str, value: Any) -> None:
    everything = ("components/autoscaling", "components/gateway", "components/gateway/hashing")
    (manifest,) = [
        each for each in manifests_of("overlays/cpu", *everything) if each["kind"] == kind
    ]
    place: Any = manifest["spec"]
    *parts, last = path.split(".")
    for part in parts:
        place = place[int(part) if part.isdigit() else part]
    place[last] = value
    assert wrong(manifest) != []


def test_another_version_is_noticed() -> None:
    (manifest,) = [
        each
        for each in manifests_of("overlays/cpu", "components/gateway")
        if each["kind"] == "HTTPRoute"
    ]
    manifest["apiVersion"] = "gateway.networking.k8s.io/v1beta1"
    assert wrong(manifest) != []
