"""A process that exports one checkpoint after the other.

Talks over a connection: options come first, then a job at a time; `Said` and `Done` go back.
Torch and onnxruntime are loaded once, and only if something is to be made.
"""

from __future__ import annotations

import os
import queue
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection

from gpt2export.exporter import Exporter, Job, Options, Outcome, failures


@dataclass(frozen=True)
class Ready:
    """The process can take jobs."""


@dataclass(frozen=True)
class Said:
    """What is being done now."""

    text: str


@dataclass(frozen=True)
class Done:
    """The job that was given last has ended."""

    outcomes: list[Outcome]


def main(descriptor: int) -> None:
    os.set_inheritable(descriptor, False)  # noqa: FBT003
    connection = Connection(descriptor)
    connection.send(Ready())
    options: Options = connection.recv()
    jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, jobs), daemon=True).start()
    while True:
        job = jobs.get()
        connection.send(Done(export(job, options, connection)))


def export(job: Job, options: Options, connection: Connection) -> list[Outcome]:
    """Whatever goes wrong with one job must not stop the next."""
    outcomes: list[Outcome] = []
    try:
        for outcome in Exporter(job, options, lambda line: connection.send(Said(line))).run():
            outcomes.append(outcome)  # noqa: PERF402  what was done before an error counts
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        outcomes += failures(job, options, message)[len(outcomes) :]
    return outcomes


def _receive(connection: Connection, jobs: queue.SimpleQueue[Job]) -> None:
    """The connection ends when nobody waits for results any more: also after a kill -9."""
    try:
        while True:
            jobs.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)
