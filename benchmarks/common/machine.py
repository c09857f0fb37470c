"""What a result must name to mean anything, and who keeps the machine busy."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import re
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.common.model import ROOT

PACKAGES = (
    "gpt2serve",
    "onnxruntime",
    "numpy",
    "tokenizers",
    "litestar",
    "uvicorn",
    "granian",
    "uvloop",
    "torch",
    "transformers",
    "optimum-onnx",
    "ctranslate2",
    "ray",
    "fastapi",
    "aiohttp",
)
#: What a run of benchmarks writes itself, and other pages: none of it changes a figure.
_NO_CODE = ("benchmarks/results", "docs", "README.md", "CHANGELOG.md")
#: Instruction sets that decide how fast int8 is.
_EXTENSIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


def describe(threads: int, command: str) -> dict[str, Any]:
    """The header of a result."""
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command,
        "commit": commit(),
        "processor": processor(),
        "extensions": [name for name in _EXTENSIONS if name in _flags()],
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "load_average": round(os.getloadavg()[0], 2),
        "versions": {name: number for name in PACKAGES if (number := version(name))},
    }


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str:
    """Short hash of HEAD, with a + if code differs from it; new files count, pages do not."""
    head = _git("rev-parse", "--short", "HEAD")
    if not head:
        return "not committed"
    others = [f":(exclude,top){name}" for name in _NO_CODE]
    return head + ("+" if _git("status", "--porcelain", "--", ":/", *others) else "")


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def processor() -> str:
    match = re.search(r"^model name\s*: (.+)$", _cpuinfo(), re.MULTILINE)
    return match[1] if match else platform.processor() or platform.machine()


def _flags() -> set[str]:
    match = re.search(r"^(?:flags|Features)\s*: (.+)$", _cpuinfo(), re.MULTILINE)
    return set(match[1].split()) if match else set()


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


class OtherWork:
    """How much of the machine was busy with something else than `processes`, since it was made.

    Processes that they started count as theirs.
    """

    def __init__(self, processes: list[int]) -> None:
        self._processes = processes
        self._begin = self._reading()

    def share(self) -> float:
        """0 to 1 of all cores; NaN where the system does not tell."""
        wall, busy, own = (
            now - then for now, then in zip(self._reading(), self._begin, strict=True)
        )
        return max(0.0, (busy - own) / (wall * (os.cpu_count() or 1)))

    def _reading(self) -> tuple[float, float, float]:
        members = [member for process in self._processes for member in family(process)]
        return time.perf_counter(), _busy_seconds(), sum(map(process_seconds, members))


def family(process: int) -> list[int]:
    """A process and those that it started and that run."""
    members = [process]
    for tasks in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in tasks.read_text().split():
                members += family(int(child))
    return members


def _busy_seconds() -> float:
    """Processor time of everything so far, and time that the hypervisor took."""
    try:
        fields = [
            int(text) for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        ]
    except OSError:
        return float("nan")
    user, nice, system, _idle, _iowait, *interrupts_and_steal = fields[:8]
    return (user + nice + system + sum(interrupts_and_steal)) / os.sysconf("SC_CLK_TCK")


def process_seconds(process: int, thread: int | None = None) -> float:
    """Processor time of a process, or of one thread of it; NaN where the system does not tell."""
    folder = Path(f"/proc/{process}")
    if thread is not None:
        folder = folder / "task" / str(thread)
    try:
        stat = (folder / "stat").read_text()
    except OSError:
        return float("nan")
    # The command's name is in brackets and may hold spaces.
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
