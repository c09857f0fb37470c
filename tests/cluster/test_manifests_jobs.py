"""The script of the export jobs, run with the jobs' own variables between two real buckets."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import obstore
import pytest

from tests import s3_server
from tests.cluster.manifest_checks_jobs import script_of
from tests.cluster.manifest_parts import environment_of
from tests.cluster.manifests import manifests_of, of_kind
from tests.export_fixtures import write_checkpoint

pytestmark = pytest.mark.cluster

_NAMES = (f"models-{number}" for number in itertools.count())


@dataclass(frozen=True)
class Bucket:
    """`checkpoints/` holds me/a, me/b, which is broken, and me/c; `packages/` is empty."""

    port: int
    name: str

    @property
    def client(self) -> Any:
        return s3_server.client(self.port, self.name)

    @property
    def published(self) -> set[str]:
        paths = {meta["path"] for page in obstore.list(self.client, "packages") for meta in page}
        return {path.partition("/cpu-int8/")[0].removeprefix("packages/") for path in paths}


@pytest.fixture
def bucket(s3_port: int, tmp_path: Path) -> Bucket:
    made = Bucket(s3_port, next(_NAMES))
    for seed, model in enumerate(("me/a", "me/b", "me/c")):
        folder = write_checkpoint(tmp_path / "made" / model, seed=seed)
        if model == "me/b":
            (folder / "model.safetensors").write_bytes(b"not weights")
        for path in folder.iterdir():
            obstore.put(made.client, f"checkpoints/{model}/{path.name}", path)
    return made


def run(job: str, work: Path, bucket: Bucket, **changes: str) -> subprocess.CompletedProcess[str]:
    """The job's container as a process: its script, with its variables but for `changes`."""
    manifests = manifests_of(f"jobs/{job}")
    (found,) = of_kind(manifests, "Job")
    (container,) = found["spec"]["template"]["spec"]["containers"]
    work.mkdir()
    # The region is the job's own.
    variables = s3_server.environment(bucket.port) | environment_of(manifests, container)
    variables |= {
        "CHECKPOINTS": f"s3://{bucket.name}/checkpoints",
        "PACKAGES": f"s3://{bucket.name}/packages",
        "WORK": str(work),
        # Random weights say little; how exact they are is tested elsewhere.
        "OPTIONS": "--target cpu --no-verify",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    }
    return subprocess.run(
        ["/bin/sh", "-c", script_of(manifests, found)],
        env=variables | changes,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_one_checkpoint(bucket: Bucket, tmp_path: Path) -> None:
    done = run("export", tmp_path / "work", bucket, CHECKPOINT="me/a")
    assert done.returncode == 0, done.stdout + done.stderr
    assert bucket.published == {"me/a"}


def test_shares_of_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    """A share that has nothing to do is no failure; the one with the broken checkpoint is."""
    shares = (("0", "2"), ("1", "2"), ("3", "4"))
    codes = [
        run("export-bucket", tmp_path / index, bucket, INDEX=index, SHARES=count).returncode
        for index, count in shares
    ]
    assert codes == [0, 1, 0]
    assert bucket.published == {"me/a", "me/c"}


def test_one_failure_does_not_hold_up_the_rest(bucket: Bucket, tmp_path: Path) -> None:
    done = run("export-bucket", tmp_path / "work", bucket, INDEX="0", SHARES="1")
    assert done.returncode == 1
    assert "me/b" in done.stdout
    assert bucket.published == {"me/a", "me/c"}


@pytest.mark.parametrize(
    "wrong", [{"CHECKPOINTS": "nothing"}, {"CHECKPOINT": "me/nobody"}, {"OPTIONS": "--target tpu"}]
)
def test_exit_status_2_is_what_another_try_does_not_help(
    bucket: Bucket, tmp_path: Path, wrong: dict[str, str]
) -> None:
    """`podFailurePolicy` relies on it."""
    if "CHECKPOINTS" in wrong:
        wrong = {"CHECKPOINTS": f"s3://{bucket.name}/nothing"}
    done = run("export-bucket", tmp_path / "work", bucket, INDEX="0", SHARES="1", **wrong)
    assert done.returncode == 2, done.stdout + done.stderr
    assert bucket.published == set()
