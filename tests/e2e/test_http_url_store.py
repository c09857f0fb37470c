"""Real servers over a real S3 server: shared cache, new versions, and the store gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpt2serve.package import WEIGHTS_FILE
from tests import s3_server
from tests.engine_driver import JEFFERSON, REAGAN, WASHINGTON, copy_model
from tests.s3_server import Proxy, publish, unpublish

BODY = {"prompt": "We", "max_new_tokens": 16, "seed": 5, "do_sample": True}
REFRESH = 0.2


class Server:
    def __init__(self, held: ExitStack, url: str, cache: Path, proxy: Proxy) -> None:
        options = ["--store", url, "--disk-cache", str(cache), "--store-refresh", str(REFRESH)]
        memory = ["--port", "0", "--kv-cache-bytes", "64MiB", "--model-cache-bytes", "256MiB"]
        environment = os.environ | s3_server.environment(proxy.port) | {"PYTHONUNBUFFERED": "1"}
        process = held.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "gpt2serve.cli", *options, *memory],
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
        )
        held.callback(process.kill)
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        self.client = held.enter_context(httpx.Client(base_url=url, timeout=30))

    def ask(self, model: str) -> httpx.Response:
        return self.client.post("/generate", json=BODY | {"model": model})

    def text(self, model: str) -> str:
        answer = self.ask(model)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["generations"][0]["text"])

    def models(self) -> list[str]:
        return [model["id"] for model in self.client.get("/models").json()["models"]]


@pytest.fixture
def held() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def eventually(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_a_bucket_of_models(
    sample_store: Path, s3_port: int, tmp_path: Path, held: ExitStack
) -> None:
    bucket, url = s3_server.client(s3_port, "served-models"), "s3://served-models"
    for model in (WASHINGTON, JEFFERSON, REAGAN):
        publish(bucket, sample_store, sample_store / model / "cpu-int8")
    proxy = Proxy(s3_port)
    proxy.start()
    held.callback(proxy.close)

    one = Server(held, url, tmp_path / "cache", proxy)
    two = Server(held, url, tmp_path / "cache", proxy)
    assert one.models() == two.models() == [WASHINGTON, REAGAN, JEFFERSON]
    text, other_text = one.text(WASHINGTON), one.text(JEFFERSON)
    assert text != other_text
    assert two.text(WASHINGTON) == text
    assert len(proxy.about(f"{WASHINGTON}/cpu-int8/{WEIGHTS_FILE}")) == 1

    # Published again, with another one's weights.
    changed = copy_model(sample_store, JEFFERSON, tmp_path / "changed", WASHINGTON)
    publish(bucket, tmp_path / "changed", changed / "cpu-int8")
    eventually(lambda: one.text(WASHINGTON) == other_text)
    eventually(lambda: two.text(WASHINGTON) == other_text)

    # The store goes, and then a server is started: what is on the disk is served.
    proxy.stop()
    three = Server(held, url, tmp_path / "cache", proxy)
    for server in (one, two, three):
        assert server.text(WASHINGTON) == other_text
        refused = server.ask(REAGAN)
        assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
        assert 1 <= int(refused.headers["retry-after"]) <= 6
    assert three.models() == [WASHINGTON, JEFFERSON]

    # And comes back.
    proxy.start()
    eventually(lambda: three.ask(REAGAN).status_code == 200)
    unpublish(bucket, WASHINGTON)
    for server in (one, two, three):
        eventually(lambda server=server: server.ask(WASHINGTON).status_code == 404)
    eventually(lambda: not list((tmp_path / "cache").glob(f"*/packages/{WASHINGTON}/*")))
    assert one.text(JEFFERSON) == other_text
