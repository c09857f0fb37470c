"""What `kubectl kustomize` makes of `k8s/`: read once, looked at by the tests of the manifests."""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.programs import ROOT, program

K8S = ROOT / "k8s"

#: An object as Kubernetes reads it.
Manifest = dict[str, Any]


def _found(folder: str) -> list[str]:
    """Kustomizations below a folder of `k8s/`, by their path in it."""
    found = sorted(path.parent for path in (K8S / folder).rglob("kustomization.yaml"))
    return [str(path.relative_to(K8S)) for path in found]


OVERLAYS, JOBS, COMPONENTS = _found("overlays"), _found("jobs"), _found("components")

#: These change what another one brought.
_AFTER = {"components/gateway/hashing": "components/gateway"}


def _with(overlay: str, component: str) -> tuple[str, ...]:
    before = _AFTER.get(component)
    return (overlay, before, component) if before else (overlay, component)


#: What somebody may apply: a folder of `k8s/`, then components on top of it.
COMBINATIONS: tuple[tuple[str, ...], ...] = (
    *((folder,) for folder in (*OVERLAYS, *JOBS)),
    *(_with("overlays/cpu", component) for component in COMPONENTS),
    # All at once, but for those that are in place of each other.
    ("overlays/gpu", *(each for each in COMPONENTS if each != "components/autoscaling/hpa")),
)


@functools.cache
def text_of(folder: str, *components: str) -> str:
    """YAML of one folder with components on top, as a user's own kustomization would take them."""
    if not components:
        return _kustomize(K8S / folder)
    with tempfile.TemporaryDirectory() as name:
        mine = Path(name).resolve()

        def path_to(part: str) -> str:
            return os.path.relpath(K8S / part, mine)

        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [path_to(folder)],
            "components": [path_to(component) for component in components],
        }
        (mine / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return _kustomize(mine)


def manifests_of(folder: str, *components: str) -> list[Manifest]:
    """A copy each time: a test may change it."""
    return [each for each in yaml.safe_load_all(text_of(folder, *components)) if each]


def _kustomize(folder: Path) -> str:
    command = [program("kubectl"), "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    # Deprecated fields are told as warnings.
    assert not done.stderr, done.stderr
    return done.stdout


def named(manifests: Iterable[Manifest], kind: str, name: str) -> Manifest:
    """The one object of this kind and name."""
    (found,) = [each for each in of_kind(manifests, kind) if each["metadata"]["name"] == name]
    return found


def of_kind(manifests: list[Manifest], *kinds: str) -> Iterator[Manifest]:
    return (each for each in manifests if each["kind"] in kinds)
