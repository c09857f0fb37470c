"""schemathesis against a running server: what it does is what `/schema` says.

Twice: with anything that the schema allows, which is mostly models that are not there; and with
the ids of models that are, so that requests get to the engine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from gpt2serve.package import MODEL_ID_PATTERN, MODEL_NAME_PATTERN
from tests.e2e.server_support import KEY, MODEL, Server

CONFIG = Path(__file__).with_name("schemathesis.toml")
EXAMPLES = os.environ.get("GPT2SERVE_FUZZ_EXAMPLES", "10")


def fuzz(schema: str, server: Server, folder: Path, *options: str) -> None:
    command = [str(Path(sys.executable).with_name("schemathesis"))]
    command += ["--config-file", str(CONFIG), "run", schema]
    command += ["--url", server.url, "--header", f"Authorization: Bearer {KEY}"]
    command += ["--max-examples", EXAMPLES, "--seed", "1", "--no-color", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def watched(server: Server) -> Iterator[None]:
    """Read the server's log, as a full pipe would stop it, and find no error in it."""
    errors: list[str] = []

    def read() -> None:
        lines = server.process.stdout or ()
        errors.extend(line for line in lines if json.loads(line)["level"] == "error")

    reader = threading.Thread(target=read)
    reader.start()
    yield
    server.process.terminate()
    assert server.process.wait(20) == 0
    reader.join()
    assert errors == []


def test_nothing_contradicts_the_schema(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve("--admin-key", KEY)
    with watched(server):
        fuzz(f"{server.url}/schema", server, tmp_path)


def test_nothing_does_with_models_that_are_there(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"sha256:{sha256(KEY.encode()).hexdigest()}  user\n", encoding="utf-8")
    server = serve("--api-key-file", str(keys), "--max-batch-size", "2")
    with server.client() as client:
        document = client.get("/schema").json()
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(with_real_ids(document)), encoding="utf-8")
    # A model's context bounds lengths, and the server's batch the sequences: no schema says that.
    with watched(server):
        options = ["--exclude-checks", "positive_data_acceptance", "--request-timeout", "60"]
        fuzz(str(path), server, tmp_path, *options, "--phases", "examples,fuzzing")


def with_real_ids(value: Any) -> Any:
    """The schema, with `MODEL` for every id, and without paths of ids with two parts."""
    if isinstance(value, list):
        return [with_real_ids(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("pattern") in {MODEL_ID_PATTERN, MODEL_NAME_PATTERN}:
        return {"type": "string", "enum": [MODEL]}
    return {key: with_real_ids(item) for key, item in value.items() if "{owner}" not in key}
