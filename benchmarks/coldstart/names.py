"""Names in tables and for --skip."""

from __future__ import annotations

from benchmarks.peers import ENGINE_INT8, SYSTEMS

#: The first load of a model in a process: its files are compared with their hashes.
CHECKED = f"{ENGINE_INT8}, first load"
#: The simple way: one session, packed before the first token.
PACKED_FIRST = f"{ENGINE_INT8}, packed first"
#: `POST /generate` of a server.
HTTP = f"{ENGINE_INT8}, HTTP"
#: The engine's, besides itself.
VARIANTS = (HTTP, CHECKED, PACKED_FIRST)
NAMES = (
    HTTP,
    ENGINE_INT8,
    CHECKED,
    PACKED_FIRST,
    *(one.name for one in SYSTEMS if one.name != ENGINE_INT8),
)
