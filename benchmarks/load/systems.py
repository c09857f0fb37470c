"""The servers that are compared, and how each is started."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import servers
from benchmarks.common.model import Assets

#: More than any point of the comparison has under way, so that nothing is refused.
_MAX_QUEUE = 4096


@dataclass(frozen=True)
class System:
    """name: in tables and for --skip. format: what `model.prepare` must make, or nothing."""

    name: str
    api: str
    format: str
    packages: tuple[str, ...]
    install: str

    @property
    def missing(self) -> list[str]:
        """Packages that are not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]

    def start(self, assets: Assets, threads: int, log: Path) -> servers.Server:
        if self.api == "generate":
            precision = self.format.removeprefix("package-")
            queue = ["--max-queue", str(_MAX_QUEUE), "--preload", assets.model]
            return servers.gpt2serve(
                assets.store, log, precision=precision, threads=threads, options=queue
            )
        return servers.Server(self._command(assets, threads), ready="/v1/models", log=log)

    def _command(self, assets: Assets, threads: int) -> list[str]:
        module = "transformers" if not self.format else "ctranslate2"
        command = [sys.executable, "-m", f"benchmarks.load.peers.fastapi_{module}"]
        command += ["--checkpoint", str(assets.checkpoint), "--name", assets.model]
        command += ["--threads", str(threads), "--port", "{port}"]
        if self.format:
            command += ["--converted", str(assets.ct2 / self.format.removeprefix("ct2-"))]
        return command


OURS = "gpt2serve int8"
_INSTALL = "pip install -e '.[export,bench]'"

SYSTEMS = (
    System(OURS, "generate", "package-int8", ("gpt2serve",), "pip install -e ."),
    System("gpt2serve fp32", "generate", "package-fp32", ("gpt2serve",), "pip install -e ."),
    System("transformers fp32 (FastAPI)", "completions", "", ("transformers", "fastapi"), _INSTALL),
    System(
        "ctranslate2 int8 (FastAPI)",
        "completions",
        "ct2-int8",
        ("ctranslate2", "transformers", "fastapi"),
        _INSTALL,
    ),
)
#: With --quick: this server and the one that people write first.
QUICK = (SYSTEMS[0], SYSTEMS[2])
