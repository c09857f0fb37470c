"""The images, built as `docker build` builds them, and run as a restricted pod runs them."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import obstore
import pytest

from tests import s3_server
from tests.cluster.containers import BASE, CONFINED, USER, Container, Engine
from tests.cluster.manifests import manifests_of, of_kind
from tests.cluster.programs import ROOT, program
from tests.e2e.server_support import (
    LONG,
    MODEL,
    PROMPT,
    SEQUENCES,
    TOKENS,
    Server,
    events,
    eventually,
)

pytestmark = pytest.mark.cluster

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
#: Bytes that an image has more than its base; docs/containers.md says how many it really are.
SERVER_BYTES, EXPORT_BYTES = 330e6, 1450e6
REQUEST = {"model": MODEL, "prompt": PROMPT, "max_new_tokens": 20, "do_sample": True, "seed": 7}
PACKAGE = "cpu-int8"
#: Models and PyTorch do not belong into the server, nor what installs packages into either.
FOREIGN = {"torch", "transformers", "optimum", "safetensors", "ray", "pytest", "pip"}
#: Of checkov: `FROM ${BASE}` has a tag, which it does not see; and the Dockerfiles say why there is
#: no HEALTHCHECK.
EXCEPTIONS = {"CKV_DOCKER_7", "CKV_DOCKER_2"}


@pytest.fixture(scope="module")
def export_image(container_engine: Engine) -> str:
    # pip finds a build of PyTorch for CPUs as it does outside, or the build says that it did not.
    return container_engine.build("export/Dockerfile", f"gpt2export:{VERSION}", TORCH_INDEX="")


@contextmanager
def serving(engine: Engine, image: str, store: Path, *options: str) -> Iterator[Container]:
    """A container with `store`, ready; its port is on 127.0.0.1."""
    mount = ("--volume", f"{store}:/models:ro", "--publish", "127.0.0.1::8000")
    with engine.container(image, options=[*CONFINED, *mount, *options]) as container:
        eventually(lambda: is_ready(container), 60)
        yield container


def url_of(container: Container) -> str:
    return f"http://127.0.0.1:{container.port()}"


def is_ready(container: Container) -> bool:
    assert container.running, container.log()
    try:
        return httpx.get(f"{url_of(container)}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def generations(url: str) -> Any:
    answer = httpx.post(f"{url}/generate", json=REQUEST, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["generations"]


def messages(container: Container) -> list[str]:
    """Every line that it wrote is one of the log."""
    return [json.loads(line)["event"] for line in container.log()]


def package_in(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (store / MODEL / PACKAGE).iterdir()}


def packages(files: Path, name: str) -> set[str]:
    (folder,) = (files / "opt" / name / "lib").glob("python3*/site-packages")
    return {path.name for path in folder.iterdir()}


def privileged(files: Path) -> set[str]:
    """Programs that run as somebody else (setuid, setgid)."""
    found = set()
    for folder, _, names in os.walk(files):
        for path in (Path(folder, name) for name in names):
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
                found.add(str(path.relative_to(files)))
    return found


def not_of_root(folder: Path) -> list[Path]:
    """What somebody other than root owns or may change."""
    return [
        path
        for path in folder.rglob("*")
        if (status := path.lstat()).st_uid != 0
        or (status.st_mode & 0o022 and not path.is_symlink())
    ]


def test_server_image_has_what_it_needs_and_no_more(
    container_engine: Engine, server_image: str
) -> None:
    with container_engine.files(server_image) as files:
        found = packages(files, "gpt2serve")
        assert {"gpt2serve", "onnxruntime", "obstore", "opentelemetry"} <= found
        assert found & FOREIGN == set()
        assert not_of_root(files / "opt") == []
        for empty in ("tmp", "root/.cache", "var/cache/gpt2serve"):
            assert list((files / empty).rglob("*")) == []
        assert not (files / "build").exists()
        cache = (files / "var/cache/gpt2serve").stat()
        assert f"{cache.st_uid}:{cache.st_gid}" == USER
        with container_engine.files(BASE) as base:
            assert privileged(files) == privileged(base) != set()


@pytest.mark.parametrize(
    ("kind", "bound"), [("server_image", SERVER_BYTES), ("export_image", EXPORT_BYTES)]
)
def test_size(
    kind: str, bound: float, container_engine: Engine, request: pytest.FixtureRequest
) -> None:
    image = request.getfixturevalue(kind)
    base = container_engine.image(BASE)["Size"]
    assert bound * 0.8 < container_engine.image(image)["Size"] - base < bound


@pytest.mark.parametrize("kind", ["server_image", "export_image"])
def test_configuration(kind: str, container_engine: Engine, request: pytest.FixtureRequest) -> None:
    config = container_engine.image(request.getfixturevalue(kind))["Config"]
    command = "gpt2serve" if kind == "server_image" else "gpt2export"
    assert config["User"] == USER
    assert config["Entrypoint"] == [command]
    assert config.get("Cmd") is None
    labels = config["Labels"]
    assert labels["org.opencontainers.image.title"] == command
    assert labels["org.opencontainers.image.version"] == VERSION
    # pip's settings of the machine that builds stay there.
    assert not [text for text in config["Env"] if text.startswith(("PIP_", "SSL_"))]
    if kind == "server_image":
        assert config["ExposedPorts"] == {"8000/tcp": {}}


@pytest.mark.parametrize(
    ("kind", "module"),
    [("server_image", "gpt2serve.app, obstore"), ("export_image", "gpt2export.exporter, torch")],
)
def test_no_module_is_compiled_at_run_time(
    kind: str, module: str, container_engine: Engine, request: pytest.FixtureRequest
) -> None:
    code = (
        f"import {module}, sys, pathlib\n"
        "files = {m.__spec__.origin: m.__spec__.cached for m in sys.modules.values()"
        " if getattr(m, '__spec__', None) and (m.__spec__.origin or '').endswith('.py')}\n"
        "ours = {k: v for k, v in files.items() if k.startswith('/opt/')}\n"
        "assert len(ours) > 300, len(ours)\n"
        "assert (missing := [k for k, v in ours.items() if not pathlib.Path(v).exists()]) == []\n"
    )
    options = [*CONFINED, "--rm", "--entrypoint", "python3"]
    container_engine.podman("run", *options, request.getfixturevalue(kind), "-c", code)


def test_server_is_confined_and_answers_as_outside(
    container_engine: Engine, server_image: str, readable_store: Path
) -> None:
    server = Server(readable_store)
    try:
        outside = generations(server.url)
    finally:
        server.stop()
    with serving(container_engine, server_image, readable_store) as container:
        assert generations(url_of(container)) == outside
        process = container.process()
        assert b"/gpt2serve\0" in (process / "cmdline").read_bytes()
        lines = (process / "status").read_text().splitlines()
        status = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
        assert status["Uid"].split() == ["10001"] * 4
        assert status["Gid"].split() == ["10001"] * 4
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        container.signal("TERM")
        assert container.wait() == 0
        assert messages(container)[-1] == "draining"


def test_sigterm_lets_a_stream_end(
    container_engine: Engine, server_image: str, readable_store: Path
) -> None:
    with serving(container_engine, server_image, readable_store) as container:
        url = f"{url_of(container)}/generate"
        with httpx.stream("POST", url, json=LONG | {"stream": True}, timeout=120) as answer:
            assert answer.status_code == 200, answer.read()
            lines = answer.iter_lines()
            next(lines)
            container.signal("TERM")
            *_, last, end = events(lines)
        assert end == "[DONE]"
        assert last["usage"]["completion_tokens"] == SEQUENCES * TOKENS
        assert container.wait() == 0


def test_sigterm_during_the_start_ends_it(
    container_engine: Engine, server_image: str, readable_store: Path, tmp_path: Path
) -> None:
    """Process 1 gets no signal that it has no handler for."""
    key = tmp_path / "key"  # who reads it waits for ever
    os.mkfifo(key, 0o644)
    tmp_path.chmod(0o755)
    mounts = ("--volume", f"{readable_store}:/models:ro", "--volume", f"{tmp_path}:/etc/key")
    options = [*CONFINED, *mounts, "--env", "GPT2SERVE_ADMIN_KEY_FILE=/etc/key/key"]
    with container_engine.container(server_image, options=options) as container:
        status = container.process() / "status"

        def hears_sigterm() -> bool:
            lines = dict(line.split(":\t", 1) for line in status.read_text().splitlines())
            return bool(int(lines["SigCgt"], 16) >> (signal.SIGTERM - 1) & 1)

        eventually(hears_sigterm, 60)
        container.signal("TERM")
        assert container.wait() == 0
        assert messages(container) == []


def test_server_with_a_bucket_writes_its_disk_cache_only(
    container_engine: Engine,
    server_image: str,
    sample_store: Path,
    s3_port: int,
) -> None:
    bucket = s3_server.client(s3_port, "images")
    s3_server.publish(bucket, sample_store, sample_store / MODEL / PACKAGE)
    variables = s3_server.environment(s3_port) | {
        "GPT2SERVE_STORE": "s3://images",
        "GPT2SERVE_PORT": "0",
    }
    options = [f"--env={name}={value}" for name, value in variables.items()]
    options += ["--network", "host", "--volume", "/var/cache/gpt2serve"]
    with container_engine.container(server_image, options=[*CONFINED, *options]) as container:
        eventually(lambda: "ready" in messages(container), 60)
        assert generations(json.loads(container.log()[0])["url"])
        container.signal("TERM")
        assert container.wait() == 0


def test_export_image_makes_the_same_packages(
    container_engine: Engine, export_image: str, sample_store: Path, tmp_path: Path
) -> None:
    with container_engine.files(export_image) as files:
        found = packages(files, "gpt2export")
        assert {"torch", "obstore"} <= found
        assert found & {"nvidia", "pip", "pytest"} == set()
        assert not_of_root(files / "opt") == []
    os.chown(tmp_path, 10001, 10001)
    mounts = (f"{ROOT / 'samples'}:/checkpoints:ro", f"{tmp_path}:/models")
    options = [*CONFINED, "--network=none", *(f"--volume={mount}" for mount in mounts)]
    arguments = (f"/checkpoints/{MODEL}", "--store", "/models")
    container_engine.podman("run", "--rm", *options, export_image, *arguments, seconds=300)
    assert package_in(tmp_path) == package_in(sample_store)


def test_export_image_runs_the_job_between_two_buckets(
    container_engine: Engine, export_image: str, sample_store: Path, s3_port: int
) -> None:
    """What k8s/jobs/export runs, with its script, its folders and its user."""
    (job,) = of_kind(manifests_of("jobs/export"), "Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    checkpoints = s3_server.client(s3_port, "checkpoints")
    s3_server.publish(checkpoints, ROOT / "samples", ROOT / "samples" / MODEL)
    variables = s3_server.environment(s3_port) | {
        "CHECKPOINTS": "s3://checkpoints",
        "CHECKPOINT": MODEL,
        "PACKAGES": "s3://packages",
    }
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    options = [
        *CONFINED,
        *(f"--env={name}={value}" for name, value in variables.items()),
        f"--volume={ROOT / 'k8s/jobs/export/export.sh'}:{mounts['script']}/export.sh:ro",
        f"--tmpfs={mounts['work']}:mode=1777",
        "--network=host",
        f"--entrypoint={json.dumps(container['command'])}",
    ]
    container_engine.podman("run", "--rm", *options, export_image, seconds=300)
    bucket, prefix = s3_server.client(s3_port, "packages"), f"{MODEL}/{PACKAGE}/"
    found = [meta["path"] for page in obstore.list(bucket, prefix=prefix) for meta in page]
    made = {path.removeprefix(prefix): bytes(obstore.get(bucket, path).bytes()) for path in found}
    outside = package_in(sample_store)
    # The picture beside the card is in the folder only, and so in the manifest made of it.
    assert json.loads(made.pop("manifest.json"))["files"]
    del outside["manifest.json"]
    assert made == outside


def test_checkov_finds_nothing_else() -> None:
    command = [program("checkov"), "--framework", "dockerfile", "--skip-download", "--quiet"]
    files = ["--file", "server/Dockerfile", "export/Dockerfile", "--output", "json"]
    done = subprocess.run([*command, *files], capture_output=True, text=True, timeout=300, cwd=ROOT)
    found = json.loads(done.stdout)["results"]["failed_checks"]
    assert {check["check_id"] for check in found} == EXCEPTIONS


@pytest.mark.skipif(
    not os.environ.get("GPT2SERVE_TEST_CUDA_IMAGE"),
    reason="3 GB and some minutes: GPT2SERVE_TEST_CUDA_IMAGE=1",
)
def test_cuda_image_finds_its_libraries(container_engine: Engine) -> None:
    image = container_engine.build("server/Dockerfile", "gpt2serve:cuda", VARIANT="cuda")
    code = (
        "import onnxruntime, ctypes, pathlib\n"
        "assert 'CUDAExecutionProvider' in onnxruntime.get_available_providers()\n"
        "for name in ('libcudart.so.13', 'libcudnn.so.9', 'libcublasLt.so.13'):\n"
        "    ctypes.CDLL(name)\n"
        "print(pathlib.Path(onnxruntime.__file__).parent)"
    )
    options = [*CONFINED, "--rm", "--entrypoint"]
    folder = container_engine.podman("run", *options, "python3", image, "-c", code).strip()
    provider = f"{folder}/capi/libonnxruntime_providers_cuda.so"
    linked = container_engine.podman("run", *options, "ldd", image, provider)
    # The driver's, which the host brings.
    missing = [line.split()[0] for line in linked.splitlines() if "not found" in line]
    assert missing == ["libcuda.so.1"]
