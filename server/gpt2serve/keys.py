"""`python -m gpt2serve.keys NAME`: make an API key and its line for `--api-key-file`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from gpt2serve.api.key_file import WrongLine, digest_of, new_key, parse_line

_DESCRIPTION = """\
Make an API key for gpt2serve. The key goes to standard error, once; its line for the file of
--api-key-file goes to standard output. The line holds a hash: nobody can get the key out of it.
"""

_EPILOG = """\
examples:
  python -m gpt2serve.keys alice >> keys.txt
  python -m gpt2serve.keys bot --rate 60000 --models 'huggingtweets/*,me/my-model' >> keys.txt
  gpt2serve --store models/ --api-key-file keys.txt

  curl -s localhost:8000/models -H 'Authorization: Bearer gpt2serve_...'

A running server reads the file again when it changes: a key whose line is taken out is refused
within a second. docs/keys.md has more.
"""


def main(argv: Sequence[str] | None = None) -> int:
    asked = _parser().parse_args(argv)
    key = new_key()
    line = f"sha256:{digest_of(key).hex()}  {asked.name}"
    line += "" if asked.rate is None else f"  rate={asked.rate}"
    line += "" if asked.models is None else f"  models={asked.models}"
    try:
        parse_line(line)
    except WrongLine as wrong:
        sys.stderr.write(f"gpt2serve.keys: error: the line {wrong}.\n")
        return 2
    sys.stderr.write(f"{key}\n")
    sys.stdout.write(f"{line}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gpt2serve.keys",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", help="whose key it is; logs show it")
    parser.add_argument("--rate", metavar="TOKENS", help="tokens per minute; if not given, any")
    parser.add_argument(
        "--models", metavar="PATTERNS", help="model ids with commas; * stands for any characters"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
