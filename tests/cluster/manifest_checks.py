"""What must hold in a rendering, whatever runs in it. `ALL_CHECKS` has these and the others.

A rendering is everything that one `kubectl apply -k` would send. A check yields what is wrong, a
line each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tests.cluster import manifest_checks_jobs as jobs
from tests.cluster import manifest_checks_server as server
from tests.cluster import manifest_checks_traffic as traffic
from tests.cluster.manifest_parts import (
    containers_of,
    documented_secrets,
    image_name,
    name_of,
    names_in,
    pods_of,
    ports_of,
    selected,
)
from tests.cluster.manifests import Manifest, of_kind

Check = Callable[[list[Manifest]], Iterator[str]]

NAMESPACE = "gpt2serve"

PYTHON_IMAGES = {"gpt2serve", "gpt2export"}
#: Images that the manifests may name.
IMAGES = {*PYTHON_IMAGES, "envoyproxy/envoy"}

_CLUSTER_WIDE = {"Namespace", "PersistentVolume"}
#: Volumes that Pod Security "restricted" allows.
_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim",
    "projected", "secret",
}  # fmt: skip


# -- names and labels -------------------------------------------------------------------------


def names_are_unique(manifests: list[Manifest]) -> Iterator[str]:
    seen: set[tuple[str, str]] = set()
    for each in manifests:
        key = (each["apiVersion"].partition("/")[0], name_of(each))
        if key in seen:
            yield f"{name_of(each)} is there twice"
        seen.add(key)


def all_are_in_the_namespace(manifests: list[Manifest]) -> Iterator[str]:
    for each in manifests:
        if each["kind"] not in _CLUSTER_WIDE and each["metadata"].get("namespace") != NAMESPACE:
            yield f"{name_of(each)} is not in {NAMESPACE}"


def all_have_labels(manifests: list[Manifest]) -> Iterator[str]:
    labels = [(name_of(each), each["metadata"].get("labels", {})) for each in manifests]
    labels += [(f"a pod of {name}", found) for name, _, found in pods_of(manifests)]
    for name, found in labels:
        if not {"app.kubernetes.io/name", "app.kubernetes.io/part-of"} <= found.keys():
            yield f"{name} lacks labels"


# -- what selects, and what is selected -------------------------------------------------------


def selectors_find_pods(manifests: list[Manifest]) -> Iterator[str]:
    for each in manifests:
        match each["kind"]:
            case "Service":
                selector = each["spec"]["selector"]
            case "PodDisruptionBudget":
                selector = each["spec"]["selector"]["matchLabels"]
            case "NetworkPolicy":
                selector = each["spec"]["podSelector"]["matchLabels"]
            case _:
                continue
        if len(selected(manifests, selector)) != 1:
            yield f"{name_of(each)} does not select the pods of one workload"


def workloads_find_their_own_pods(manifests: list[Manifest]) -> Iterator[str]:
    for deployment in of_kind(manifests, "Deployment"):
        spec = deployment["spec"]
        labels = spec["template"]["metadata"].get("labels", {}).items()
        spread = spec["template"]["spec"].get("topologySpreadConstraints", [])
        selectors = [spec["selector"], *(each["labelSelector"] for each in spread)]
        if not all(selector["matchLabels"].items() <= labels for selector in selectors):
            yield f"{name_of(deployment)}: a selector misses its own pods"


def services_name_ports(manifests: list[Manifest]) -> Iterator[str]:
    for each in of_kind(manifests, "Service"):
        for pod in selected(manifests, each["spec"]["selector"]):
            for port in each["spec"]["ports"]:
                if port["targetPort"] not in ports_of(pod):
                    yield f"{name_of(each)}: no port {port['targetPort']}"


def policies_name_ports(manifests: list[Manifest]) -> Iterator[str]:
    for each in of_kind(manifests, "NetworkPolicy"):
        for pod in selected(manifests, each["spec"]["podSelector"]["matchLabels"]):
            for rule in each["spec"].get("ingress", []):
                for port in rule["ports"]:
                    if port["port"] not in ports_of(pod):
                        yield f"{name_of(each)}: no port {port['port']}"


def headless_services_have_the_pods_port(manifests: list[Manifest]) -> Iterator[str]:
    """Who resolves their names talks to the pods themselves, whatever `targetPort` says."""
    for each in of_kind(manifests, "Service"):
        if each["spec"].get("clusterIP") != "None":
            continue
        for pod in selected(manifests, each["spec"]["selector"]):
            for port in each["spec"]["ports"]:
                if ports_of(pod).get(port["targetPort"]) != port["port"]:
                    yield f"{name_of(each)}: {port['port']} is not {port['targetPort']}"


def policies_name_pods(manifests: list[Manifest]) -> Iterator[str]:
    """Peers in this namespace exist, wherever there is a router at all."""
    components = {labels.get("app.kubernetes.io/component") for *_, labels in pods_of(manifests)}
    if "router" not in components:
        return
    for each in of_kind(manifests, "NetworkPolicy"):
        for rule in [*each["spec"].get("ingress", []), *each["spec"].get("egress", [])]:
            for peer in [*rule.get("from", []), *rule.get("to", [])]:
                here = "podSelector" in peer and "namespaceSelector" not in peer
                if here and not selected(manifests, peer["podSelector"]["matchLabels"]):
                    yield f"{name_of(each)} names pods that do not exist"


# -- what pods are made of --------------------------------------------------------------------


def service_variables_stay_out(manifests: list[Manifest]) -> Iterator[str]:
    """A service `gpt2serve` makes GPT2SERVE_PORT, which is a setting."""
    for name, pod, _ in pods_of(manifests):
        if pod.get("enableServiceLinks") is not False:
            yield f"{name}: enableServiceLinks"


def volumes_and_mounts_agree(manifests: list[Manifest]) -> Iterator[str]:
    for name, pod, _ in pods_of(manifests):
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        mounted = set()
        for container in containers_of(pod):
            mounts = container.get("volumeMounts", [])
            mounted |= {mount["name"] for mount in mounts}
            paths = [mount["mountPath"] for mount in mounts]
            if len(paths) != len(set(paths)):
                yield f"{name}: two volumes at one path"
            if image_name(container["image"]) in PYTHON_IMAGES and "/tmp" not in paths:
                yield f"{name}: {container['name']} has no /tmp"
        if mounted != volumes:
            yield f"{name}: volumes without a mount, or the reverse: {mounted ^ volumes}"


def _references(pod: dict[str, Any]) -> Iterator[str]:
    yield f"ServiceAccount/{pod['serviceAccountName']}"
    for volume in pod.get("volumes", []):
        if "configMap" in volume:
            yield f"ConfigMap/{volume['configMap']['name']}"
        if "persistentVolumeClaim" in volume:
            yield f"PersistentVolumeClaim/{volume['persistentVolumeClaim']['claimName']}"
    for container in containers_of(pod):
        for source in container.get("envFrom", []):
            if "configMapRef" in source:
                yield f"ConfigMap/{source['configMapRef']['name']}"


def references_exist(manifests: list[Manifest]) -> Iterator[str]:
    for name, pod, _ in pods_of(manifests):
        for wanted in _references(pod):
            if wanted not in names_in(manifests):
                yield f"{name}: {wanted} is not there"


def _secrets(pod: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for container in containers_of(pod):
        for source in container.get("envFrom", []):
            if "secretRef" in source:
                yield source["secretRef"]["name"], "*"
        for variable in container.get("env", []):
            if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                yield reference["name"], reference["key"]


def secrets_are_documented(manifests: list[Manifest]) -> Iterator[str]:
    """They are the operator's, who must be told of them."""
    names = {name for name, _ in documented_secrets()}
    for name, pod, _ in pods_of(manifests):
        for secret in _secrets(pod):
            if secret not in documented_secrets():
                yield f"{name}: {secret} is not in k8s/README.md"
        for volume in pod.get("volumes", []):
            if "secret" in volume and volume["secret"]["secretName"] not in names:
                yield f"{name}: {volume['secret']['secretName']} is not in k8s/README.md"


def images_are_ours(manifests: list[Manifest]) -> Iterator[str]:
    """Each with a tag that says which one; `latest` is another one every day."""
    for name, pod, _ in pods_of(manifests):
        for container in containers_of(pod):
            image, _, tag = container["image"].rpartition(":")
            if image not in IMAGES or tag == "latest":
                yield f"{name}: image {container['image']}"


# -- Pod Security "restricted" ----------------------------------------------------------------


def namespace_is_restricted(manifests: list[Manifest]) -> Iterator[str]:
    for each in of_kind(manifests, "Namespace"):
        for kind in ("enforce", "warn", "audit"):
            label = each["metadata"]["labels"].get(f"pod-security.kubernetes.io/{kind}")
            if label != "restricted":
                yield f"{name_of(each)} does not {kind}"


def pods_are_restricted(manifests: list[Manifest]) -> Iterator[str]:
    for name, pod, _ in pods_of(manifests):
        security = pod.get("securityContext", {})
        if not security.get("runAsNonRoot") or security.get("runAsUser", 0) == 0:
            yield f"{name} may run as root"
        if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{name} has no seccomp profile"
        if any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
            yield f"{name} is in a namespace of the node"
        if pod.get("automountServiceAccountToken") is not False:
            yield f"{name} gets a token for Kubernetes"
        for volume in pod.get("volumes", []):
            if not volume.keys() - {"name"} <= _VOLUMES:
                yield f"{name}: volume {volume['name']} is not allowed"


def containers_are_restricted(manifests: list[Manifest]) -> Iterator[str]:
    """And have a root that nothing can be written to, which "restricted" does not ask for."""
    wanted = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    for name, pod, _ in pods_of(manifests):
        for container in containers_of(pod):
            if container.get("securityContext") != wanted:
                yield f"{name}: {container['name']} may do too much"
            if any("hostPort" in port for port in container.get("ports", [])):
                yield f"{name}: {container['name']} takes a port of the node"


ALL_CHECKS: tuple[Check, ...] = (
    names_are_unique,
    all_are_in_the_namespace,
    all_have_labels,
    selectors_find_pods,
    workloads_find_their_own_pods,
    services_name_ports,
    policies_name_ports,
    headless_services_have_the_pods_port,
    policies_name_pods,
    service_variables_stay_out,
    volumes_and_mounts_agree,
    references_exist,
    secrets_are_documented,
    images_are_ours,
    namespace_is_restricted,
    pods_are_restricted,
    containers_are_restricted,
    *server.CHECKS,
    *traffic.CHECKS,
    *jobs.CHECKS,
)
