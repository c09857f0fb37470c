"""How fast is one token, and how long does the first one take?

gpt2serve beside transformers, optimum, CTranslate2 and llama.cpp: GPT-2 124M with the same random
weights, a different prompt for each text, the same prompts and the same number of new tokens for
all, sampling with top_k 50, the same number of threads. Every system has a process of its own,
which sleeps while another one is measured; in each round every system is measured in turn.

Decoding is the time in which all texts of a batch grow together; prefill is the time until every
text has its first token.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import peers
from benchmarks.common import cli, limits, model
from benchmarks.common.measuring import say
from benchmarks.common.results import path_of
from benchmarks.decode import measure, plan, report
from benchmarks.peers import CUDA_SYSTEMS, ENGINE_FP32, ENGINE_INT8, LARGEST_BATCH, SYSTEMS, System

_ALL = {"cpu": SYSTEMS, "cuda": CUDA_SYSTEMS}
_NAMES = [system.name for system in (*SYSTEMS, *CUDA_SYSTEMS)]
_CONTEXT_LENGTH = 1024

_EXAMPLES = f"""\
  python -m benchmarks.decode --quick
      four batch sizes, short prompts, {plan.QUICK_ROUNDS} rounds: under two minutes on two cores
  python -m benchmarks.decode
      everything, up to {plan.ROUNDS} rounds: about 30 minutes; take this for figures to publish
  python -m benchmarks.decode --sizes 1 16 --prompts 8 --only "gpt2serve int8" \
--only "transformers fp32"
      less of it
  python -m benchmarks.decode --device cuda
      on a GPU; benchmarks/gpu.md says how

systems: {", ".join(_NAMES)}"""


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    systems = peers.installed(chosen(args))
    if not systems:
        say("no system is left")
        return 2
    results = cli.begin(args, arguments)
    results["header"]["versions"] |= peers.versions(systems)
    results |= settings(args)
    if args.device == "cuda":
        args.output = args.output or path_of("decode-cuda", quick=args.quick)
        results |= gpu()
    assets = model.prepare(args.cache, [system.format for system in systems if system.format])
    if args.device == "cpu":
        results |= cpu_limits(args, systems, assets)
    made = measure.Measurements()
    results |= {"failed": made.failed, "measurements": made.entries}
    with (
        cli.keeping(args, results),
        measure.workers(systems, assets, args.threads, made.failed) as running,
    ):
        grid = measure.Grid(
            running,
            assets,
            plan.cells(results["sizes"], results["prompts"]),
            new_tokens=results["new_tokens"],
            fixed=args.new_tokens is not None,
            made=made,
        )
        grid.measure(results["rounds"], plan.CELL_SECONDS)
    cli.finish(args, results, report)
    return 1 if made.failed else 0


def parser() -> argparse.ArgumentParser:
    made = cli.new_parser("decode", __doc__, _EXAMPLES)
    add = made.add_argument
    add("--device", choices=sorted(_ALL), default="cpu", help="default: cpu")
    add("--sizes", type=_size, nargs="+", metavar="B", help=f"batch sizes {_default(plan.SIZES)}")
    prompts = f"lengths of the prompts in tokens {_default(plan.PROMPTS)}"
    add("--prompts", type=_length, nargs="+", metavar="P", help=prompts)
    tokens = f"exactly N for each text (default: {plan.NEW_TOKENS}, or more for long prompts)"
    add("--new-tokens", type=_length, metavar="N", help=tokens)
    rounds = f"at most (default: {plan.ROUNDS}, with --quick {plan.QUICK_ROUNDS})"
    add("--rounds", type=cli.positive, metavar="N", help=rounds)
    for option, verb in (("--skip", "leave this system out"), ("--only", "only this system")):
        add(option, action="append", choices=_NAMES, metavar="NAME", help=f"{verb}; repeatable")
    return made


def _default(numbers: Sequence[int]) -> str:
    return f"(default: {' '.join(map(str, numbers))})"


def _size(text: str) -> int:
    number = cli.positive(text)
    if number > LARGEST_BATCH:
        raise argparse.ArgumentTypeError(f"must be at most {LARGEST_BATCH}")
    return number


def _length(text: str) -> int:
    number = cli.positive(text)
    if number > _CONTEXT_LENGTH // 2:
        raise argparse.ArgumentTypeError(f"must be at most {_CONTEXT_LENGTH // 2}")
    return number


def chosen(args: argparse.Namespace) -> list[System]:
    """Those of the device that the options leave."""
    return [
        system
        for system in _ALL[args.device]
        if system.name not in (args.skip or ()) and system.name in (args.only or _NAMES)
    ]


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What is measured, for the results: options, else the defaults of a quick or a full run."""
    quick = args.quick
    return {
        "device": args.device,
        "sizes": args.sizes or list(plan.QUICK_SIZES if quick else plan.SIZES),
        "prompts": args.prompts or list(plan.QUICK_PROMPTS if quick else plan.PROMPTS),
        "rounds": args.rounds or (plan.QUICK_ROUNDS if quick else plan.ROUNDS),
        "new_tokens": args.new_tokens or (plan.QUICK_NEW_TOKENS if quick else plan.NEW_TOKENS),
        "cell_seconds": plan.CELL_SECONDS,
        "most_seconds": plan.MOST_SECONDS,
    }


def cpu_limits(
    args: argparse.Namespace, systems: Sequence[System], assets: model.Assets
) -> dict[str, Any]:
    """What memory and arithmetic allow, and what a token needs of them."""
    say("measuring memory and int8 arithmetic")
    ours = [system for system in systems if system.name in (ENGINE_INT8, ENGINE_FP32)]
    made: dict[str, Any] = {
        "bandwidth": limits.read_bandwidth(args.threads),
        "int8_rate": limits.int8_rate(args.threads),
    }
    for system in ours:
        bytes_read = limits.weight_bytes_per_token(assets.store, system.precision)
        made.setdefault("weight_bytes", {})[system.name] = bytes_read
        made["macs_per_token"] = limits.macs_per_token(assets.store, system.precision)
        made["head_macs"] = limits.head_macs(assets.store, system.precision)
    return made


def gpu() -> dict[str, Any]:
    """Names of the GPUs and the driver's version."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"No NVIDIA GPU can be used here: {error}") from error
    return {"gpu": done.stdout.strip().splitlines()}


if __name__ == "__main__":
    sys.exit(cli.run(main))
