"""Writes docs/api.md: the reference of a server with everything switched on.

python docs/make_api.py           write it
python docs/make_api.py --check   say whether it is up to date
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from gpt2serve.api.openapi import complete
from gpt2serve.api.reference import reference
from gpt2serve.app import create_app
from gpt2serve.engine.engine import Engine
from gpt2serve.logs import create_logger
from gpt2serve.settings import server_settings

PAGE = Path(__file__).with_name("api.md")


def api_page() -> str:
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys"
        keys.write_text("# nobody\n", encoding="utf-8")
        settings = server_settings(admin_key="0123456789abcdef", api_key_file=keys)
        silent = create_logger("json", io.StringIO())
        app = create_app(engine=Engine(folder), server_settings=settings, log=silent)
        return reference(complete(app, app.openapi_schema.to_schema()))


def main() -> int:
    new = api_page()
    if "--check" in sys.argv:
        return int(not PAGE.exists() or PAGE.read_text(encoding="utf-8") != new)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
