"""`gpt2export`: the command line.

Only the standard library and the package format are imported up here, so that --help and a
mistyped option answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2export import __version__
from gpt2export.errors import ExportError, UsageError
from gpt2export.share import Share, parse_share
from gpt2serve.package import VARIANTS, InvalidModelId, Precision, Target

if TYPE_CHECKING:
    from gpt2export.exporter import Options, Outcome
    from gpt2export.find import Entry, Found
    from gpt2export.report import Kept

_DEFAULT_PRECISION: dict[Target, Precision] = {"cpu": "int8", "cuda": "fp16"}

#: As a shell says it of a command that Ctrl-C has ended.
INTERRUPTED = 130

_DESCRIPTION = """\
Turn GPT-2 checkpoints into model packages for gpt2serve.

A CHECKPOINT is a folder as transformers saves it (config.json, model.safetensors or
pytorch_model.bin, tokenizer files), or the id of one on the Hugging Face hub, which needs a
network, or a folder of checkpoints: those in FOLDER/name/ and FOLDER/org/name/ are exported as
'name' and 'org/name'. Each package is compared with the original in PyTorch before it is
published."""

_EXAMPLES = """\
examples:
  gpt2export ./my-model --store models/
      int8 for CPUs, as models/my-model/cpu-int8/
  gpt2export huggingtweets/bestmusiclyric-bygpt3 --store models/
      from the hub, under the same id
  gpt2export ./my-model --store models/ --id me/poems --precision fp32
      exact weights under another id
  gpt2export ./my-model --store models/ --target cpu --target cuda
      int8 for CPUs and fp16 for GPUs
  gpt2export checkpoints/ --store models/ --jobs 4 --report report.jsonl
      all in a folder, four at a time (each needs up to 2 GB of memory for a 124M model)

many checkpoints: those that are exported and unchanged are skipped, so the same command goes on
after a break of any kind, and failures do not stop the others. Ctrl-C lets what runs end for
10 s, a second one stops at once.

exit status: 0 if every package is in the store, 1 if any failed, 2 for a wrong option,
130 after Ctrl-C."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_intermixed_args(arguments)  # options may stand between checkpoints
    # Before torch starts its threads: ones that spin for work are many times slower on a machine
    # that is busy with something else. Worker processes inherit it.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        return _run(args)
    except (UsageError, InvalidModelId) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("interrupted; what was published before stays.", file=sys.stderr)
        return INTERRUPTED
    except ExportError as error:
        print(f"gpt2export: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpt2export",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "checkpoints",
        nargs="*",
        metavar="CHECKPOINT",
        help="folder, hub id, or folder of checkpoints",
    )
    add(
        "--from-file",
        metavar="FILE",
        help="read more of them from FILE, one a line, with its id after a tab if it is to have "
        "another one; - is standard input",
    )
    add("--store", type=Path, required=True, metavar="DIR", help="where packages go")
    add(
        "--target",
        action="append",
        choices=("cpu", "cuda"),
        help="repeat it for several (default: cpu)",
    )
    add(
        "--precision",
        choices=("int8", "fp32", "fp16"),
        help="default: int8 for cpu (fp32 is the other choice), fp16 for cuda",
    )
    add("--id", dest="model", metavar="ID", help="default: the folder's name, or the hub id")
    add("--force", action="store_true", help="export again what is unchanged")
    add("--portable", action="store_true", help="also write a standard ONNX folder with optimum")
    add("--no-verify", action="store_true", help="publish without comparing with PyTorch")
    add(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="compare on this text (default: a text that ships with the exporter)",
    )
    add("--jobs", type=_positive, default=1, metavar="N", help="checkpoints at a time (default: 1)")
    add(
        "--share",
        type=parse_share,
        default=Share(),
        metavar="I/N",
        help="only every N-th checkpoint, from number I on, which begins with 0: for N machines "
        "with one list",
    )
    add("--report", type=Path, metavar="FILE", help="write a line of JSON for each package")
    add("--version", action="version", version=f"gpt2export {__version__}")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _options(args: argparse.Namespace) -> Options:
    from gpt2export.calibration import read_calibration
    from gpt2export.exporter import Options

    if args.no_verify and args.calibration:
        raise UsageError("--calibration has no use with --no-verify.")
    try:
        text = read_calibration(args.calibration)
    except ExportError as error:
        raise UsageError(f"--calibration: {error}") from error
    targets: list[Target] = list(dict.fromkeys(args.target or ["cpu"]))
    return Options(
        store=args.store,
        variants=tuple((target, _precision(target, args.precision)) for target in targets),
        force=args.force,
        portable=args.portable,
        verify=not args.no_verify,
        calibration=text,
        threads=_threads(),
    )


def _threads() -> int:
    """OMP_NUM_THREADS, which whoever has only a part of the machine's cores sets; else all."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(asked)) if asked.isdecimal() else os.cpu_count() or 1


def _precision(target: Target, asked: Precision | None) -> Precision:
    precision = asked or _DEFAULT_PRECISION[target]
    if (target, precision) in VARIANTS:
        return precision
    if target == "cpu":
        raise UsageError(
            "--precision fp16 is for --target cuda: CPUs compute in float32 and would convert "
            "every weight at every step. Take int8 or fp32."
        )
    raise UsageError(
        f"--precision {precision} is for --target cpu: on a GPU the fused attention works in "
        "float16. Take fp16."
    )


def _found(args: argparse.Namespace) -> Found:
    from gpt2export.find import Entry, find

    entries = [Entry(word) for word in args.checkpoints]
    if args.from_file:
        entries += _listed(args.from_file)
    if not entries:
        raise UsageError("name a CHECKPOINT, or a list of them with --from-file.")
    if args.model:
        if len(entries) > 1:
            raise UsageError("--id names one model; with several checkpoints leave it out.")
        entries = [Entry(entries[0].word, args.model)]
    found = find(entries)
    found.jobs, found.wrong = args.share.of(found.jobs), args.share.of(found.wrong)
    return found


def _listed(name: str) -> list[Entry]:
    from gpt2export.find import read_list

    try:
        if name == "-":
            return list(read_list(sys.stdin))
        with Path(name).open(encoding="utf-8") as lines:
            return list(read_list(lines))
    except (OSError, ValueError) as error:
        raise UsageError(f"--from-file: {name} cannot be read ({error}).") from error


def _run(args: argparse.Namespace) -> int:
    from gpt2export.exporter import failures
    from gpt2export.report import Kept, Report

    found, options = _found(args), _options(args)
    report = Report(args.report) if args.report else contextlib.nullcontext()
    with report as file:
        kept = Kept(file)
        for job, reason in found.wrong:
            kept.add(failures(job, options, reason))
        if not found.jobs and not found.wrong:
            print("nothing to do: there are fewer checkpoints than shares.")
            return 0
        if len(found.jobs) + len(found.wrong) > 1:
            return _export_many(found, options, args.jobs, kept)
        return _export_one(found, options, kept)


def _export_one(found: Found, options: Options, kept: Kept) -> int:
    from gpt2export.exporter import Exporter
    from gpt2export.table import render

    for job in found.jobs:
        for outcome in Exporter(job, options, print).run():
            kept.add([outcome])
    print(render(kept.outcomes))
    return _status(kept.outcomes)


def _export_many(found: Found, options: Options, processes: int, kept: Kept) -> int:
    from gpt2export import batch as batches
    from gpt2export.progress import Progress
    from gpt2export.table import render

    begin = time.monotonic()
    problem = ""
    with (
        contextlib.closing(Progress(len(found.jobs), sys.stderr)) as progress,
        _counted_interrupts() as interrupts,
    ):
        _say_what_is_left_out(found, progress.note)
        batch = batches.Batch(found.jobs, options, processes, progress, interrupts)
        try:
            for finished in batch.run():
                kept.add(finished)
        except ExportError as error:
            problem = str(error)
    print(render(kept.outcomes, time.monotonic() - begin), flush=True)
    if problem or batch.stopped:
        print(
            f"gpt2export: {problem or batch.stopped}; {batch.left:,} of {len(found.jobs):,} "
            "checkpoints are not done. The same command goes on with them.",
            file=sys.stderr,
        )
    if batch.stopped == batches.INTERRUPTED:
        return INTERRUPTED
    return 1 if problem or batch.stopped else _status(kept.outcomes)


def _status(outcomes: Sequence[Outcome]) -> int:
    return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0


def _say_what_is_left_out(found: Found, note: Callable[[str], None]) -> None:
    if found.without:
        count = len(found.without)
        some = ", ".join(found.without[:5]) + (", ..." if count > 5 else "")
        note(f"{count:,} folder(s) without a checkpoint are left out: {some}")


@contextlib.contextmanager
def _counted_interrupts() -> Iterator[Callable[[], int]]:
    """Within it, Ctrl-C raises nothing; the function tells how often it was pressed."""
    times = 0

    def count(_signal: int, _frame: object) -> None:
        nonlocal times
        times += 1

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0  # only the main thread gets signals
        return
    before = signal.signal(signal.SIGINT, count)
    try:
        yield lambda: times
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    sys.exit(main())
