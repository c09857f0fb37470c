"""What must hold of autoscalers, gateways and routes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tests.cluster.manifest_parts import (
    adapter_metrics,
    documented_secrets,
    metrics,
    name_of,
    names_in,
    routes,
)
from tests.cluster.manifests import Manifest, of_kind

#: Not for the world.
INTERNAL = {"/admin", "/health", "/healthz", "/metrics", "/readyz", "/schema"}


def autoscalers_have_a_target(manifests: list[Manifest]) -> Iterator[str]:
    deployments = {each["metadata"]["name"]: each for each in of_kind(manifests, "Deployment")}
    targets = []
    for each in of_kind(manifests, "ScaledObject", "HorizontalPodAutoscaler"):
        reference = each["spec"]["scaleTargetRef"]
        target = deployments.get(reference["name"])
        targets.append(reference["name"])
        if target is None or (reference["apiVersion"], reference["kind"]) != (
            target["apiVersion"],
            target["kind"],
        ):
            yield f"{name_of(each)} has no target"
        elif "replicas" in target["spec"]:
            yield f"{name_of(target)} says replicas, and so does {name_of(each)}"
    if len(targets) != len(set(targets)):
        yield "two autoscalers for one target"


def autoscalers_ask_for_real_metrics(manifests: list[Manifest]) -> Iterator[str]:
    for each in of_kind(manifests, "ScaledObject"):
        for trigger in each["spec"]["triggers"]:
            query = trigger["metadata"]["query"]
            wanted = set(re.findall(r"\bgpt2serve_\w+", query))
            if not wanted or not wanted <= metrics():
                yield f"{name_of(each)}: {trigger['name']} asks for {wanted - metrics()}"
            if query.count("{") != query.count('{namespace="gpt2serve"}') or "{" not in query:
                yield f"{name_of(each)}: {trigger['name']} asks for all namespaces"
    for each in of_kind(manifests, "HorizontalPodAutoscaler"):
        wanted = {metric["pods"]["metric"]["name"] for metric in each["spec"]["metrics"]}
        if wanted != adapter_metrics():
            yield f"{name_of(each)} asks for {wanted}"


def _is_public(path: Mapping[str, Any]) -> bool:
    """Whether the server answers there, and the world may ask it."""
    value, below = path["value"], path["type"] == "PathPrefix"
    if value in INTERNAL or (below and value == "/"):
        return False
    return value in routes() or (below and any(each.startswith(f"{value}/") for each in routes()))


def routes_lead_to_services(manifests: list[Manifest]) -> Iterator[str]:
    ports = {
        (each["metadata"]["name"], port["port"])
        for each in of_kind(manifests, "Service")
        for port in each["spec"]["ports"]
    }
    for each in of_kind(manifests, "HTTPRoute"):
        for rule in each["spec"]["rules"]:
            for match in rule["matches"]:
                if not _is_public(match["path"]):
                    yield f"{name_of(each)}: {match['path']['value']}"
            for backend in rule["backendRefs"]:
                if (backend["name"], backend["port"]) not in ports:
                    yield f"{name_of(each)}: no service {backend['name']}:{backend['port']}"
            if set(rule["timeouts"].values()) != {"0s"}:
                yield f"{name_of(each)} cuts streams off"


def routes_come_from_gateways(manifests: list[Manifest]) -> Iterator[str]:
    listeners = {
        (each["metadata"]["name"], listener["name"]): listener
        for each in of_kind(manifests, "Gateway")
        for listener in each["spec"]["listeners"]
    }
    for each in of_kind(manifests, "HTTPRoute"):
        for parent in each["spec"]["parentRefs"]:
            listener = listeners.get((parent["name"], parent["sectionName"]), {})
            if each["spec"]["hostnames"] != [listener.get("hostname")]:
                yield f"{name_of(each)}: no listener {parent['name']}, {parent['sectionName']}"
    for (name, _), listener in listeners.items():
        for reference in listener["tls"]["certificateRefs"]:
            if (reference["name"], "tls.crt") not in documented_secrets():
                yield f"Gateway/{name}: secret {reference['name']} is not in k8s/README.md"


def policies_hang_on_something(manifests: list[Manifest]) -> Iterator[str]:
    """Those of Envoy Gateway, and the scripts that they name."""
    there = names_in(manifests)
    for each in manifests:
        if each["apiVersion"].startswith("gateway.envoyproxy.io/"):
            wanted = [f"{target['kind']}/{target['name']}" for target in each["spec"]["targetRefs"]]
            scripts = each["spec"].get("lua", [])
            wanted += [f"ConfigMap/{script['valueRef']['name']}" for script in scripts]
            for name in wanted:
                if name not in there:
                    yield f"{name_of(each)}: no {name}"


CHECKS = (
    autoscalers_have_a_target,
    autoscalers_ask_for_real_metrics,
    routes_lead_to_services,
    routes_come_from_gateways,
    policies_hang_on_something,
)
