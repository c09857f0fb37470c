"""How long things take on one replica: what the simulation knows of the real server."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

#: Steps are looked up, not computed: the server's batches and chunks are not larger than that.
_TABLE = 257
_CURVES = ("decode", "prefill", "unpacked_decode", "unpacked_prefill")


class Curve:
    """Straight lines between measured points; the last one goes on. For whole numbers."""

    def __init__(self, points: Iterable[Sequence[float]]) -> None:
        self.points = sorted((float(x), float(y)) for x, y in points)
        if not self.points:
            raise ValueError("A curve needs a point.")
        places, values = (np.array(column) for column in zip(*self.points, strict=True))
        table = np.interp(np.arange(_TABLE), places, values)
        if len(places) > 1:
            slope = (values[-1] - values[-2]) / (places[-1] - places[-2])
            beyond = np.arange(_TABLE) > places[-1]
            table[beyond] = values[-1] + slope * (np.arange(_TABLE)[beyond] - places[-1])
        self._table: list[float] = table.tolist()

    def at(self, place: int) -> float:
        return self._table[place]


@dataclass(frozen=True)
class ServerTimes:
    """Seconds, and the bytes of a loaded model.

    decode: of a step, by its sequences. prefill: of a step, by its tokens, padding included.
    unpacked_decode, unpacked_prefill: the same of a model that was loaded and not yet packed.
    load: from the request to the model that can work, if nothing else happens. first_load: the
    same if this process never had the model, so that its hashes are checked too. pack: of packing
    a model while nothing else computes. packing_beside_steps: times as long that it takes while
    steps run. step_beside_packing: times as long that a step takes while a model is packed.
    overhead: what a request takes outside of the engine. model_bytes: as the server's cache
    counts a model. resident_bytes: as its memory grows by one that is packed.

    A server whose models have one form only has it twice, and `pack` is 0.
    """

    decode: tuple[tuple[float, float], ...]
    prefill: tuple[tuple[float, float], ...]
    unpacked_decode: tuple[tuple[float, float], ...]
    unpacked_prefill: tuple[tuple[float, float], ...]
    load: float
    first_load: float
    pack: float
    packing_beside_steps: float
    step_beside_packing: float
    overhead: float
    model_bytes: int
    resident_bytes: int

    def in_a_fleet(self, bytes_per_second: float) -> ServerTimes:
        """For a machine whose models are not in the page cache and whose memory is no larger.

        Reading a package comes before what was measured, and a model counts with all that it
        takes, even if the server counts less.
        """
        reading = self.model_bytes / bytes_per_second
        return replace(
            self,
            load=self.load + reading,
            first_load=self.first_load + reading,
            model_bytes=self.resident_bytes,
        )

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ServerTimes:
        """Raises ValueError if that are not the fields above."""
        try:
            points = {name: tuple((x, y) for x, y in values[name]) for name in _CURVES}
            made = cls(**(values | points))
            for name in _CURVES:
                Curve(points[name])
            numbers = [getattr(made, one.name) for one in fields(cls) if one.name not in _CURVES]
            if not all(isinstance(number, int | float) and number >= 0 for number in numbers):
                raise ValueError("all but the curves are numbers that are not negative")
        except (LookupError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"These are not the times of a server ({reason}).") from error
        return made

    @classmethod
    def from_file(cls, path: Path) -> ServerTimes:
        """From JSON with these fields, or from a result of this benchmark, which has "times"."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from error
        return cls.from_json(values.get("times", values) if isinstance(values, dict) else values)
