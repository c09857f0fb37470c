"""The command line: what a deployment is asked, how often, and by whom."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.cli import new_parser, positive
from benchmarks.load.apis import APIS, Api
from benchmarks.load.traffic import TWEET_OUTPUTS, TWEET_PROMPTS, Lengths

API_KEY_VARIABLE = "LOAD_API_KEY"
DEFAULT_CLIENTS = 4
#: Options whose values are nobody's business.
_SECRET = ("--api-key", "--header")

_EXAMPLES = """\
  # 20 requests a second for a minute, on models that the server names, popular ones more often
  python -m benchmarks.load --url http://localhost:8000 --rate 20 --duration 60
  # 16 users that each wait for their answer; any server that speaks OpenAI's completions
  python -m benchmarks.load --url http://localhost:8001 --api completions --clients 16
  # 50 requests at once, every 10 seconds, of two models
  python -m benchmarks.load --url http://localhost:8000 --burst 50 --every 10 --models a,b
  # vLLM, drawing from the 50 likeliest tokens as --api generate does: its default is all of them
  python -m benchmarks.load --url http://localhost:8001 --api completions \
--extra-body '{"top_k": 50}'
  # this server beside others, on this machine
  python -m benchmarks.load --quick"""


def parser(description: str | None) -> argparse.ArgumentParser:
    parser = new_parser("load", description, _EXAMPLES)
    parser.allow_abbrev = False  # so that `without_secrets` knows every spelling
    _add_target(parser.add_argument_group("the deployment (without --url: the comparison)"))
    _add_load(parser.add_argument_group("when requests are sent (with --url)"))
    _add_requests(parser.add_argument_group("what is asked (with --url)"))
    return parser


def _add_target(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--url", type=_url, metavar="URL", help="test the server at this address")
    add("--api", choices=sorted(APIS), default="generate", help="POST /generate or /v1/completions")
    add(
        "--models",
        metavar="FILE|ID,ID",
        help="the most popular first; a file has one a line (default: those the server names)",
    )
    add(
        "--header",
        type=_header,
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="send this too; {model} becomes the model of the request",
    )
    add(
        "--api-key",
        metavar="KEY",
        default=os.environ.get(API_KEY_VARIABLE),
        help=f"sent as a bearer token; others see a command line, so prefer the environment's "
        f"{API_KEY_VARIABLE} or:",
    )
    add("--api-key-file", type=Path, metavar="FILE", help="a file that has the key")
    add("--timeout", type=_seconds, default=60.0, metavar="S", help="patience (default: 60)")
    add("--json", type=Path, metavar="FILE", help="write the figures there too")


def _add_load(group: argparse._ArgumentGroup) -> None:
    one = group.add_mutually_exclusive_group()
    one.add_argument(
        "--rate",
        type=_seconds,
        metavar="R",
        help="open loop: R requests a second, at random times, whatever the server does",
    )
    one.add_argument(
        "--clients",
        type=positive,
        metavar="N",
        help=f"closed loop: N clients that wait for each answer (default: {DEFAULT_CLIENTS})",
    )
    one.add_argument("--burst", type=positive, metavar="SIZE", help="SIZE requests at once")
    add = group.add_argument
    add("--every", type=_seconds, default=10.0, metavar="S", help="between bursts (default: 10)")
    add("--duration", type=_seconds, default=30.0, metavar="S", help="in all (default: 30)")


def _add_requests(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--zipf",
        type=float,
        default=1.0,
        metavar="S",
        help="of popularity; 0: all equal (default: 1)",
    )
    for name, default in (("--prompt-tokens", TWEET_PROMPTS), ("--output-tokens", TWEET_OUTPUTS)):
        add(
            name,
            type=lengths,
            default=default,
            metavar="N|LOW-HIGH",
            help=f"log-normal between the two (default: like tweets, {default.low} to "
            f"{default.high}, mostly about {default.median:.0f})",
        )
    add("--exact", action="store_true", help="a model may not end its text before --output-tokens")
    add("--whole", dest="stream", action="store_false", help="ask for whole answers")
    add("--stream", action="store_true", default=True, help="ask for streams (the default)")
    add("--seed", type=int, default=0, metavar="N", help="of the traffic (default: 0)")
    add(
        "--extra-body",
        type=_object,
        default={},
        metavar="JSON",
        help="an object whose fields are put into every request's body",
    )


def lengths(text: str) -> Lengths:
    """ "20" is always 20; "10-60" lies between, and 95 % of it would do so without the limits."""
    try:
        ends = [positive(part) for part in text.split("-")]
    except ValueError:
        ends = []
    if not 1 <= len(ends) <= 2 or ends[0] > ends[-1]:
        raise argparse.ArgumentTypeError("must be a number, or two as in 10-60")
    low, high = ends[0], ends[-1]
    return Lengths(math.sqrt(low * high), math.log(high / low) / 4, low, high)


def _url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError("must begin with http:// or https://")
    return text


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError("must be greater than 0")
    return number


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise argparse.ArgumentTypeError("must look like 'Name: value'")
    return name.strip(), value.strip()


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("""must be a JSON object, such as '{"top_k": 50}'""")
    return value


def without_secrets(arguments: Sequence[str]) -> list[str]:
    """The command line as it may be kept: without keys and without values of headers."""
    kept: list[str] = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if kept and kept[-1] in _SECRET:
            kept.append(_hidden(kept[-1], argument))
        elif option in _SECRET and equals:
            kept.append(f"{option}={_hidden(option, value)}")
        else:
            kept.append(argument)
    return kept


def _hidden(option: str, value: str) -> str:
    name, colon, _ = value.partition(":")
    return f"{name}: ***" if option == "--header" and colon else "***"


def api_of(args: argparse.Namespace) -> Api:
    """Raises `OSError` if the key's file cannot be read."""
    headers = dict(args.header)
    key = args.api_key_file.read_text().strip() if args.api_key_file else args.api_key
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return APIS[args.api](
        args.url,
        stream=args.stream,
        exact=args.exact,
        extra_headers=headers,
        extra_body=args.extra_body,
    )


def load_of(args: argparse.Namespace) -> dict[str, float]:
    """For `worker.drive`."""
    if args.rate:
        return {"rate": args.rate}
    if args.burst:
        return {"burst": args.burst, "every": args.every}
    return {"clients": args.clients or DEFAULT_CLIENTS}


def given_models(text: str) -> list[str]:
    """Of `--models`."""
    path = Path(text)
    parts = path.read_text(encoding="utf-8").splitlines() if path.is_file() else text.split(",")
    return [name for part in parts if (name := part.strip())]
