"""A peer in a process of its own, told to load a model and to let it go."""

from __future__ import annotations

import importlib
from typing import Any

from benchmarks.coldstart.memory import trim


class Cold:
    """The far side of a `Worker`. target: of a `benchmarks.peers.System`."""

    def __init__(self, target: str, precision: str, threads: int) -> None:
        module, name = target.split(":")
        self._peer = getattr(importlib.import_module(module), name)(precision, threads)

    def start(self, assets: dict[str, Any], prompt: dict[str, Any], tokens: int) -> dict[str, Any]:
        """Seconds to the "first" token and until "done", and the "phases" of the first."""
        parts: dict[str, float] = self._peer.load(assets)
        load = parts.pop("seconds")
        made = self._peer.generate([prompt], tokens)
        # "load" is what the peer tells no more of, which may be all.
        phases = {**parts, "load": load - sum(parts.values()), "prefill": made["first_seconds"]}
        return {
            "first": load + made["first_seconds"],
            "done": load + made["seconds"],
            "phases": phases,
        }

    def stop(self) -> None:
        self._peer.unload()
        trim()

    def close(self) -> None:
        self._peer.close()
