"""`k8s/`, rendered by kubectl, held against schemas, checkov, and checks of our own."""

from __future__ import annotations

import os
import re
import subprocess
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpt2export import __version__
from tests.cluster.manifest_checks import ALL_CHECKS
from tests.cluster.manifest_parts import containers_of, environment_of, pods_of
from tests.cluster.manifests import COMBINATIONS, K8S, Manifest, manifests_of, named, text_of
from tests.cluster.programs import program

pytestmark = pytest.mark.cluster

#: Kinds of these come with Kubernetes, and kubernetes-validate knows them.
_CORE = {"v1", "apps/v1", "autoscaling/v2", "batch/v1", "networking.k8s.io/v1", "policy/v1"}
#: preStop: sleep came with 1.30, and the server is tried against the newest schemas as well.
_VERSIONS = ("1.30", "1.37")


def _name(combination: Sequence[str]) -> str:
    return "+".join(part.removeprefix("components/") for part in combination)


def _core(manifests: list[Manifest]) -> list[Manifest]:
    return [each for each in manifests if each["apiVersion"] in _CORE]


def _write(folder: Path, manifests: list[Manifest], name: str = "all") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump_all(manifests))
    return path


def _validate(paths: Sequence[Path], version: str) -> subprocess.CompletedProcess[str]:
    command = [program("kubernetes-validate"), "--strict", "--quiet", "-k", version]
    return subprocess.run([*command, *map(str, paths)], capture_output=True, text=True, timeout=300)


def _checkov(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [program("checkov"), "--config-file", str(K8S / ".checkov.yaml")]
    return subprocess.run(
        [*command, "--directory", str(folder)], capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The core kinds of every combination, a file each."""
    folder = tmp_path_factory.mktemp("rendered")
    return [
        _write(folder, _core(manifests_of(*each)), _name(each).replace("/", "-"))
        for each in COMBINATIONS
    ]


@pytest.mark.parametrize("combination", COMBINATIONS, ids=_name)
def test_what_is_applied_together_fits_together(combination: tuple[str, ...]) -> None:
    manifests = manifests_of(*combination)
    wrong = [line for check in ALL_CHECKS for line in check(manifests)]
    assert wrong == []


def test_every_kustomization_is_tested() -> None:
    tested = {part for combination in COMBINATIONS for part in combination}
    there = {str(path.parent.relative_to(K8S)) for path in K8S.rglob("kustomization.yaml")}
    assert there - tested == {"base", "envoy"}, "which are part of every fleet"


def test_nothing_deprecated_is_in_a_kustomization() -> None:
    """`text_of` fails where kubectl warns of it; here it is seen to."""
    deprecated = {"bases", "commonLabels", "patchesStrategicMerge", "patchesJson6902", "vars"}
    for path in K8S.rglob("kustomization.yaml"):
        assert not deprecated & yaml.safe_load(path.read_text()).keys(), path


@pytest.mark.parametrize("version", _VERSIONS)
def test_schemas_hold(rendered: list[Path], version: str) -> None:
    done = _validate(rendered, version)
    assert done.returncode == 0, done.stdout + done.stderr


def test_schemas_notice_a_typing_error(tmp_path: Path) -> None:
    text = text_of("overlays/cpu").replace("  replicas: 3\n", "  replica: 3\n")
    broken = _write(tmp_path, _core(list(yaml.safe_load_all(text))))
    assert _validate([broken], _VERSIONS[-1]).returncode == 1


def test_checkov_finds_nothing(rendered: list[Path]) -> None:
    done = _checkov(rendered[0].parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout


def test_checkov_finds_what_is_wrong(tmp_path: Path) -> None:
    text = text_of("overlays/local").replace(
        "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false"
    )
    _write(tmp_path, _core(list(yaml.safe_load_all(text))))
    done = _checkov(tmp_path)
    assert done.returncode == 1
    assert "CKV_K8S_22" in done.stdout


def test_each_exception_is_explained_and_needed(rendered: list[Path], tmp_path: Path) -> None:
    config = K8S / ".checkov.yaml"
    lines = config.read_text().splitlines()
    skipped = yaml.safe_load(config.read_text())["skip-check"]
    for name in skipped:
        assert lines[lines.index(f"  - {name}") - 1].startswith("  #"), f"{name}: why?"
    command = [program("checkov"), "--framework", "kubernetes", "--compact", "--quiet"]
    command += ["--skip-download", "--check", ",".join(skipped), "--directory"]
    done = subprocess.run(
        [*command, str(rendered[0].parent)], capture_output=True, text=True, timeout=300
    )
    assert [name for name in skipped if name not in done.stdout] == []


@pytest.mark.parametrize("combination", COMBINATIONS, ids=_name)
def test_our_images_are_of_this_version(combination: tuple[str, ...]) -> None:
    for name, pod, _ in pods_of(manifests_of(*combination)):
        for container in containers_of(pod):
            image, _, tag = container["image"].rpartition(":")
            if image in ("gpt2serve", "gpt2export"):
                assert tag.removesuffix("-cuda") == __version__, name


def test_a_changed_setting_is_a_rollout() -> None:
    """The name of the settings is made of them, and it is the new name that pods ask for."""
    names = {
        source["configMapRef"]["name"]
        for overlay in ("overlays/local", "overlays/cpu")
        for _, pod, labels in pods_of(manifests_of(overlay))
        if labels["app.kubernetes.io/component"] == "server"
        for source in pod["containers"][0]["envFrom"]
        if "configMapRef" in source
    }
    assert len(names) == 2
    assert all(name.startswith("gpt2serve-settings-") for name in names)


def _kustomized(folder: Path, kustomization: dict[str, Any]) -> list[Manifest]:
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    command = [program("kubectl"), "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def _examples() -> list[Any]:
    """The blocks of YAML in the README."""
    text = (K8S / "README.md").read_text()
    blocks = re.findall(r"^( *)```yaml\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL)
    return [yaml.safe_load(textwrap.dedent(block)) for _, block in blocks]


def test_the_overlay_of_the_readme(tmp_path: Path) -> None:
    mine, _ = _examples()
    for part in ("resources", "components"):
        # From the repository to this clone of it.
        paths = [url.split("/k8s/")[1].partition("?")[0] for url in mine[part]]
        mine[part] = [os.path.relpath(K8S / path, tmp_path.resolve()) for path in paths]
    digest = f"sha256:{'0' * 64}"
    mine["images"][0]["digest"] = digest
    manifests = _kustomized(tmp_path, mine)

    deployment = named(manifests, "Deployment", "gpt2serve")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"registry.example.com/gpt2serve@{digest}"
    variables = environment_of(manifests, container)
    assert variables["GPT2SERVE_STORE"] == "s3://your-bucket/packages"
    assert variables["GPT2SERVE_DEVICE"] == "cpu", "what the overlay says stays"
    ours = {"images_are_ours"}
    wrong = [
        line for check in ALL_CHECKS if check.__name__ not in ours for line in check(manifests)
    ]
    assert wrong == []


def test_the_other_disk_of_the_readme(tmp_path: Path) -> None:
    """It takes the place of the volume, and Kubernetes would take it."""
    _, volume = _examples()
    patch = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "gpt2serve"},
        "spec": {"template": {"spec": {"volumes": volume}}},
    }
    overlay = os.path.relpath(K8S / "overlays" / "cpu", tmp_path.resolve())
    manifests = _kustomized(
        tmp_path, {"resources": [overlay], "patches": [{"patch": yaml.safe_dump(patch)}]}
    )
    pod = named(manifests, "Deployment", "gpt2serve")["spec"]["template"]["spec"]
    (found,) = [each for each in pod["volumes"] if each["name"] == "disk-cache"]
    assert found.keys() == {"name", "ephemeral"}
    assert _validate([_write(tmp_path, _core(manifests))], _VERSIONS[-1]).returncode == 0
