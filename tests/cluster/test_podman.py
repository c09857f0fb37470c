"""`k8s/overlays/local` run for real: podman plays what kubectl renders, with the built image."""

from __future__ import annotations

import base64
import copy
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from benchmarks.common.servers import free_port
from tests.cluster.containers import Container, Engine
from tests.cluster.manifests import Manifest, manifests_of, named
from tests.e2e.server_support import LONG, MODEL, SEQUENCES, SHORT, TOKENS, events, eventually

pytestmark = pytest.mark.cluster

ADMIN_KEY = "0123456789abcdef0123456789abcdef"
_PLAYED = ("ConfigMap", "PersistentVolumeClaim", "Deployment")
_KEYS = "gpt2serve-api-keys"


def for_podman(manifests: list[Manifest], store: Path, port: int, key_line: str) -> list[Manifest]:
    """What podman 4.3.1 can play of an overlay; everything else stays as kubectl rendered it."""
    kept = [copy.deepcopy(each) for each in manifests if each["kind"] in _PLAYED]
    claim = named(kept, "PersistentVolumeClaim", "gpt2serve-models")
    # It knows no PersistentVolume: the folder is said at the claim.
    claim["metadata"]["annotations"] = {
        "volume.podman.io/type": "none",
        "volume.podman.io/mount-options": "bind",
        "volume.podman.io/device": str(store),
    }
    deployment = named(kept, "Deployment", "gpt2serve")
    spec = deployment["spec"]["template"]["spec"]
    (server,) = spec["containers"]
    # A Service would make the way in: it knows none, and would take the same port of the machine.
    server["ports"][0] |= {"hostIP": "127.0.0.1", "hostPort": port}
    # It would call curl in the container, at port 0 since it knows no names of ports; the other
    # probes it ignores. The test asks them all itself.
    del server["livenessProbe"]
    # Secrets that are optional it leaves out even if they are there.
    for variable in server["env"]:
        if secret := variable["valueFrom"].get("secretKeyRef"):
            secret["optional"] = False
    server["envFrom"] = [each for each in server["envFrom"] if "secretRef" not in each]
    # And it puts them into files without decoding them.
    for volume in spec["volumes"]:
        if volume.get("secret", {}).get("secretName") == _KEYS:
            del volume["secret"]
            volume["configMap"] = {"name": _KEYS}
    keys = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": _KEYS},
        "data": {"keys": key_line},
    }
    # What a configuration is taken from must come before who takes it.
    return [keys, *sorted(kept, key=lambda each: str(each["kind"]))]


@dataclass(frozen=True)
class Pod:
    container: Container
    url: str
    client: httpx.Client
    deployment: Manifest

    @property
    def spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = self.deployment["spec"]["template"]["spec"]
        return spec

    @property
    def server(self) -> dict[str, Any]:
        (server,) = self.spec["containers"]
        container: dict[str, Any] = server
        return container

    def probe(self, name: str) -> int:
        """The status of the answer, asked for as the kubelet does; 0 is none."""
        probe = self.server[name]
        assert probe["httpGet"]["port"] == self.server["ports"][0]["name"]
        try:
            url = self.url + probe["httpGet"]["path"]
            return httpx.get(url, timeout=probe["timeoutSeconds"]).status_code
        except httpx.TransportError:
            return 0


@pytest.fixture
def pod(
    container_engine: Engine, server_image: str, readable_store: Path, tmp_path: Path
) -> Iterator[Pod]:
    rendered = manifests_of("overlays/local")
    settings = next(each for each in rendered if each["kind"] == "ConfigMap")
    settings["data"]["GPT2SERVE_API_KEY_FILE"] = "/etc/gpt2serve/api-keys/keys"
    key, line = api_key(container_engine, server_image)
    port = free_port()
    played = tmp_path / "played.yaml"
    played.write_text(yaml.safe_dump_all(for_podman(rendered, readable_store, port, line)))
    admin = tmp_path / "admin.json"
    admin.write_text(json.dumps({"key": base64.b64encode(ADMIN_KEY.encode()).decode()}))
    container_engine.podman("secret", "create", "gpt2serve-admin", str(admin))
    try:
        container_engine.podman("kube", "play", str(played))
        container = Container(container_engine, "gpt2serve-pod-0-server")
        url, bearer = f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {key}"}
        with httpx.Client(base_url=url, headers=bearer, timeout=60) as client:
            yield Pod(container, url, client, named(rendered, "Deployment", "gpt2serve"))
    finally:
        container_engine.run("podman", "kube", "down", str(played))
        container_engine.podman("secret", "rm", "--all")
        container_engine.podman("volume", "rm", "--all", "--force")


def api_key(engine: Engine, image: str) -> tuple[str, str]:
    """A key and its line in the file of keys."""
    make = ("python3", image, "-m", "gpt2serve.keys", "alice")
    done = engine.run("podman", "run", "--rm", "--entrypoint", *make)
    assert done.returncode == 0, done.stderr
    return done.stderr.split()[-1], done.stdout


def test_deployment_runs_serves_and_drains(pod: Pod) -> None:
    eventually(lambda: pod.probe("startupProbe") == 200, 60)
    eventually(lambda: pod.probe("readinessProbe") == 200, 60)
    assert pod.probe("livenessProbe") == 200

    answer = pod.client.post("/generate", json=SHORT | {"model": MODEL})
    assert answer.status_code == 200, answer.text
    nobody = httpx.post(f"{pod.url}/generate", json=SHORT | {"model": MODEL})
    assert nobody.status_code == 401
    admin = {"Authorization": f"Bearer {ADMIN_KEY}"}
    path = f"/admin/models/{MODEL}/info"
    assert pod.client.get(path, headers=admin).json()["state"] == "resident"
    assert pod.client.get(path).status_code == 401

    inside = pod.container.inspect()
    limits = pod.server["resources"]["limits"]["memory"]
    assert limits == f"{inside['HostConfig']['Memory'] >> 20}Mi"
    assert inside["HostConfig"]["ReadonlyRootfs"]
    variables = dict(text.split("=", 1) for text in inside["Config"]["Env"])
    assert variables["GPT2SERVE_THREADS"] == pod.server["resources"]["requests"]["cpu"]

    lines = (pod.container.process() / "status").read_text().splitlines()
    status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    context = pod.spec["securityContext"]
    assert set(status["Uid"]) == {str(context["runAsUser"])} == {"10001"}
    assert set(status["Gid"]) == {str(context["runAsGroup"])} == {"10001"}
    assert int(status["CapBnd"][0], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == (["1"], ["2"])

    _drains_without_cutting_a_stream(pod)


def _drains_without_cutting_a_stream(pod: Pod) -> None:
    """Stopped as the kubelet stops it after preStop; what was begun ends."""
    left = pod.spec["terminationGracePeriodSeconds"]
    left -= pod.server["lifecycle"]["preStop"]["sleep"]["seconds"]
    stop = pod.container.engine.command("podman", "stop", "--time", str(left), pod.container.name)
    with pod.client.stream("POST", "/generate", json=LONG | {"stream": True}) as answer:
        assert answer.status_code == 200, answer.read()
        lines = answer.iter_lines()
        next(lines)
        stopping = subprocess.Popen(stop, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            eventually(lambda: pod.probe("readinessProbe") == 503, 30)
            assert pod.probe("livenessProbe") == 200
            # Work is taken until balancers have had time to notice.
            late = pod.client.post("/generate", json=SHORT | {"model": MODEL})
            assert late.status_code == 200, late.text
            *_, last, end = events(lines)
            assert end == "[DONE]"
            assert last["usage"]["completion_tokens"] == SEQUENCES * TOKENS
        finally:
            _, errors = stopping.communicate(timeout=left + 30)
    assert stopping.returncode == 0, errors
    assert pod.container.wait() == 0
    log = [json.loads(line) for line in pod.container.log()]
    assert [each["signal"] for each in log if each["event"] == "draining"] == ["SIGTERM"]
