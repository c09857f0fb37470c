"""What a peer reports, from the moments at which tokens were there. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def report(
    begin: float, end: float, stamps: Sequence[Sequence[float]], ids: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """The result of `Peer.generate`.

    begin, end: of the whole call, in seconds. stamps: when each token of each text was there,
    on the same clock. A text whose tokens have no stamps of their own shares those of another.
    """
    seconds, steps = together(stamps)
    return {
        "seconds": end - begin,
        "first_seconds": max(moments[0] for moments in stamps) - begin,
        "decode_seconds": seconds,
        "decode_steps": steps,
        "lengths": [len(tokens) for tokens in ids],
        "ids": [list(tokens) for tokens in ids],
    }


def together(stamps: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Seconds in which all texts grew, and the tokens that each got in them.

    They begin with the first token of the text that begins last, and that text's own clock
    counts: others are a little before it or after it in the same step. They end when the text
    that was most ahead then has its last token.
    """
    last = max(stamps, key=lambda moments: moments[0])
    ahead = max(sum(moment <= last[0] for moment in moments) for moments in stamps)
    steps = min(len(moments) for moments in stamps) - ahead
    return last[steps] - last[0], steps


def check(result: dict[str, Any], texts: int, tokens: int) -> dict[str, Any]:
    """`result`, or `RuntimeError` if it is not what was asked for."""
    if result["lengths"] != [tokens] * texts:
        raise RuntimeError(f"Asked for {texts} texts of {tokens} tokens: {result['lengths']}.")
    return result
