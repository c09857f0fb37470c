"""`gpt2export`: the command line.

Only the standard library and the package format are imported up here, so that --help and a
mistyped option answer at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2export import __version__
from gpt2export.errors import ExportError, UsageError
from gpt2serve.package import (
    VARIANTS,
    InvalidModelId,
    Precision,
    Target,
    check_model_id,
    variant_name,
)

if TYPE_CHECKING:
    from gpt2export.exporter import Job, Options, Outcome

_DEFAULT_PRECISION: dict[Target, Precision] = {"cpu": "int8", "cuda": "fp16"}

#: Folder names inside a model's folder: a model 'org/portable' would lie in one of 'org'.
_TAKEN = frozenset({"portable", *(variant_name(*variant) for variant in VARIANTS)})

_DESCRIPTION = """\
Turn GPT-2 checkpoints into model packages for gpt2serve.

A CHECKPOINT is a folder as transformers saves it (config.json, model.safetensors or
pytorch_model.bin, tokenizer files) or the id of one on the Hugging Face hub, which needs a
network. Each package is compared with the original in PyTorch before it is published."""

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
  gpt2export checkpoints/*/ --store models/ --jobs 4
      many, four at a time (each needs up to 2 GB of memory for a 124M model);
      those that are exported and unchanged are skipped

exit status: 0 if every package is in the store, 1 if any failed, 2 for a wrong option."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_intermixed_args(arguments)  # options may stand between checkpoints
    try:
        jobs, options = _jobs(args), _options(args)
    except (UsageError, InvalidModelId) as error:
        parser.error(str(error))
    # Before torch starts its threads: ones that spin for work are many times slower on a machine
    # that is busy with something else. Worker processes inherit it.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        return _export(jobs, options, args.jobs)
    except KeyboardInterrupt:
        print("interrupted; what was published before stays.", file=sys.stderr)
        return 130
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
    add("checkpoints", nargs="+", metavar="CHECKPOINT", help="folder or hub id")
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
    add("--version", action="version", version=f"gpt2export {__version__}")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _options(args: argparse.Namespace) -> Options:
    from gpt2export.exporter import Options

    if args.no_verify and args.calibration:
        raise UsageError("--calibration has no use with --no-verify.")
    if args.calibration and not args.calibration.is_file():
        raise UsageError(f"--calibration: there is no file {args.calibration}.")
    targets: list[Target] = list(dict.fromkeys(args.target or ["cpu"]))
    return Options(
        store=args.store,
        variants=tuple((target, _precision(target, args.precision)) for target in targets),
        force=args.force,
        portable=args.portable,
        verify=not args.no_verify,
        calibration=args.calibration,
        threads=os.cpu_count() or 1,
    )


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


def _jobs(args: argparse.Namespace) -> list[Job]:
    from gpt2export.exporter import Job
    from gpt2export.hub import default_id

    if args.model and len(args.checkpoints) > 1:
        raise UsageError("--id names one model; with several checkpoints leave it out.")
    jobs = [
        Job(checkpoint, _checked_id(args.model or default_id(checkpoint)))
        for checkpoint in dict.fromkeys(args.checkpoints)
    ]
    models = [job.model for job in jobs]
    twice = sorted({model for model in models if models.count(model) > 1})
    if twice:
        raise UsageError(
            f"several checkpoints would become {', '.join(twice)}: export them one by one, "
            "with --id."
        )
    return jobs


def _checked_id(model: str) -> str:
    last = check_model_id(model).rsplit("/", 1)[-1]
    if "/" in model and last in _TAKEN:
        raise UsageError(f"{model!r} is not possible as an id: {last!r} is a package's folder.")
    return model


def _export(jobs: list[Job], options: Options, processes: int) -> int:
    from tqdm import tqdm

    from gpt2export.batch import run_all
    from gpt2export.table import render

    many = len(jobs) > 1
    outcomes: list[Outcome] = []
    with tqdm(total=len(jobs), unit="model", disable=not many, file=sys.stderr) as bar:
        # Beside a bar there is room for a few words only: what is being done now.
        say = bar.set_postfix_str if many else print
        for finished in run_all(jobs, options, processes, say):
            outcomes += finished
            bar.update()
    print(render(outcomes))
    return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
