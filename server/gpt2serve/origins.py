"""Web origins, as browsers write them in `Origin`: scheme, host, and a port that is not usual."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gpt2serve.errors import SettingsError

ANY_ORIGIN = "*"

_USUAL_PORTS = {"http": 80, "https": 443}
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]+\]"
_ORIGIN = re.compile(rf"(?P<scheme>https?)://(?:{_HOST})(?::(?P<port>[1-9][0-9]{{0,4}}))?")


def check_origins(origins: Sequence[str]) -> None:
    """Raise `SettingsError` unless each could be what a browser sends, or the only one is `*`.

    They are compared character by character: one that is nearly right would never match.
    """
    if ANY_ORIGIN in origins and len(origins) > 1:
        raise SettingsError("cors_origins: * stands for all origins and must be the only one.")
    for origin in origins:
        if origin != ANY_ORIGIN and not _is_origin(origin):
            raise SettingsError(
                f"cors_origins: {origin!r} is not an origin: write it as browsers do, "
                "https://example.com or http://localhost:3000, in lower case, without a path, "
                "without wildcards, without port 443 of https or 80 of http."
            )


def _is_origin(text: str) -> bool:
    match = _ORIGIN.fullmatch(text)
    if match is None:
        return False
    port = int(match["port"] or 0)
    return port <= 65535 and port != _USUAL_PORTS[match["scheme"]]
