"""Worker processes, each with one checkpoint at a time.

Unlike those of concurrent.futures, one that dies takes only its own job with it. They are in a
session of their own, so that Ctrl-C in a terminal reaches only the process that started them;
when that one ends, however it ends, they do too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import IO

from gpt2export.errors import ExportError
from gpt2export.exporter import Job, Options, Outcome
from gpt2export.worker import Done, Ready, Said

#: Where a process has grown to this many times what it had after its first job, plus `SLACK`
#: bytes for larger checkpoints, it is replaced; and after `MOST_JOBS` in any case.
GROWTH, SLACK, MOST_JOBS = 1.5, 256 << 20, 1000

#: So many processes in a row that end before they can take a job: something is wrong with all.
_FALSE_STARTS = 3

#: Seconds that a process has to end after its connection did.
_LAST_BREATH = 5

#: Bytes of what a process printed, for the reason why it died.
_TAIL = 2000

_START = "import sys; from gpt2export.worker import main; main(int(sys.argv[1]))"


@dataclass(frozen=True)
class Working:
    """`job` has come to what `text` says."""

    job: Job
    text: str


@dataclass(frozen=True)
class Finished:
    job: Job
    outcomes: list[Outcome]


@dataclass(frozen=True)
class Died:
    """The process ended in the middle of `job`; `reason` says how."""

    job: Job
    reason: str


Event = Working | Finished | Died


class Pool:
    """At most `size` processes, started when they are needed. Close it.

    options: for every job; their threads are for each process.
    """

    def __init__(self, size: int, options: Options) -> None:
        self._size = size
        self._options = options
        self._workers: list[_Worker] = []
        self._false_starts = 0

    @property
    def jobs(self) -> list[Job]:
        """That are being worked on."""
        return [worker.job for worker in self._workers if worker.job is not None]

    @property
    def busy(self) -> int:
        return len(self.jobs)

    @property
    def free(self) -> int:
        """How many jobs it would begin at once."""
        return self._size - self.busy

    def begin(self, job: Job) -> None:
        """Only while `free`. Raises `ExportError` if no process can be started."""
        idle = next((worker for worker in self._workers if worker.job is None), None)
        if idle is None:
            try:
                idle = _Worker(self._options)
            except OSError as error:
                raise ExportError(f"No exporting process can start ({error}).") from error
            self._workers.append(idle)
        idle.begin(job)

    def events(self, timeout: float) -> Iterator[Event]:
        """What has happened, after at most `timeout` seconds. Raises `ExportError`."""
        workers = {worker.connection: worker for worker in self._workers}
        for connection in wait(list(workers), timeout):
            yield from self._read(workers[connection])  # type: ignore[index]

    def close(self) -> None:
        """End all processes at once, and what they are at."""
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def _read(self, worker: _Worker) -> Iterator[Event]:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            yield from self._lost(worker)
            return
        job = worker.job
        if isinstance(message, Ready):
            worker.is_ready, self._false_starts = True, 0
        elif isinstance(message, Said) and job:
            yield Working(job, message.text)
        elif isinstance(message, Done) and job:
            worker.finished()
            if worker.is_worn:
                self._workers.remove(worker)
                worker.end()
            yield Finished(job, message.outcomes)

    def _lost(self, worker: _Worker) -> Iterator[Event]:
        self._workers.remove(worker)
        reason = worker.died()
        if not worker.is_ready:
            self._false_starts += 1
            if self._false_starts == _FALSE_STARTS:
                raise ExportError(f"No exporting process can start: {reason}.")
        if worker.job:
            yield Died(worker.job, reason)


class _Worker:
    """One process, and the job it is at."""

    def __init__(self, options: Options) -> None:
        self.job: Job | None = None
        self.is_ready = False
        self._jobs = 0
        self._first_size = 0
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed in `end`
        self.connection, theirs = Pipe()
        try:
            self._process = _start(theirs, self._output, options.threads)
        finally:
            theirs.close()
        self._send(options)

    def begin(self, job: Job) -> None:
        self.job = job
        # The process writes where this file stands: it has one position for both.
        self._output.seek(0)
        self._output.truncate()
        self._send(job)

    def finished(self) -> None:
        self.job = None
        self._jobs += 1
        if self._jobs == 1:
            self._first_size = _resident(self._process.pid)

    @property
    def is_worn(self) -> bool:
        limit = GROWTH * self._first_size + SLACK
        return self._jobs >= MOST_JOBS or _resident(self._process.pid) > limit

    def died(self) -> str:
        """How it ended, with the last that it printed. The connection has ended before."""
        try:
            code = self._process.wait(_LAST_BREATH)
        except subprocess.TimeoutExpired:  # it closed the connection, and stays
            self._process.kill()
            code = self._process.wait()
        ended = f"killed by {_signal_name(-code)}" if code < 0 else f"status {code}"
        line = self._last_line()
        self.connection.close()
        self._output.close()
        return f"{ended}: {line}" if line else ended

    def end(self) -> None:
        self.connection.close()
        if self.job is not None:
            self._process.kill()  # nobody waits for it; without a job it ends by itself
        self._process.wait()
        self._output.close()

    def _last_line(self) -> str:
        descriptor = self._output.fileno()
        size = os.fstat(descriptor).st_size
        tail = os.pread(descriptor, _TAIL, max(0, size - _TAIL))
        lines = tail.decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""

    def _send(self, message: Options | Job) -> None:
        with contextlib.suppress(OSError):  # it has died: that is an event, which is read soon
            self.connection.send(message)


def _start(theirs: Connection, output: IO[bytes], threads: int) -> subprocess.Popen[bytes]:
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    descriptor = theirs.fileno()
    return subprocess.Popen(  # noqa: S603  this Python, and no shell
        [sys.executable, "-P", "-c", _START, str(descriptor)],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=environment,
        pass_fds=[descriptor],
        start_new_session=True,
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _resident(process: int) -> int:
    """Bytes of memory that a process has to itself or shares; 0 where the system does not say."""
    try:
        pages = Path(f"/proc/{process}/statm").read_text("ascii").split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
