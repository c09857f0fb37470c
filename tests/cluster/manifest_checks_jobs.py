"""What must hold of the jobs that export."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tests.cluster.manifest_checks_server import LIBRARIES
from tests.cluster.manifest_parts import environment_of, ephemeral_storage_is_enough, name_of
from tests.cluster.manifests import Manifest, of_kind

#: Of the libraries that the exporter uses.
_ITS_LIBRARIES = {"OMP_NUM_THREADS", "HF_TOKEN", "HF_HOME"}
_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def _parts(job: Manifest) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pod and its one container."""
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return pod, container


def script_of(manifests: list[Manifest], job: Manifest) -> str:
    """What its container runs."""
    pod, container = _parts(job)
    (name,) = [each["configMap"]["name"] for each in pod["volumes"] if "configMap" in each]
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == "script"]
    file = container["command"][-1].removeprefix(f"{mount['mountPath']}/")
    for found in of_kind(manifests, "ConfigMap"):
        if found["metadata"]["name"] == name:
            return str(found["data"][file])
    return ""


def scripts_and_variables_agree(manifests: list[Manifest]) -> Iterator[str]:
    """Each variable means something to the script, or to a library."""
    for job in of_kind(manifests, "Job"):
        _, container = _parts(job)
        asked = set(re.findall(r"\$\{?([A-Z_]+)", script_of(manifests, job)))
        given = {
            *environment_of(manifests, container),
            *(each["name"] for each in container["env"]),
        }
        for name in given - asked - _ITS_LIBRARIES:
            if not LIBRARIES.match(name):
                yield f"{name_of(job)}: nobody asks for {name}"
        if not {"PACKAGES", "CHECKPOINT"} <= given & asked:
            yield f"{name_of(job)}: from where, and to where?"


def shares_are_completions(manifests: list[Manifest]) -> Iterator[str]:
    for job in of_kind(manifests, "Job"):
        _, container = _parts(job)
        index = [each for each in container["env"] if each["name"] == "INDEX"]
        shares = environment_of(manifests, container).get("SHARES", "1")
        if int(shares) != job["spec"].get("completions", 1):
            yield f"{name_of(job)}: {shares} shares"
        if (job["spec"].get("completionMode") == "Indexed") != bool(index):
            yield f"{name_of(job)}: it does not know which share is its own"
        if index and index[0]["valueFrom"]["fieldRef"]["fieldPath"] != _INDEX:
            yield f"{name_of(job)}: {index[0]}"


def failures_are_of_its_container(manifests: list[Manifest]) -> Iterator[str]:
    for job in of_kind(manifests, "Job"):
        pod, container = _parts(job)
        for rule in job["spec"]["podFailurePolicy"]["rules"]:
            name = rule.get("onExitCodes", {}).get("containerName", container["name"])
            if name != container["name"]:
                yield f"{name_of(job)}: there is no container {name}"
        if pod["restartPolicy"] != "Never":
            yield f"{name_of(job)}: its failures are not looked at"


def disks_of_jobs_are_enough(manifests: list[Manifest]) -> Iterator[str]:
    for job in of_kind(manifests, "Job"):
        yield from ephemeral_storage_is_enough(name_of(job), *_parts(job))


CHECKS = (
    scripts_and_variables_agree,
    shares_are_completions,
    failures_are_of_its_container,
    disks_of_jobs_are_enough,
)
