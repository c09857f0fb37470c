"""What must hold between a pod that runs gpt2serve and the server's own settings and routes."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gpt2serve.api import serving
from gpt2serve.api.health import PING_SECONDS
from gpt2serve.errors import SettingsError
from gpt2serve.settings import ENVIRONMENT_PREFIX, EngineSettings, ServerSettings, is_url
from tests.cluster.manifest_parts import (
    documented_secrets,
    empty_dirs,
    environment_of,
    ephemeral_storage_is_enough,
    ports_of,
    routes,
    servers_of,
    settings_of,
    size,
    volume_at,
)
from tests.cluster.manifests import Manifest

#: Variables of the libraries that the server uses: docs/stores.md, docs/observability.md.
LIBRARIES = re.compile(r"AWS_|GOOGLE_|AZURE_|OTEL_")

#: Memory beside models and KV cache: 63 MiB for the idle process, what single steps take, and
#: room for the page cache, which holds the files that models are mapped from. Measured under
#: load, without the page cache: docs/decisions/0025-manifests.md.
REST = 1024**3
#: On a GPU the budgets are the device's memory.
MEMORY_OF_A_GPU_HOST = 2 * 1024**3
#: Seconds between what the server needs at most and the end that Kubernetes sets.
SPARE_SECONDS = 5
#: The shortest drain delay: a balancer's look every second or two, twice.
NOTICED = 5
#: Seconds of silence after which a server is taken out, and after which it is started again.
UNREADY, DEAD = 30, 60
#: What lies on the disk cache's volume beside packages: locks, and a file that is being fetched.
SPARE_DISK = 64 * 1024**2

_PROBES = {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}


def probes_ask_the_servers_routes(manifests: list[Manifest]) -> Iterator[str]:
    for name, pod, container in servers_of(manifests):
        for kind, path in _PROBES.items():
            asked = container[f"{kind}Probe"]["httpGet"]
            if asked["path"] != path or path not in routes():
                yield f"{name}: {kind} probe asks {asked['path']}"
            if asked["port"] not in ports_of(pod):
                yield f"{name}: {kind} probe asks port {asked['port']}"


def probes_are_patient(manifests: list[Manifest]) -> Iterator[str]:
    """A busy server is not killed, and one that is stuck gets no work for long."""
    for name, _, container in servers_of(manifests):
        probes = {kind: container[f"{kind}Probe"] for kind in _PROBES}
        lasts = {
            kind: each["periodSeconds"] * each["failureThreshold"] for kind, each in probes.items()
        }
        if lasts["readiness"] > UNREADY or min(lasts["startup"], lasts["liveness"]) < DEAD:
            yield f"{name}: {lasts}"
        if probes["readiness"]["timeoutSeconds"] <= PING_SECONDS:
            yield f"{name}: the readiness probe gives up before the server does"


def variables_are_settings(manifests: list[Manifest]) -> Iterator[str]:
    known = {*EngineSettings.__struct_fields__, *ServerSettings.__struct_fields__}
    names = {ENVIRONMENT_PREFIX + name.upper() for name in known}
    for name, _, container in servers_of(manifests):
        variables = {each["name"] for each in container.get("env", [])}
        for variable in variables | environment_of(manifests, container).keys():
            if variable not in names and not LIBRARIES.match(variable):
                yield f"{name}: there is no setting {variable}"


def settings_fit_the_pod(manifests: list[Manifest]) -> Iterator[str]:
    for name, pod, container in servers_of(manifests):
        try:
            engine, server = settings_of(manifests, container)
        except SettingsError as error:
            yield f"{name}: {error}"
            continue
        if server.port not in ports_of(pod).values():
            yield f"{name}: listens on {server.port}, which is no port of the container"
        if server.host in ("127.0.0.1", "::1", "localhost"):
            yield f"{name}: listens inside the pod only"
        if engine.threads != float(container["resources"]["requests"]["cpu"]):
            yield f"{name}: {engine.threads} threads are not as many cores as are asked for"


def files_of_settings_are_there(manifests: list[Manifest]) -> Iterator[str]:
    for name, pod, container in servers_of(manifests):
        engine, server = settings_of(manifests, container)
        if not is_url(engine.store) and not volume_at(container, pod, engine.store).get("readOnly"):
            yield f"{name}: the store {engine.store} is not mounted, or not read-only"
        cache = volume_at(container, pod, str(engine.disk_cache))
        if not cache or cache["readOnly"]:
            yield f"{name}: the disk cache {engine.disk_cache} cannot be written"
        if (file := server.api_key_file) is not None:
            secret = volume_at(container, pod, str(file)).get("secret", {}).get("secretName")
            if (secret, file.name) not in documented_secrets():
                yield f"{name}: {file} is no key of a secret in k8s/README.md"


def grace_is_long_enough(manifests: list[Manifest]) -> Iterator[str]:
    for name, pod, container in servers_of(manifests):
        _, server = settings_of(manifests, container)
        stop = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        needed = stop + server.drain_delay + server.drain_seconds + serving._FLUSH_SECONDS
        given = pod.get("terminationGracePeriodSeconds", 30)
        if given < needed + SPARE_SECONDS:
            yield f"{name}: {given} s of grace, and {needed} s may be needed"
        if server.drain_delay < NOTICED:
            yield f"{name}: no time for balancers to notice"


def memory_is_enough(manifests: list[Manifest]) -> Iterator[str]:
    for name, _, container in servers_of(manifests):
        engine, _ = settings_of(manifests, container)
        needed = engine.model_cache_bytes + engine.kv_cache_bytes + REST
        if engine.device == "cuda":
            needed = MEMORY_OF_A_GPU_HOST
        given, asked = (container["resources"][kind]["memory"] for kind in ("limits", "requests"))
        if size(given) < needed:
            yield f"{name}: {given} are less than {needed / 1024**2:.0f} MiB"
        if given != asked:
            yield f"{name}: memory beyond what is asked for may be taken away"


def disk_is_enough(manifests: list[Manifest]) -> Iterator[str]:
    for name, pod, container in servers_of(manifests):
        engine, _ = settings_of(manifests, container)
        volumes = empty_dirs(pod)
        cache = volume_at(container, pod, str(engine.disk_cache)).get("name", "")
        if size(volumes[cache]["sizeLimit"]) < engine.disk_cache_bytes + SPARE_DISK:
            yield f"{name}: the disk cache's volume is smaller than the cache"
        yield from ephemeral_storage_is_enough(name, pod, container)


CHECKS = (
    probes_ask_the_servers_routes,
    probes_are_patient,
    variables_are_settings,
    settings_fit_the_pod,
    files_of_settings_are_there,
    grace_is_long_enough,
    memory_is_enough,
    disk_is_enough,
)
