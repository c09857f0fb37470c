"""How long does a model that is not in memory take to its first token, and to thirty?

Every system runs in a process that has started and imported what it needs, and has no model. Then
the model of 124M parameters is loaded and continues a prompt of 8 tokens; then it is let go. The
files lie in the page cache (warm), or were dropped from it (cold; where that cannot be done, each
start has other files), which is looked at before the clock starts. In each round every system
starts once warm and once cold, in turn.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks.coldstart import cooling, disk, page_cache, report
from benchmarks.coldstart.cooling import ANOTHER_FILE
from benchmarks.coldstart.measure import Rounds
from benchmarks.coldstart.names import CHECKED, HTTP, NAMES, PACKED_FIRST, VARIANTS
from benchmarks.coldstart.opening import Opener
from benchmarks.coldstart.subjects import TOKENS, Subject
from benchmarks.common import cli, model
from benchmarks.common.measuring import TRIES, say
from benchmarks.peers import (
    CT2_INT8,
    ENGINE_INT8,
    LLAMA_CPP,
    OPTIMUM,
    SYSTEMS,
    TRANSFORMERS,
    System,
    installed,
    versions,
)

ROUNDS, QUICK_ROUNDS = 7, 2
QUICK_NAMES = (
    HTTP,
    ENGINE_INT8,
    CHECKED,
    PACKED_FIRST,
    TRANSFORMERS,
    CT2_INT8,
    LLAMA_CPP,
)
PROMPT_TOKENS = 8

_EXAMPLES = f"""\
  python -m benchmarks.coldstart --quick
      {QUICK_ROUNDS} rounds of {len(QUICK_NAMES)} systems; half a minute on two cores
  python -m benchmarks.coldstart
      {ROUNDS} rounds of all; about three minutes
  python -m benchmarks.coldstart --skip "{OPTIMUM}" --cache /mnt/disk
      without that one, and with the models on another disk

systems for --skip: {"; ".join(NAMES)}"""


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    names = [name for name in (QUICK_NAMES if args.quick else NAMES) if name not in args.skip]
    systems = installed(system for system in SYSTEMS if is_needed(system, names))
    if not names or not systems:
        say("no system is left")
        return 2
    measured = cli.begin(args, arguments)
    measured["header"]["versions"] |= versions(systems)
    assets = model.prepare(args.cache, [system.format for system in systems if system.format])
    count = QUICK_ROUNDS if args.quick else ROUNDS
    measured |= {"rounds": count, "tokens": TOKENS, "prompt_tokens": PROMPT_TOKENS}
    measured |= {"failed": {}, "file_bytes": {}, "direct_rates": {}, "starts": []}
    with cli.keeping(args, measured), ExitStack() as stack:
        opener = Opener(
            stack,
            assets,
            args.cache / "coldstart",
            args.threads,
            new_models=TRIES * (2 * count + 1),
            failed=measured["failed"],
        )
        (prompt,) = model.prompts(assets.checkpoint, 1, PROMPT_TOKENS)
        say(f"starting {len(systems)} systems")
        opened = [one for system in systems for one in opener.open(system, prompt)]
        subjects = [one for one in opened if one.name in names]
        run(subjects, count, measured, another_file=args.another_file)
    if measured["starts"]:
        cli.finish(args, measured, report)
    else:
        say("nothing was measured")
    return 1 if measured["failed"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = cli.new_parser("coldstart", __doc__, _EXAMPLES)
    parser.add_argument(
        "--skip",
        action="append",
        default=[],
        metavar="SYSTEM",
        choices=NAMES,
        help="leave this system out; may be repeated",
    )
    parser.add_argument(
        "--another-file",
        action="store_true",
        help="for cold starts make copies of the files each time, instead of dropping them from "
        "the page cache; what is in it all the same is told. Takes some GB of the disk",
    )
    return parser


def is_needed(system: System, names: Sequence[str]) -> bool:
    """For itself or for its variants."""
    return system.name in names or (system.name == ENGINE_INT8 and bool({*VARIANTS} & {*names}))


def run(
    subjects: Sequence[Subject], count: int, measured: dict[str, Any], *, another_file: bool
) -> None:
    """Fills `measured`."""
    sets = [subject.files for subject in subjects]
    by, problem = (ANOTHER_FILE, "") if another_file else cooling.choose(sets)
    measured |= {"cold_by": by, "not_dropped": problem}
    for subject, files in zip(subjects, sets, strict=True):
        measured["file_bytes"][subject.name] = page_cache.size_of(files)
        rate = disk.direct_rate(files) if by else None
        measured["direct_rates"][subject.name] = rate
    Rounds(subjects, by, measured["starts"], measured["failed"]).measure(count)


if __name__ == "__main__":
    sys.exit(cli.run(main))
