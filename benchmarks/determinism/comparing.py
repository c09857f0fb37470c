"""How many texts are the same, alone and in company."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

#: Answers by the number of their request: a text, or its token ids.
Answers = Mapping[int, Any]


class Running(Protocol):
    def texts(self, order: Sequence[int], batch: int, *, greedy: bool = False) -> Answers:
        """The answers to the requests of these numbers, in this order, `batch` at a time."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def identical(reference: Answers, other: Answers) -> dict[str, int]:
    """How many answers in `other` equal those in `reference`, and of how many.

    Raises `KeyError` if `other` answers what was not asked in `reference`.
    """
    equal = sum(reference[number] == answer for number, answer in other.items())
    return {"identical": equal, "of": len(other)}


def variety(answers: Answers) -> int:
    """How many different answers there are: a system that says one thing only is no test."""
    return len({str(answer) for answer in answers.values()})


def compare(start: Callable[[], Running], batch: int, other_order: Sequence[int]) -> dict[str, Any]:
    """All requests whose numbers are in `other_order` to a system that `start` starts, twice.

    Says how many texts were those that each request gets alone, in order of the numbers:

    together   with `batch` at a time
    restarted  so after a restart, in the other order
    again      alone after a restart, in the other order: whether a seed names a text at all; a
               quarter of the requests are enough for that
    greedy     together, the likeliest token each time, against such texts alone
    """
    order = sorted(other_order)
    with start() as system:
        alone = system.texts(order, 1)
        together = system.texts(order, batch)
        greedy_alone = system.texts(order, 1, greedy=True)
        greedy = system.texts(order, batch, greedy=True)
    with start() as system:
        restarted = system.texts(other_order, batch)
        again = system.texts(other_order[: max(1, len(order) // 4)], 1)
    return {
        "different_texts": variety(alone),
        "together": identical(alone, together),
        "restarted": identical(alone, restarted),
        "again": identical(alone, again),
        "greedy": identical(greedy_alone, greedy),
    }
