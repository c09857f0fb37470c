"""Parts of a rendering that the checks look at, and what they are compared with."""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import yaml

from gpt2serve.app import create_app
from gpt2serve.metrics import _GAUGES, Metrics
from gpt2serve.settings import (
    EngineSettings,
    ServerSettings,
    engine_settings,
    settings_from_environment,
)
from gpt2serve.sizes import parse_size
from tests.cluster.manifests import K8S, Manifest, of_kind

# -- of the manifests -------------------------------------------------------------------------


def name_of(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def names_in(manifests: list[Manifest]) -> set[str]:
    return {name_of(each) for each in manifests}


def pods_of(manifests: list[Manifest]) -> Iterator[tuple[str, dict[str, Any], dict[str, str]]]:
    """Name of the workload, spec and labels of its pods."""
    for workload in of_kind(manifests, "Deployment", "Job"):
        template = workload["spec"]["template"]
        yield name_of(workload), template["spec"], template["metadata"].get("labels", {})


def containers_of(pod: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def servers_of(manifests: list[Manifest]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name of the workload, pod and container, of all that run gpt2serve."""
    for name, pod, _ in pods_of(manifests):
        for container in containers_of(pod):
            if image_name(container["image"]) == "gpt2serve":
                yield name, pod, container


def image_name(image: str) -> str:
    return image.partition("@")[0].rpartition(":")[0] or image


def selected(manifests: list[Manifest], selector: Mapping[str, str]) -> list[dict[str, Any]]:
    """Specs of the pods that have these labels."""
    return [pod for _, pod, labels in pods_of(manifests) if selector.items() <= labels.items()]


def ports_of(pod: Mapping[str, Any]) -> dict[str, int]:
    """Named ports of a pod."""
    return {
        port["name"]: port["containerPort"]
        for container in pod["containers"]
        for port in container.get("ports", [])
    }


def size(quantity: str) -> int:
    """Bytes of a quantity: 4Gi, 64Mi."""
    return parse_size(f"{quantity}B")


def environment_of(manifests: list[Manifest], container: Mapping[str, Any]) -> dict[str, str]:
    """The variables of a container, as far as the rendering says them."""
    variables: dict[str, str] = {}
    for source in container.get("envFrom", []):
        wanted = source.get("configMapRef", {}).get("name")
        for found in of_kind(manifests, "ConfigMap"):
            if found["metadata"]["name"] == wanted:
                variables |= found["data"]
    for variable in container.get("env", []):
        origin = variable.get("valueFrom", {})
        if "value" in variable:
            variables[variable["name"]] = variable["value"]
        elif "resourceFieldRef" in origin:
            kind, _, resource = origin["resourceFieldRef"]["resource"].partition(".")
            variables[variable["name"]] = container["resources"][kind][resource]
    return variables


def settings_of(
    manifests: list[Manifest], container: Mapping[str, Any]
) -> tuple[EngineSettings, ServerSettings]:
    """As the server itself reads them. Raises `SettingsError`."""
    return settings_from_environment(environment_of(manifests, container))


def volume_at(container: Mapping[str, Any], pod: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The volume in which `path` lies, with its mount's `readOnly`; empty if there is none."""
    for mount in container.get("volumeMounts", []):
        if PurePosixPath(path).is_relative_to(mount["mountPath"]):
            for volume in pod.get("volumes", []):
                if volume["name"] == mount["name"]:
                    return {**volume, "readOnly": mount.get("readOnly", False)}
    return {}


# -- of the server and its documentation ------------------------------------------------------


@functools.cache
def routes() -> frozenset[str]:
    """Paths that the server answers."""
    with tempfile.TemporaryDirectory() as store:
        app = create_app(settings=engine_settings(store), server_settings=ServerSettings())
        return frozenset(route.path for route in app.routes)


@functools.cache
def metrics() -> frozenset[str]:
    """Names of the server's series."""
    told = re.findall(r"^# TYPE (\w+) (\w+)$", Metrics().render().decode(), re.MULTILINE)
    names = {f"gpt2serve_{name}" for name, _ in _GAUGES.values()}
    for name, kind in told:
        parts = ("_bucket", "_count", "_sum") if kind == "histogram" else ("",)
        names |= {name + part for part in parts}
    return frozenset(names)


@functools.cache
def adapter_metrics() -> frozenset[str]:
    """What prometheus-adapter shows by our rules. Only series of the server go into it."""
    path = K8S / "components" / "autoscaling" / "hpa" / "adapter-rules.yaml"
    shown: set[str] = set()
    for rule in yaml.safe_load(path.read_text(encoding="utf-8"))["rules"]["custom"]:
        pattern = re.search(r'__name__=~?"([^"]+)"', rule["seriesQuery"])
        assert pattern is not None
        series = {name for name in metrics() if re.fullmatch(pattern[1], name)}
        assert series
        shown |= {rule["name"]["as"]} if "name" in rule else series
    return frozenset(shown)


@functools.cache
def documented_secrets() -> frozenset[tuple[str, str]]:
    """Secrets and their keys in the table of k8s/README.md; `*` is any key."""
    text = (K8S / "README.md").read_text(encoding="utf-8")
    return frozenset(re.findall(r"^\| `([\w-]+)` \| `([\w.*-]+)` \|", text, re.MULTILINE))


def empty_dirs(pod: Mapping[str, Any]) -> dict[str, Any]:
    """The emptyDir of each volume that is one, by name."""
    return {each["name"]: each["emptyDir"] for each in pod["volumes"] if "emptyDir" in each}


def ephemeral_storage_is_enough(
    name: str, pod: Mapping[str, Any], container: Mapping[str, Any]
) -> Iterator[str]:
    """Kubernetes counts what is in the volumes against it."""
    together = sum(size(volume["sizeLimit"]) for volume in empty_dirs(pod).values())
    for kind in ("requests", "limits"):
        if size(container["resources"][kind]["ephemeral-storage"]) < together:
            yield f"{name}: {kind} of ephemeral-storage are less than its volumes"
