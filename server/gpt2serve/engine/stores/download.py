"""One file from an object store to the disk, resumed where it broke, checked while it comes in."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from gpt2serve.engine.stores.object_store import ObjectChanged, ObjectStore, Stream
from gpt2serve.errors import EngineClosed, StoreUnavailable
from gpt2serve.package import FileEntry

#: Attempts in a row that bring nothing, after which the store counts as unreachable.
ATTEMPTS = 4
#: Seconds before the next attempt; doubled each time.
BACKOFF = 0.25

WithRoom = Callable[[Callable[[], int], int], int]


class WrongContent(Exception):
    """The object is not what the manifest says."""


class Downloader:
    """Downloads from one store. Thread-safe.

    `with_room(write, size)` calls `write`, and again once there is room if the disk was full.
    """

    def __init__(self, objects: ObjectStore, with_room: WithRoom) -> None:
        self._objects = objects
        self._with_room = with_room
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Let every download end at its next piece, with `EngineClosed`."""
        self._stopped.set()

    def fetch(
        self, path: str, part: Path, entry: FileEntry, progress: Callable[[int], None]
    ) -> None:
        """Complete `part`, a file that may hold a beginning already. `progress` gets its bytes.

        Raises `WrongContent` and removes the part; `ObjectMissing`, `StoreUnavailable`,
        `ModelUnavailable` if the disk is full, or `EngineClosed`, and leaves it to be resumed.
        """
        with _Part(part, self._with_room) as file:
            self._complete(path, file, entry, progress)
            if file.size != entry.bytes or file.digest() != entry.sha256:
                file.discard()
                raise WrongContent(path)

    def _complete(
        self, path: str, file: _Part, entry: FileEntry, progress: Callable[[int], None]
    ) -> None:
        failed = 0
        progress(file.size)
        while file.size < entry.bytes:
            if self._stopped.is_set():
                raise EngineClosed
            before, problem = file.size, None
            try:
                stream = self._objects.open(path, file.size, file.etag)
                if stream.size != entry.bytes:
                    file.discard()
                    raise WrongContent(path)
                self._receive(stream, file, progress)
            except ObjectChanged:
                file.discard()
            except StoreUnavailable as error:
                problem = error
            failed = 0 if file.size > before else failed + 1
            if failed >= ATTEMPTS or (problem and not problem.everywhere):
                raise problem or StoreUnavailable(
                    "The store breaks its answers off.", retry_after=5.0
                )
            if failed:
                self._stopped.wait(BACKOFF * 2 ** (failed - 1))

    def _receive(self, stream: Stream, file: _Part, progress: Callable[[int], None]) -> None:
        file.begin(stream.etag)
        for chunk in stream.chunks:
            if self._stopped.is_set():
                raise EngineClosed
            file.write(chunk)
            progress(file.size)


class _Part:
    """A file that grows, its hash, and the etag of the object that its bytes are from."""

    def __init__(self, path: Path, with_room: WithRoom) -> None:
        self._path = path
        self._etag_file = path.with_name(f"{path.name}.etag")
        self._with_room = with_room
        self._file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        self._hash = hashlib.sha256()
        self.size = 0
        self.etag: str | None = None

    def __enter__(self) -> Self:
        while piece := os.read(self._file, 1024 * 1024):
            self._hash.update(piece)
            self.size += len(piece)
        if self.size:
            self.etag = self._read_etag()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._file)
        if error is None:
            self._etag_file.unlink(missing_ok=True)

    def begin(self, etag: str | None) -> None:
        """What comes next is of the object with this etag: kept, in case this process dies."""
        if etag != self.etag:
            self.etag = etag
            self._with_room(lambda: self._etag_file.write_text(etag or "", "utf-8"), 4096)

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            written = self._with_room(partial(os.write, self._file, rest), len(rest))
            self._hash.update(rest[:written])
            self.size += written
            rest = rest[written:]

    def digest(self) -> str:
        return self._hash.hexdigest()

    def discard(self) -> None:
        """Begin anew."""
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)
        self._hash = hashlib.sha256()
        self.size = 0
        self.etag = None

    def _read_etag(self) -> str | None:
        try:
            return self._etag_file.read_text("utf-8") or None
        except FileNotFoundError:
            return None
