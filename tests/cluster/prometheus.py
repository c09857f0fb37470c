"""A real Prometheus on a free port."""

from __future__ import annotations

import math
import subprocess
from pathlib import Path
from typing import Any, Self

import httpx
import yaml

from benchmarks.common.servers import free_port
from tests.cluster.programs import program
from tests.e2e.server_support import eventually


class Prometheus:
    def __init__(
        self,
        folder: Path,
        rules: list[dict[str, Any]],
        scrapes: list[dict[str, Any]] | None = None,
    ) -> None:
        """`rules`: groups; `scrapes`: scrape_configs. It looks at everything each second."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": rules}))
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": scrapes or [],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        port = free_port()
        command = [program("prometheus"), f"--config.file={folder / 'prometheus.yaml'}"]
        command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
        command += [f"--storage.tsdb.path={folder / 'data'}"]
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)
        try:
            eventually(self._ready, 60)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ready(self) -> bool:
        assert self.process.poll() is None, self._log.read_text()
        try:
            return self.client.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def api(self, path: str, **parameters: Any) -> Any:
        answer = self.client.get(f"/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", f"{answer.get('error')}: {parameters}"
        return answer["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and values now. Fails if Prometheus does not take the query."""
        data = self.api("query", query=expression)
        assert data["resultType"] == "vector", expression
        return [(one["metric"], float(one["value"][1])) for one in data["result"]]

    def has_data(self, expression: str) -> bool:
        """Whether the query gives a number that a graph can show."""
        return any(math.isfinite(value) for _, value in self.query(expression))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        if hasattr(self, "client"):
            self.client.close()
