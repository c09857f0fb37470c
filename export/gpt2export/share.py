"""One of several equal parts of a list, for as many machines that each take theirs."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Share:
    """Every `count`-th item from number `index` on: as many for each, if one fits."""

    index: int = 0
    count: int = 1

    def of(self, items: Sequence[_Item]) -> list[_Item]:
        return list(items[self.index :: self.count])


def parse_share(text: str) -> Share:
    """The fourth of 20 is "3/20". Raises what argparse wants to hear."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match:
        index, count = int(match[1]), int(match[2])
        if index < count:
            return Share(index, count)
    raise argparse.ArgumentTypeError(f"{text!r}: of 20 shares the first is 0/20, the last 19/20")
