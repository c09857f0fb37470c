"""The gateway's script, as its ConfigMap has it, in a real Envoy: a request's model."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from benchmarks.common.servers import free_port
from tests.cluster.manifest_parts import size
from tests.cluster.manifests import manifests_of, named
from tests.cluster.programs import program
from tests.e2e.server_support import eventually

pytestmark = pytest.mark.cluster

HEADER = "x-gateway-model-name"
NONE = "none"


class Echo(BaseHTTPRequestHandler):
    """Stands behind Envoy and answers with the header that arrived, and the length of the body."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        text = json.dumps([self.headers.get(HEADER, NONE), len(body)]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = answer

    def log_message(self, *_: object) -> None:
        pass


def _configuration(port: int, behind: int, manifests: list[dict[str, Any]]) -> dict[str, Any]:
    """What Envoy Gateway makes of the component, as far as the script is concerned."""
    script = named(manifests, "ConfigMap", "gpt2serve-model-header")["data"]["lua"]
    limit = named(manifests, "ClientTrafficPolicy", "gpt2serve")["spec"]["connection"]
    types = "type.googleapis.com/envoy.extensions.filters"
    manager = {
        "@type": f"{types}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "gateway",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "behind"}}],
                }
            ]
        },
        "http_filters": [
            {
                "name": "lua",
                "typed_config": {
                    "@type": f"{types}.http.lua.v3.Lua",
                    "default_source_code": {"inline_string": script},
                },
            },
            {"name": "router", "typed_config": {"@type": f"{types}.http.router.v3.Router"}},
        ],
    }

    def address(number: int) -> dict[str, Any]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    listener = {
        "address": address(port),
        "per_connection_buffer_limit_bytes": size(limit["bufferLimit"]),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    endpoint = {"endpoint": {"address": address(behind)}}
    cluster = {
        "name": "behind",
        "load_assignment": {
            "cluster_name": "behind",
            "endpoints": [{"lb_endpoints": [endpoint]}],
        },
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    manifests = manifests_of("overlays/cpu", "components/gateway", "components/gateway/hashing")
    file = tmp_path_factory.mktemp("gateway") / "envoy.yaml"
    port = free_port()
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as behind:
        threading.Thread(target=behind.serve_forever, daemon=True).start()
        file.write_text(yaml.safe_dump(_configuration(port, behind.server_port, manifests)))
        process = _envoy(file)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                eventually(lambda: _answers(client, process), 30)
                yield client
        finally:
            process.kill()
            process.wait()
            behind.shutdown()


def _envoy(file: Path) -> subprocess.Popen[bytes]:
    command = [program("envoy"), "--config-path", str(file), "--concurrency", "1"]
    return subprocess.Popen([*command, "--disable-hot-restart", "--log-level", "warning"])


def _answers(client: httpx.Client, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "Envoy has ended"
    try:
        return client.get("/").status_code == 200
    except httpx.TransportError:
        return False


PROMPT = 'He said: {"model": "no/this", "x": 1}, \\ "model": "nor/this"'


@pytest.mark.parametrize(
    ("path", "body", "model"),
    [
        ("/models/me/poems", b"{}", "me/poems"),
        ("/models/me%2Fpoems", b"{}", "me/poems"),
        ("/models/poems", b'{"model": "other"}', "poems"),
        ("/models/me/poems/generate", b"{}", "me/poems"),
        ("/models/poems/generate_stream?x=/y", b"{}", "poems"),
        ("/models/me/poems/info/", b"{}", "me/poems"),
        ("/v1/models/me/poems", b"{}", "me/poems"),
        ("/models", b"", NONE),
        ("/models?search=me/poems", b"", NONE),
        ("/generate", b"", NONE),
        ("/generate", b"no JSON", NONE),
        ("/generate", b'{"prompt": "a"}', NONE),
        ("/generate", json.dumps({"model": "me/poems", "prompt": "a"}).encode(), "me/poems"),
        ("/generate", json.dumps({"prompt": PROMPT, "model": "poems"}).encode(), "poems"),
        ("/v1/completions", b'{"model"\n:\t"me\\/poems","prompt":"a"}', "me/poems"),
        # As large as the server takes.
        ("/generate", json.dumps({"prompt": "a" * 1_040_000, "model": "m"}).encode(), "m"),
    ],
)
def test_the_model(gateway: httpx.Client, path: str, body: bytes, model: str) -> None:
    assert gateway.post(path, content=body).json() == [model, len(body)]


def test_the_header_of_a_client_counts_before_its_body(gateway: httpx.Client) -> None:
    mine = {HEADER: "me/mine"}
    body = b'{"model": "me/poems"}'
    assert gateway.post("/generate", content=body, headers=mine).json() == ["me/mine", len(body)]
    assert gateway.get("/models/me/poems/info", headers=mine).json() == ["me/poems", 0]


def test_a_body_that_is_too_large_is_refused(gateway: httpx.Client) -> None:
    assert gateway.post("/generate", content=b"a" * 2_000_000).status_code == 413
