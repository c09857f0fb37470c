"""Many checkpoints, one after the other or in several processes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context

from gpt2export.exporter import Exporter, Job, Options, Outcome, Say


def run_all(jobs: list[Job], options: Options, processes: int, say: Say) -> Iterator[list[Outcome]]:
    """The outcomes of each job as it ends; goes on after failures.

    Every process holds one checkpoint at a time, so memory is bounded by their number.
    """
    if processes == 1 or len(jobs) == 1:
        for job in jobs:
            yield list(Exporter(job, options, say).run())
        return
    processes = min(processes, len(jobs))
    options = replace(options, threads=max(1, options.threads // processes))
    # Spawned, not forked: a fork would copy torch's threads in an undefined state.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(_run_one, job, options): job for job in jobs}
        for future in as_completed(futures):
            yield _outcomes(future, futures[future])


def _run_one(job: Job, options: Options) -> list[Outcome]:
    return list(Exporter(job, options, _silent).run())


def _silent(line: str) -> None:
    """Lines of several processes would mix."""


def _outcomes(future: Future[list[Outcome]], job: Job) -> list[Outcome]:
    try:
        return future.result()
    except Exception as error:  # a killed worker, mostly for want of memory
        message = f"the exporting process failed ({error}); try a smaller --jobs."
        return [Outcome(job.model, "-", "failed", message=message)]
