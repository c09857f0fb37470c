"""A load test of one deployment, wherever it is."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.common import cli, results
from benchmarks.common.measuring import say
from benchmarks.load import client, live, options, text
from benchmarks.load.apis import Api
from benchmarks.load.outcome import Outcome, Progress
from benchmarks.load.summary import summary
from benchmarks.load.traffic import Ask, Mix, Traffic
from benchmarks.load.worker import drive

_PROBE_TOKENS = 4
_LIST_SECONDS = 30.0


class CannotTest(Exception):
    """Why, and what to do."""


def run(args: argparse.Namespace, arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 if nothing went well, 2 if the test could not begin.

    arguments: the command line, for the results; None is this process's.
    """
    try:
        begun = _begin(args, arguments) if args.json else {}
        measured = asyncio.run(_run(args))
    except (CannotTest, OSError) as error:
        say(f"{error}")
        return 2
    except KeyboardInterrupt:  # before the first request of the test itself
        return 130
    print(text.report(measured))
    if args.json:
        _keep(begun | measured, args.json)
    return 0 if measured["figures"]["ok"] else 1


def _begin(args: argparse.Namespace, arguments: Sequence[str] | None) -> dict[str, Any]:
    """What every result begins with. The machine it names is that of the clients.

    Raises `CannotTest` before the test, not after it, if the results cannot be written.
    """
    file: Path = args.json
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir():
            raise IsADirectoryError(f"{file} is a folder")
        tempfile.TemporaryFile(dir=file.parent).close()
    except OSError as error:
        raise CannotTest(f"The results cannot be written to {file}: {error}.") from error
    given = sys.argv[1:] if arguments is None else arguments
    return cli.begin(args, options.without_secrets(given))


def _keep(measured: dict[str, Any], file: Path) -> None:
    """Into the file, or onto the screen should that fail after all."""
    try:
        results.save(measured, file)
    except OSError as error:
        say(f"{file} cannot be written: {error}; here is what would be in it")
        print(results.dumps(measured))


async def _run(args: argparse.Namespace) -> dict[str, Any]:
    api = options.api_of(args)
    models = options.given_models(args.models) if args.models else await list_models(api)
    await probe(api, models[0], args.timeout)
    mix = Mix(tuple(models), args.zipf, args.prompt_tokens, args.output_tokens, args.seed)
    load, progress = options.load_of(args), Progress()
    say(text.plan(api.url, load, args.duration, mix, stream=api.stream))
    interrupted = await _watched(api, mix, load, args, progress)
    seconds = min(args.duration, time.perf_counter() - progress.start)
    return {
        "url": api.url,
        "load": load,
        "seconds": args.duration,
        "stream": api.stream,
        "interrupted": interrupted,
        "mix": asdict(mix) | {"models": len(models)},
        "figures": summary(progress.outcomes, seconds),
        "details": details(progress.outcomes),
    }


async def _watched(
    api: Api, mix: Mix, load: dict[str, float], args: argparse.Namespace, progress: Progress
) -> bool:
    """Whether it was interrupted; what was done until then is in `progress` in any case."""
    traffic = Traffic(mix)
    try:
        async with live.shown(progress):
            await drive(api, traffic, load, args.duration, timeout=args.timeout, progress=progress)
    except asyncio.CancelledError:  # asyncio's way to tell of Ctrl-C
        return True
    return False


def details(outcomes: list[Outcome]) -> dict[str, str]:
    """What the server said with each code that is an error, once."""
    return {outcome.code: outcome.detail for outcome in outcomes if outcome.code != "ok"}


async def probe(api: Api, model: str, timeout: float) -> None:
    """One request, which also opens what opens at the first. Raises `CannotTest`."""
    ask = Ask(0.0, model, "The people of the", _PROBE_TOKENS, seed=0)
    outcome = await client.single(api, ask, timeout=timeout)
    if outcome.code != "ok":
        raise CannotTest(
            f"A first request to {api.url} for the model {model!r} failed ({outcome.code}"
            f"{': ' + outcome.detail if outcome.detail else ''}).{advice(outcome.code)}"
        )


def advice(code: str) -> str:
    """What to do about a first request that failed."""
    match code:
        case "connect":
            return " Is the address right, and does the server run?"
        case "401" | "403":
            return f" Set {options.API_KEY_VARIABLE} or use --api-key-file."
        case "404" | "405":
            return " Name models with --models; if there is no such route, see --api."
        case "timeout":
            return " See --timeout."
        case "broken":
            return " Does the server speak this protocol? See --api."
    return ""


async def list_models(api: Api) -> list[str]:
    """Those that the server names. Raises `CannotTest`."""
    try:
        models = await _pages(api)
    except (aiohttp.ClientError, TimeoutError, ValueError, LookupError, TypeError) as error:
        raise CannotTest(
            f"{api.models_url} does not name the models ({type(error).__name__}: {error}). "
            f"Is the address right, and does it need a key (--api-key-file)? Or use --models."
        ) from error
    if not models:
        raise CannotTest(f"{api.models_url} names no models.")
    return models


async def _pages(api: Api) -> list[str]:
    headers = api.headers(Ask(0.0, "", "", 0, 0))
    timeout = aiohttp.ClientTimeout(total=_LIST_SECONDS)
    models: list[str] = []
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        after: str | None = ""
        while after is not None:
            query = {"after": after} if after else {}
            async with session.get(api.models_url, params=query) as response:
                response.raise_for_status()
                body = await response.json(content_type=None)
            models += [entry["id"] for entry in body.get("data") or body["models"]]
            after = body.get("next")
    return models
