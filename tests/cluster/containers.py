"""Images built by a real buildah, from a base made by debootstrap, and run by a real podman.

Both work in a storage of their own, which is thrown away; GPT2SERVE_TEST_CONTAINERS=DIR keeps it in
that folder, and the next run builds only what has changed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.cluster.programs import ROOT, program
from tests.e2e.server_support import eventually

KEEP = "GPT2SERVE_TEST_CONTAINERS"
#: As the base that server/Dockerfile names: Debian 12 with Python 3.11.
_DEBIAN = "bookworm"
#: The image that the others are built from.
BASE = "localhost/base"
_CERTIFICATES = Path("/etc/ssl/certs")
USER = "10001:10001"
#: As a restricted pod runs, and stricter than podman's own --read-only, which leaves /run and
#: /var/tmp writable.
CONFINED = (
    *("--read-only", "--read-only-tmpfs=false", "--tmpfs", "/tmp"),
    *("--cap-drop", "all", "--security-opt", "no-new-privileges"),
)

# runc and cgroupfs work without systemd; podman's default limits are higher than a container may
# set; locks and logs do not go where another podman has its own.
_CONF = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=4096:4096"]
log_driver = "k8s-file"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
tmp_dir = "{tmp}"
[network]
network_backend = "netavark"
network_config_dir = "{networks}"
"""


@dataclass(frozen=True)
class Container:
    engine: Engine
    name: str

    def inspect(self) -> dict[str, Any]:
        (found,) = json.loads(self.engine.podman("inspect", "--type", "container", self.name))
        state: dict[str, Any] = found
        return state

    @property
    def running(self) -> bool:
        return bool(self.inspect()["State"]["Running"])

    def process(self) -> Path:
        """/proc/<number> of its process 1, seen from outside."""
        return Path("/proc") / str(self.inspect()["State"]["Pid"])

    def port(self) -> int:
        return int(self.engine.podman("port", self.name).rpartition(":")[2])

    def signal(self, name: str) -> None:
        self.engine.podman("kill", "--signal", name, self.name)

    def wait(self, seconds: float = 120) -> int:
        """Its exit status."""
        eventually(lambda: not self.running, seconds)
        return int(self.inspect()["State"]["ExitCode"])

    def log(self) -> list[str]:
        """All lines, of both outputs."""
        command = self.engine.command("podman", "logs", self.name)
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
        )
        return done.stdout.splitlines()


class Engine:
    """buildah and podman over one storage."""

    def __init__(self, folder: Path, *, keep: bool) -> None:
        self._work = folder
        self._keep = keep
        self._conf = folder / "containers.conf"
        self._conf.write_text(_CONF.format(tmp=folder / "tmp", networks=folder / "networks"))
        self._options = ["--root", str(folder / "root"), "--runroot", str(folder / "runroot")]

    def command(self, name: str, *arguments: str) -> list[str]:
        variables = f"CONTAINERS_CONF={self._conf}"
        return ["env", variables, program(name), *self._options, *arguments]

    def run(
        self, name: str, *arguments: str, seconds: float = 120
    ) -> subprocess.CompletedProcess[str]:
        command = self.command(name, *arguments)
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds)

    def podman(self, *arguments: str, seconds: float = 120) -> str:
        """What it printed."""
        done = self.run("podman", *arguments, seconds=seconds)
        assert done.returncode == 0, f"podman {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def _make_base(self) -> None:
        """If it is not there yet. Skips where it cannot be made."""
        if not self.run("podman", "image", "exists", BASE).returncode:
            return
        root = self._work / "base"
        included = "ca-certificates,python3,python3-venv"
        command = [program("debootstrap"), "--variant=minbase", f"--include={included}"]
        done = subprocess.run(
            [*command, _DEBIAN, str(root)], capture_output=True, text=True, timeout=1200
        )
        if done.returncode:
            pytest.skip(f"debootstrap makes no base image here: {_last_lines(done.stdout)}")
        archive = self._work / "base.tar"
        # Not COPY in a Dockerfile, which takes setuid bits away.
        subprocess.run(["tar", "-C", str(root), "-cf", str(archive), "."], check=True)
        shutil.rmtree(root)
        self.podman("import", str(archive), BASE)
        archive.unlink()

    def prepare(self) -> None:
        """Make the base. Skip where containers do not run, such as without cgroups."""
        self._check("info")
        self._make_base()
        self._check("run", "--rm", BASE, "true")

    def _check(self, *arguments: str) -> None:
        done = self.run("podman", *arguments)
        if done.returncode:
            pytest.skip(f"podman runs no container here: {_last_lines(done.stderr)}")

    def build(self, dockerfile: str, tag: str, **arguments: str) -> str:
        """The image `localhost/<tag>` of a Dockerfile of the project, from the local base."""
        image = f"localhost/{tag}"
        self._bud(ROOT / dockerfile, ROOT, image, BASE=BASE, **arguments)
        return image

    def _bud(self, dockerfile: Path, context: Path, tag: str, **arguments: str) -> None:
        options = ["bud", "--isolation", "chroot", "--pull-never", "--tag", tag]
        options += ["--layers"] if self._keep else []
        options += [f"--build-arg={name}={value}" for name, value in arguments.items()]
        options += self._pip_options()
        done = self.run("buildah", *options, "--file", str(dockerfile), str(context), seconds=1800)
        if done.returncode and "after connection broken by" in done.stderr + done.stdout:
            pytest.skip(f"{tag}: pip reaches no package index: {_last_lines(done.stderr)}")
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]

    def _pip_options(self) -> list[str]:
        """Options that let pip in a build do as pip does here.

        They are mounts, of which an image keeps the empty mount points only.
        """
        settings = _pip_settings()
        file = self._work / "pip.conf"
        file.write_text("\n".join(["[global]", *(f"{k} = {v}" for k, v in settings.items())]))
        mounts = {file: Path("/etc/pip.conf")}
        if _CERTIFICATES.is_dir():  # those of this machine's own authorities are not in the base
            mounts[_CERTIFICATES] = _CERTIFICATES
        named = [path for path in _paths_in(settings.values()) if _CERTIFICATES not in path.parents]
        mounts |= dict(zip(named, named, strict=True))
        return [f"--volume={outside}:{inside}:ro" for outside, inside in mounts.items()]

    @contextmanager
    def container(self, image: str, *arguments: str, options: Sequence[str]) -> Iterator[Container]:
        name = self.podman("run", "--detach", *options, image, *arguments).strip()
        try:
            yield Container(self, name)
        finally:
            self.run("podman", "rm", "--force", "--time", "0", name)

    @contextmanager
    def files(self, image: str) -> Iterator[Path]:
        """The image's files, to be read only."""
        folder = self.podman("image", "mount", image).strip()
        try:
            yield Path(folder)
        finally:
            self.run("podman", "image", "unmount", image)

    def image(self, name: str) -> dict[str, Any]:
        (found,) = json.loads(self.podman("inspect", "--type", "image", name))
        image: dict[str, Any] = found
        return image

    def clean(self) -> None:
        self.run("podman", "pod", "rm", "--all", "--force", "--time", "0")
        self.run("podman", "rm", "--all", "--force", "--time", "0")
        self.run("podman", "volume", "rm", "--all", "--force")
        self.run("podman", "secret", "rm", "--all")
        if not self._keep:
            self.run("podman", "rmi", "--all", "--force")
            # pytest keeps its folders; gigabytes should not be in them.
            shutil.rmtree(self._work / "root", ignore_errors=True)


def _pip_settings() -> Mapping[str, str]:
    """What pip is configured to do here, by files and by its environment; the latter wins."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    settings = {}
    for line in sorted(done.stdout.splitlines(), key=lambda line: line.startswith(":env:")):
        key, _, value = line.partition("=")
        settings[key.rpartition(".")[2]] = value.strip("'").replace("\\n", " ")
    return settings


def _paths_in(values: Iterable[str]) -> Iterator[Path]:
    """Files and folders that pip's settings name, as paths or as file: URLs."""
    for word in " ".join(values).split():
        url = urlsplit(word)
        if url.scheme == "file":
            yield Path(url.path).parent  # an index names files beside it
        elif word.startswith("/") and Path(word).exists():
            yield Path(word)


def _last_lines(text: str) -> str:
    return " / ".join(text.strip().splitlines()[-3:])


@contextmanager
def engine(work: Path) -> Iterator[Engine]:
    """Skips where a part is missing."""
    for name in ("buildah", "catatonit", "debootstrap", "podman", "runc"):
        program(name)
    if os.geteuid():
        pytest.skip("debootstrap and mounts need root")
    kept = os.environ.get(KEEP)
    folder = Path(kept).absolute() if kept else work
    folder.mkdir(parents=True, exist_ok=True)
    made = Engine(folder, keep=bool(kept))
    try:
        made.prepare()
        yield made
    finally:
        made.clean()
