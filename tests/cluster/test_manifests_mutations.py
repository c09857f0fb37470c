"""Each check of the manifests notices what it is there for: one thing is made wrong at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from tests.cluster import manifest_checks as checks
from tests.cluster import manifest_checks_jobs as jobs
from tests.cluster import manifest_checks_server as server
from tests.cluster import manifest_checks_traffic as traffic
from tests.cluster.manifest_parts import adapter_metrics
from tests.cluster.manifests import Manifest, manifests_of, named

pytestmark = pytest.mark.cluster

#: Takes the thing away.
GONE = object()


@dataclass(frozen=True)
class Mutation:
    """`check` must notice that the value at `path` of one object is another one.

    of: the combination. what: kind and name. A name of settings stands for that ConfigMap, whatever
    it ends in.
    path: keys and places in lists, with dots between them; keys with dots have ":" in their place.
    "+" at the end adds the value's keys.
    """

    of: tuple[str, ...]
    check: checks.Check
    what: str
    path: str
    value: Any

    def __str__(self) -> str:
        return f"{self.check.__name__}-{self.what}-{self.path}"


def mutate(manifests: list[Manifest], mutation: Mutation) -> None:
    kind, _, name = mutation.what.partition("/")
    if kind == "ConfigMap":
        (name,) = [
            each["metadata"]["name"]
            for each in manifests
            if each["kind"] == kind and each["metadata"]["name"].startswith(name)
        ]
    place: Any = named(manifests, kind, name)
    *path, last = (_key(part) for part in mutation.path.split("."))
    for key in path:
        place = place[key]
    if mutation.value is GONE:
        del place[last]
    elif last == "+":
        place.update(mutation.value)
    else:
        place[last] = mutation.value


def _key(part: str) -> str | int:
    return int(part) if part.isdigit() else part.replace(":", ".")


SERVER = "Deployment/gpt2serve"
POD = "spec.template.spec"
CONTAINER = f"{POD}.containers.0"
SETTINGS = "ConfigMap/gpt2serve-settings"
EXPORT, EXPORT_SETTINGS = "Job/gpt2serve-export-bucket", "ConfigMap/gpt2serve-export-bucket"
SCALER = "ScaledObject/gpt2serve"

LOCAL, CPU, GPU = (("overlays/local",), ("overlays/cpu",), ("overlays/gpu",))
KEDA = (*CPU, "components/autoscaling")
HPA = (*CPU, "components/autoscaling/hpa")
GATEWAY = (*CPU, "components/gateway")
HASHING = (*GATEWAY, "components/gateway/hashing")

ROUTE, GATE = "HTTPRoute/gpt2serve", "Gateway/gpt2serve"
REPLICAS, POLICY = "Service/gpt2serve-replicas", "NetworkPolicy/gpt2serve"
COMPONENT = "app:kubernetes:io/component"

_OF_SELECTORS = (
    (checks.selectors_find_pods, "Service/gpt2serve", f"spec.selector.{COMPONENT}", "serve"),
    # Router and server together.
    (checks.selectors_find_pods, "Service/gpt2serve", f"spec.selector.{COMPONENT}", GONE),
    (checks.selectors_find_pods, REPLICAS, f"spec.selector.{COMPONENT}", "serve"),
    (
        checks.selectors_find_pods,
        "PodDisruptionBudget/gpt2serve",
        f"spec.selector.matchLabels.{COMPONENT}",
        "serve",
    ),
    (checks.selectors_find_pods, POLICY, f"spec.podSelector.matchLabels.{COMPONENT}", "serve"),
    (
        checks.workloads_find_their_own_pods,
        SERVER,
        f"spec.selector.matchLabels.{COMPONENT}",
        "serve",
    ),
    (
        checks.workloads_find_their_own_pods,
        SERVER,
        f"{POD}.topologySpreadConstraints.1.labelSelector.matchLabels.{COMPONENT}",
        "serve",
    ),
    (checks.services_name_ports, SERVER, f"{CONTAINER}.ports.0.name", "web"),
    (checks.services_name_ports, "Service/gpt2serve", "spec.ports.0.targetPort", "web"),
    (checks.policies_name_ports, POLICY, "spec.ingress.0.ports.0.port", "web"),
    (checks.headless_services_have_the_pods_port, REPLICAS, "spec.ports.0.port", 80),
    (
        checks.policies_name_pods,
        POLICY,
        f"spec.ingress.0.from.0.podSelector.matchLabels.{COMPONENT}",
        "routers",
    ),
)

_OF_OBJECTS = (
    (checks.names_are_unique, "Service/gpt2serve", "metadata.name", "gpt2serve-replicas"),
    (checks.all_are_in_the_namespace, SERVER, "metadata.namespace", "default"),
    (checks.all_have_labels, SERVER, "metadata.labels", {}),
    (checks.all_have_labels, SERVER, "spec.template.metadata.labels", {}),
    (checks.service_variables_stay_out, SERVER, f"{POD}.enableServiceLinks", GONE),
    (checks.volumes_and_mounts_agree, SERVER, f"{POD}.volumes.0.name", "cache"),
    (checks.volumes_and_mounts_agree, SERVER, f"{CONTAINER}.volumeMounts.0", GONE),
    (
        checks.volumes_and_mounts_agree,
        SERVER,
        f"{CONTAINER}.volumeMounts.1.mountPath",
        "/var/cache/gpt2serve",
    ),
    (checks.volumes_and_mounts_agree, SERVER, f"{CONTAINER}.volumeMounts.1.mountPath", "/var/tmp"),
    (checks.references_exist, SERVER, f"{POD}.serviceAccountName", "gpt2"),
    (
        checks.references_exist,
        SERVER,
        f"{CONTAINER}.envFrom.0.configMapRef.name",
        "gpt2serve-settings",
    ),
    (
        checks.secrets_are_documented,
        SERVER,
        f"{CONTAINER}.envFrom.1.secretRef.name",
        "gpt2serve-s3",
    ),
    (
        checks.secrets_are_documented,
        SERVER,
        f"{CONTAINER}.env.1.valueFrom.secretKeyRef.key",
        "keys",
    ),
    (checks.secrets_are_documented, SERVER, f"{POD}.volumes.2.secret.secretName", "api-keys"),
    (checks.images_are_ours, SERVER, f"{CONTAINER}.image", "gpt2server:0.1.0"),
    (checks.images_are_ours, SERVER, f"{CONTAINER}.image", "gpt2serve"),
    (checks.images_are_ours, SERVER, f"{CONTAINER}.image", "gpt2serve:latest"),
    (
        checks.namespace_is_restricted,
        "Namespace/gpt2serve",
        "metadata.labels.pod-security:kubernetes:io/enforce",
        "baseline",
    ),
    *(
        (checks.pods_are_restricted, SERVER, f"{POD}.{path}", value)
        for path, value in (
            ("securityContext.runAsNonRoot", GONE),
            ("securityContext.runAsUser", 0),
            ("securityContext.seccompProfile.type", "Unconfined"),
            ("hostNetwork", True),
            ("automountServiceAccountToken", True),
            ("volumes.0", {"name": "disk-cache", "hostPath": {"path": "/"}}),
        )
    ),
    *(
        (checks.containers_are_restricted, SERVER, f"{CONTAINER}.{path}", value)
        for path, value in (
            ("securityContext", {}),
            ("securityContext.allowPrivilegeEscalation", True),
            ("securityContext.readOnlyRootFilesystem", False),
            ("securityContext.capabilities", {"drop": ["NET_RAW"]}),
            ("securityContext.capabilities.add", ["NET_ADMIN"]),
            ("securityContext.runAsUser", 0),
            ("securityContext.privileged", True),
            ("ports.0.hostPort", 80),
        )
    ),
)

_OF_SERVERS = (
    *(
        (server.probes_ask_the_servers_routes, SERVER, f"{CONTAINER}.{path}", value)
        for path, value in (
            ("readinessProbe.httpGet.path", "/ready"),
            ("livenessProbe.httpGet.path", "/readyz"),
            ("startupProbe.httpGet.port", "https"),
        )
    ),
    *(
        (server.probes_are_patient, SERVER, f"{CONTAINER}.{path}", value)
        for path, value in (
            ("readinessProbe.timeoutSeconds", 1),
            ("readinessProbe.periodSeconds", 60),
            ("livenessProbe.failureThreshold", 1),
            ("startupProbe.failureThreshold", 3),
        )
    ),
    *(
        (server.variables_are_settings, SETTINGS, "data.+", {name: "8GiB"})
        for name in (
            "GPT2SERVE_MODEL_CACHE",
            "GPT2SERVE_model_cache_bytes",
            "MODEL_CACHE_BYTES",
            "GPT2SERVE_STORE ",
        )
    ),
    (server.variables_are_settings, SERVER, f"{CONTAINER}.env.1.name", "GPT2SERVE_ADMIN"),
    *(
        (server.settings_fit_the_pod, SETTINGS, f"data.GPT2SERVE_{name}", value)
        for name, value in (
            ("MODEL_CACHE_BYTES", "8Gi"),
            ("DEVICE", "gpu"),
            ("PORT", "8080"),
            ("HOST", "127.0.0.1"),
            ("STORE", GONE),
        )
    ),
    (server.settings_fit_the_pod, SERVER, f"{CONTAINER}.envFrom.0", GONE),
    (server.settings_fit_the_pod, SERVER, f"{CONTAINER}.env.0", GONE),
    *(
        (server.files_of_settings_are_there, SETTINGS, f"data.GPT2SERVE_{name}", value)
        for name, value in (
            ("STORE", "/models"),
            ("API_KEY_FILE", "/etc/gpt2serve/api-keys/key"),
            ("API_KEY_FILE", "/etc/gpt2serve/keys"),
            ("DISK_CACHE", "/var/cache/other"),
        )
    ),
    (server.grace_is_long_enough, SERVER, f"{POD}.terminationGracePeriodSeconds", 84),
    (server.grace_is_long_enough, SERVER, f"{POD}.terminationGracePeriodSeconds", GONE),
    (server.grace_is_long_enough, SERVER, f"{CONTAINER}.lifecycle.preStop.sleep.seconds", 20),
    (server.grace_is_long_enough, SETTINGS, "data.GPT2SERVE_DRAIN_SECONDS", "90"),
    (server.grace_is_long_enough, SETTINGS, "data.GPT2SERVE_DRAIN_DELAY", "0"),
    (server.memory_is_enough, SETTINGS, "data.GPT2SERVE_MODEL_CACHE_BYTES", "10GiB"),
    (server.memory_is_enough, SETTINGS, "data.GPT2SERVE_KV_CACHE_BYTES", "4GiB"),
    (server.memory_is_enough, SERVER, f"{CONTAINER}.resources.limits.memory", "10Gi"),
    (server.memory_is_enough, SERVER, f"{CONTAINER}.resources.requests.memory", "8Gi"),
    (server.disk_is_enough, SETTINGS, "data.GPT2SERVE_DISK_CACHE_BYTES", "66GiB"),
    (server.disk_is_enough, SERVER, f"{CONTAINER}.resources.limits.ephemeral-storage", "66Gi"),
)

_OF_COMPONENTS = (
    (traffic.autoscalers_have_a_target, KEDA, SERVER, "spec.+", {"replicas": 3}),
    (traffic.autoscalers_have_a_target, HPA, SERVER, "spec.+", {"replicas": 3}),
    (traffic.autoscalers_have_a_target, KEDA, SCALER, "spec.scaleTargetRef.name", "server"),
    (
        traffic.autoscalers_have_a_target,
        HPA,
        "HorizontalPodAutoscaler/gpt2serve",
        "spec.scaleTargetRef.kind",
        "StatefulSet",
    ),
    (
        traffic.autoscalers_ask_for_real_metrics,
        KEDA,
        SCALER,
        "spec.triggers.0.metadata.query",
        'sum(gpt2serve_waiting{namespace="gpt2serve"})',
    ),
    (
        traffic.autoscalers_ask_for_real_metrics,
        KEDA,
        SCALER,
        "spec.triggers.2.metadata.query",
        "sum(gpt2serve_requests_running)",
    ),
    (
        traffic.autoscalers_ask_for_real_metrics,
        HPA,
        "HorizontalPodAutoscaler/gpt2serve",
        "spec.metrics.1.pods.metric.name",
        "gpt2serve_queue_seconds",
    ),
    *(
        (traffic.routes_lead_to_services, GATEWAY, ROUTE, f"spec.rules.0.{path}", value)
        for path, value in (
            ("backendRefs.0.port", 8080),
            ("backendRefs.0.name", "router"),
            ("matches.2.path.value", "/generates"),
            ("matches.2.path.value", "/metrics"),
            ("matches.0.path.type", "PathPrefix"),
            ("timeouts.request", "15s"),
        )
    ),
    (traffic.routes_come_from_gateways, GATEWAY, ROUTE, "spec.parentRefs.0.name", "eg"),
    (traffic.routes_come_from_gateways, GATEWAY, ROUTE, "spec.parentRefs.0.sectionName", "http"),
    (traffic.routes_come_from_gateways, GATEWAY, ROUTE, "spec.hostnames.0", "example.com"),
    (
        traffic.routes_come_from_gateways,
        GATEWAY,
        GATE,
        "spec.listeners.0.tls.certificateRefs.0.name",
        "tls",
    ),
    (
        traffic.policies_hang_on_something,
        HASHING,
        "BackendTrafficPolicy/gpt2serve",
        "spec.targetRefs.0.name",
        "route",
    ),
    (
        traffic.policies_hang_on_something,
        HASHING,
        "EnvoyExtensionPolicy/gpt2serve",
        "spec.lua.0.valueRef.name",
        "script",
    ),
)

_OF_JOBS = (
    (jobs.scripts_and_variables_agree, EXPORT_SETTINGS, "data.+", {"CHECKPONTS": "s3://x"}),
    (jobs.scripts_and_variables_agree, EXPORT_SETTINGS, "data.PACKAGES", GONE),
    (jobs.shares_are_completions, EXPORT_SETTINGS, "data.SHARES", "10"),
    (jobs.shares_are_completions, EXPORT, "spec.completions", 10),
    (jobs.shares_are_completions, EXPORT, f"{CONTAINER}.env.0", GONE),
    (
        jobs.shares_are_completions,
        EXPORT,
        f"{CONTAINER}.env.0.valueFrom.fieldRef.fieldPath",
        "metadata.name",
    ),
    (
        jobs.failures_are_of_its_container,
        EXPORT,
        "spec.podFailurePolicy.rules.1.onExitCodes.containerName",
        "exporter",
    ),
    (jobs.failures_are_of_its_container, EXPORT, f"{POD}.restartPolicy", "OnFailure"),
    (jobs.disks_of_jobs_are_enough, EXPORT, f"{POD}.volumes.0.emptyDir.sizeLimit", "40Gi"),
)

MUTATIONS = (
    *(Mutation(("jobs/export-bucket",), *each) for each in _OF_JOBS),
    *(Mutation(CPU, *each) for each in (*_OF_OBJECTS, *_OF_SELECTORS, *_OF_SERVERS)),
    *(Mutation(of, check, *rest) for check, of, *rest in _OF_COMPONENTS),
    Mutation(
        LOCAL,
        checks.references_exist,
        "PersistentVolumeClaim/gpt2serve-models",
        "metadata.name",
        "x",
    ),
    Mutation(
        LOCAL,
        server.files_of_settings_are_there,
        SERVER,
        f"{CONTAINER}.volumeMounts.0.readOnly",
        False,
    ),
    Mutation(GPU, server.memory_is_enough, SERVER, f"{CONTAINER}.resources.limits.memory", "1Gi"),
)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_it_is_noticed(mutation: Mutation) -> None:
    manifests = manifests_of(*mutation.of)
    assert list(mutation.check(manifests)) == []
    mutate(manifests, mutation)
    assert list(mutation.check(manifests)) != []


def test_every_check_can_fail() -> None:
    assert {mutation.check for mutation in MUTATIONS} == set(checks.ALL_CHECKS)


def test_the_files_of_the_hpa_and_the_adapter_agree() -> None:
    assert adapter_metrics() == {
        "gpt2serve_requests_waiting",
        "gpt2serve_requests_running",
        "gpt2serve_queue_seconds_p95",
    }
