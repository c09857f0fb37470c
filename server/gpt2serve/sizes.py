"""Sizes as people write them, and how much there is of what they may be a share of."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from gpt2serve.errors import SettingsError

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", start=1)}
_UNITS |= {f"{prefix}B": 1000**power for power, prefix in enumerate("kMGT", start=1)}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z%]*)\s*")


def parse_size(text: str, *, whole: int | None = None) -> int:
    """Bytes of '512MiB', '8GiB', '2GB', '1048576' or of a share, '50%'.

    `whole` is what the share is of, in bytes, if not of the memory that there is.
    Raises `SettingsError`.
    """
    match = _SIZE.fullmatch(text)
    if match:
        number, unit = float(match[1]), match[2]
        if unit == "%":
            if 0 < number <= 100:
                return int((whole or memory_limit()) * number / 100)
        elif unit in _UNITS and number * _UNITS[unit] >= 1:
            return int(number * _UNITS[unit])
    raise SettingsError(f"{text!r} is not a size: write 512MiB, 8GiB, or a share such as 50%.")


def memory_limit() -> int:
    """Memory that this process may use: the container's limit, else the machine's, in bytes."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [machine]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(path).read_text()))
        except (OSError, ValueError):
            continue
    return min(limits)


def disk_size(folder: Path) -> int:
    """Bytes of the disk that `folder` is on, or will be on once it is made."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).total


def cpu_count() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))
