"""A real S3 server for tests, and a proxy in front of it that makes the mistakes of a network."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
from obstore.store import S3Store

KEY, SECRET, REGION = "test-key", "test-secret", "us-east-1"


def program() -> str | None:
    """SeaweedFS, of this Python's own environment if it is there."""
    here = str(Path(sys.executable).parent)
    return shutil.which("weed", path=os.pathsep.join([here, os.environ.get("PATH", "")]))


@contextlib.contextmanager
def running(folder: Path) -> Iterator[int]:
    """SeaweedFS with its data in `folder`; yields the port of its S3 interface."""
    identity = {
        "name": "test",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "List", "Write"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    names = ("master", "volume", "filer", "s3")
    ports = iter(free_ports(2 * len(names)))
    chosen = {name: (next(ports), next(ports)) for name in names}
    options = [
        f"-{name}.port{suffix}={port}"
        for name, pair in chosen.items()
        for suffix, port in zip(("", ".grpc"), pair, strict=True)
    ]
    weed = program()
    assert weed is not None
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                *(weed, "server", "-filer", "-s3", f"-dir={folder}", "-ip=127.0.0.1"),
                *(f"-s3.config={folder / 's3.json'}", "-master.telemetry=false"),
                *("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.volumeSizeLimitMB=64"),
                *("-volume.max=0", *options),
            ],
            stdout=log,
            stderr=log,
            cwd=folder,
        )
    try:
        _wait_for(chosen["s3"][0], process, folder / "log")
        yield chosen["s3"][0]
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until it keeps what it is given."""
    store = client(port, "ready")
    deadline = time.monotonic() + 60
    while True:
        try:
            obstore.put(store, "ready", b"yes")
        except Exception:
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.1)
        else:
            return


def free_ports(count: int) -> list[int]:
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports


def environment(port: int) -> dict[str, str]:
    """What a program needs to be told to use the server, or the proxy, on this port."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": REGION,
    }


def client(port: int, bucket: str) -> S3Store:
    """The publisher's own way to the server, past any proxy."""
    return S3Store(
        bucket,
        endpoint=f"http://127.0.0.1:{port}",
        access_key_id=KEY,
        secret_access_key=SECRET,
        region=REGION,
        client_options={"allow_http": True, "timeout": timedelta(seconds=30)},
        retry_config={"max_retries": 0},
    )


# -- the network ------------------------------------------------------------------------------


@dataclass
class Fault:
    """What happens to the next `times` answers for paths that `path` is found in.

    `kind`: stall, cut or flip a bit, each after so many bytes of the body; or answer with a
    status, before the first one.
    """

    path: str
    kind: str
    after: int = 0
    times: int = 1


@dataclass
class Asked:
    """A request that went through. `sent` counts bytes of the answer's body."""

    method: str
    target: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0

    @property
    def begin(self) -> int:
        """The first byte that was asked for."""
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))
        return int(match[1]) if match else 0

    @property
    def is_listing(self) -> bool:
        return "list-type=2" in self.target


@dataclass
class Proxy:
    """One connection a request, so that a fault belongs to one answer."""

    upstream: int
    port: int = 0
    asked: list[Asked] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _release: threading.Event = field(default_factory=threading.Event)
    _server: socketserver.ThreadingTCPServer | None = None

    def start(self) -> None:
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    proxy._serve(self.request)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            block_on_close = False
            request_queue_size = 64

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections, until `start` is called again."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def release(self) -> None:
        """Cut the connections that stall."""
        self._release.set()

    def close(self) -> None:
        self.release()
        self.stop()

    def fail(self, path: str, kind: str, after: int = 0, times: int = 1) -> None:
        with self._lock:
            self.faults.append(Fault(path, kind, after, times))

    def heal(self) -> None:
        with self._lock:
            self.faults.clear()

    def about(self, part: str) -> list[Asked]:
        """Requests for paths that `part` is found in; listings only if it is asked for them."""
        with self._lock:
            return [
                asked
                for asked in self.asked
                if part in asked.target and (asked.is_listing == ("list-type" in part))
            ]

    def forget(self) -> None:
        with self._lock:
            self.asked.clear()

    def _serve(self, connection: socket.socket) -> None:
        head = _head(connection)
        if head is None:
            return
        first, *lines = head.split("\r\n")
        method, target, _ = first.split(" ")
        headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines)}
        asked = Asked(method, target, headers)
        with self._lock:
            self.asked.append(asked)
            fault = next((f for f in self.faults if f.path in target and f.times > 0), None)
            if fault is not None:
                fault.times -= 1
        with socket.create_connection(("127.0.0.1", self.upstream)) as server:
            lines = [line for line in lines if not line.lower().startswith("connection:")]
            request = "\r\n".join([first, *lines, "Connection: close", "", ""])
            server.sendall(request.encode("latin-1"))
            self._answer(connection, server, asked, fault)

    def _answer(
        self, connection: socket.socket, server: socket.socket, asked: Asked, fault: Fault | None
    ) -> None:
        head = _head(server)
        if head is None:
            return
        asked.status = int(head.split(" ", 2)[1])
        if fault is not None and fault.kind.isdecimal():
            connection.sendall(f"HTTP/1.1 {fault.kind} No\r\nContent-Length: 0\r\n\r\n".encode())
            return
        if fault is not None and fault.kind == "stall" and fault.after == 0:
            self._release.wait()
            return
        connection.sendall(f"{head}\r\n\r\n".encode("latin-1"))
        while data := server.recv(64 * 1024):
            if fault is not None and asked.sent + len(data) > fault.after:
                cut = fault.after - asked.sent
                if fault.kind == "flip":
                    data = data[:cut] + bytes([data[cut] ^ 1]) + data[cut + 1 :]
                    fault = None
                else:
                    connection.sendall(data[:cut])
                    asked.sent += cut
                    if fault.kind == "stall":
                        self._release.wait()
                    return
            connection.sendall(data)
            asked.sent += len(data)


def _head(connection: socket.socket) -> str | None:
    """What comes before the body, read byte by byte so that nothing of the body is."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        if not byte:
            return None
        head += byte
    return head[:-4].decode("latin-1")


# -- publishing -------------------------------------------------------------------------------


def publish(store: Any, root: Path, folder: Path) -> None:
    """Upload a package as one should: its manifest last."""
    files = sorted(folder.iterdir(), key=lambda file: file.name == "manifest.json")
    for file in files:
        obstore.put(store, str(file.relative_to(root)), file.read_bytes(), use_multipart=False)


def unpublish(store: Any, model: str) -> None:
    paths = [meta["path"] for page in obstore.list(store, prefix=model) for meta in page]
    obstore.delete(store, [path for path in paths if path.startswith(f"{model}/")])
