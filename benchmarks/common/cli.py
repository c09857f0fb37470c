"""What the command lines of all benchmarks have in common."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.common import machine, model, results
from benchmarks.common.measuring import say

_CAUTION = """\
Stop other work on the machine: it disturbs every figure. The first run makes the model, which
takes about half a minute, and keeps it in benchmarks/.cache."""


def new_parser(name: str, description: str | None, examples: str) -> argparse.ArgumentParser:
    """A parser with --quick, --output, --threads and --cache."""
    parser = plain_parser(name, description, f"{examples}\n\n{_CAUTION}")
    add = parser.add_argument
    add(
        "--threads",
        type=positive,
        metavar="N",
        default=len(os.sched_getaffinity(0)),
        help="threads of each system (default: one a core, which is %(default)s here)",
    )
    add(
        "--cache",
        type=Path,
        metavar="DIR",
        default=model.CACHE,
        help="where the model is kept (default: benchmarks/.cache)",
    )
    return parser


def plain_parser(name: str, description: str | None, examples: str) -> argparse.ArgumentParser:
    """A parser with --quick and --output, for a benchmark that runs no model."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="less of everything, about a minute")
    add(
        "--output",
        type=Path,
        metavar="FILE",
        help=f"raw results as JSON (default: benchmarks/results/{name}.json, "
        f"with --quick benchmarks/results/quick/{name}.json)",
    )
    parser.set_defaults(benchmark=name, threads=1)
    return parser


def positive(text: str) -> int:
    """For argparse's `type`."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def begin(args: argparse.Namespace, arguments: Sequence[str] | None) -> dict[str, Any]:
    """The beginning of the results: what was run, and on what."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    command = " ".join([f"python -m benchmarks.{args.benchmark}", *given])
    header = machine.describe(args.threads, command)
    return {"benchmark": args.benchmark, "quick": args.quick, "header": header}


@contextlib.contextmanager
def keeping(args: argparse.Namespace, measured: dict[str, Any]) -> Iterator[None]:
    """Should what is inside fail or be interrupted, save what `measured` holds by then.

    It goes into a file of its own, `<benchmark>.incomplete.json`: the results of the last run that
    came to its end stay. So measurements must be put into `measured` as they are made.
    """
    try:
        yield
    except BaseException as error:
        path = _path(args).with_suffix(".incomplete.json")
        reason = f"{type(error).__name__}: {error}".strip(": ")
        results.save({**measured, "incomplete": reason}, path)
        say(f"not finished ({reason.splitlines()[0]})")
        say(f"what was measured until then is in {results.relative(path)}")
        raise


def finish(args: argparse.Namespace, measured: dict[str, Any], report: ModuleType) -> None:
    """Save the results and print the report."""
    path = _path(args)
    results.save(measured, path)
    print(report.markdown(measured))
    say(f"raw results are in {results.relative(path)}")
    if path == results.path_of(args.benchmark, quick=False):
        say("`python -m benchmarks.docs` writes docs/benchmarks.md from them")


def run(main: Callable[[], int]) -> int:
    """For `sys.exit`; Ctrl-C ends a benchmark without a traceback, with the shell's status."""
    try:
        return main()
    except KeyboardInterrupt:
        return 130


def _path(args: argparse.Namespace) -> Path:
    return args.output or results.path_of(args.benchmark, quick=args.quick)
