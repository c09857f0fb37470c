"""What the text of `GET /metrics` says of requests. Pure."""

from __future__ import annotations

import re

_UNDER_WAY = re.compile(
    r"^gpt2serve_(?:requests|sequences)_(?:running|waiting) (\S+)$", re.MULTILINE
)
_ENDS = re.compile(r'^gpt2serve_requests_total\{code="([^"]+)"\} (\S+)$', re.MULTILINE)


def under_way(text: str) -> float:
    """Requests and sequences that the engine has not finished."""
    found = _UNDER_WAY.findall(text)
    if not found:
        raise RuntimeError("/metrics does not tell how many requests are running.")
    return sum(map(float, found))


def ends_between(before: str, after: str) -> dict[str, int]:
    """Requests that ended in between, by the engine's code."""
    earlier, later = (
        {code: int(float(count)) for code, count in _ENDS.findall(text)} for text in (before, after)
    )
    ended = {code: count - earlier.get(code, 0) for code, count in later.items()}
    return {code: count for code, count in ended.items() if count}
