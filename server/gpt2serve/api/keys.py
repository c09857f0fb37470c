"""The keys of `--api-key-file`, kept up to date while the server runs, and the guard that asks
for one."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from gpt2serve.api.callers import KeyHolder
from gpt2serve.api.exchange import exchange_of
from gpt2serve.api.key_file import ApiKey, digest_of, parse_keys
from gpt2serve.api.problems import Unauthorized
from gpt2serve.errors import SettingsError

#: What `/schema` calls it.
API_KEY_SCHEME = "ApiKey"

#: The file is looked at no more often than that.
CHECK_SECONDS = 1.0
#: A file system that does not answer holds requests up for so long.
PATIENCE_SECONDS = 1.0

#: What differs if the file was written to or replaced; None if it could not be read.
_Stamp = tuple[int, ...] | None


class _Look(NamedTuple):
    """The file, as it is now. What could not be read has no stamp, so it is tried again."""

    stamp: _Stamp
    keys: Mapping[bytes, ApiKey]
    error: SettingsError | None = None


class Keyring:
    """The keys that hold now. Belongs to the event loop.

    Making it reads the file and raises `SettingsError` if that cannot be used. Later, a file that
    cannot be used changes nothing: the keys that were read last go on to hold.
    """

    def __init__(self, path: Path, log: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._log = log
        self._clock = clock
        self._holders: dict[bytes, KeyHolder] = {}
        look = _look_at(path)
        if look.error is not None:
            raise look.error
        self._stamp = look.stamp
        #: What the log was told last of a file that cannot be used.
        self._told = ""
        #: Whether the keys that hold are those of the file: it could be used when it last changed.
        self.current = True
        self._use(look.keys)
        self._looked_at = clock()
        self._looking: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._holders)

    async def holder(self, authorization: str) -> KeyHolder:
        """Of the key in an `Authorization` header. Raises `Unauthorized`, whatever is wrong."""
        await self._keep_up()
        scheme, _, given = authorization.partition(" ")
        digest = digest_of(given.strip())
        # How long the dict takes may tell something about digests, but not about keys: nobody
        # can choose a key by its digest. What decides is compared in constant time all the same.
        holder = self._holders.get(digest)
        right = holder is not None and hmac.compare_digest(holder.key.digest, digest)
        if holder is None or not right or scheme.lower() != "bearer":
            raise Unauthorized("an API key")
        return holder

    async def _keep_up(self) -> None:
        """Have the file looked at, if it is time. Who comes meanwhile waits for that, too."""
        since = self._clock() - self._looked_at
        if self._looking is None and since >= CHECK_SECONDS:
            self._looked_at, since = self._clock(), 0.0
            self._looking = asyncio.create_task(self._look())
        if self._looking is not None and since < PATIENCE_SECONDS:
            await asyncio.wait((self._looking,), timeout=PATIENCE_SECONDS - since)

    async def _look(self) -> None:
        try:
            look = await asyncio.to_thread(_look_again, self._path, self._stamp)
        finally:
            self._looking = None
        if look is None:
            return
        self._stamp = look.stamp
        self.current = look.error is None
        told, self._told = self._told, str(look.error or "")
        if look.error is None:
            self._use(look.keys)
            self._log.info("API keys reloaded", keys=len(self))
        elif self._told != told:
            self._log.error("API keys not reloaded: the old ones still hold", error=self._told)

    def _use(self, keys: Mapping[bytes, ApiKey]) -> None:
        """Who keeps its name keeps what it has left, even with another key."""
        known = {holder.name: holder for holder in self._holders.values()}
        self._holders = {}
        for digest, key in keys.items():
            holder = known.get(key.name)
            if holder is None:
                holder = KeyHolder(key, self._clock)
            else:
                holder.becomes(key)
            self._holders[digest] = holder
        if not keys:
            self._log.warning("no API keys: nobody may in", file=str(self._path))


def key_guard(
    keys: Keyring,
) -> Callable[[ASGIConnection[Any, Any, Any, Any], BaseRouteHandler], Awaitable[None]]:
    """A guard of routes, for those who send one of `keys`."""

    async def check_key(
        connection: ASGIConnection[Any, Any, Any, Any], _handler: BaseRouteHandler
    ) -> None:
        if connection.scope.get("method") == "OPTIONS":
            return  # a browser asks whether it may send a key, and sends none
        holder = await keys.holder(connection.headers.get("Authorization", ""))
        exchange = exchange_of(connection.scope)
        assert exchange is not None  # noqa: S101
        exchange.caller = holder

    return check_key


def _look_again(path: Path, known: _Stamp) -> _Look | None:
    """None if nothing has changed."""
    try:
        stamp = _stamp(path)
    except OSError:
        stamp = None
    return None if stamp == known else _look_at(path)


def _look_at(path: Path) -> _Look:
    origin = f"api_key_file {path}"
    try:
        stamp = _stamp(path)  # first, so that what is written while we read changes it
        content = path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        return _Look(None, {}, SettingsError(f"{origin} cannot be read: {reason}."))
    try:
        return _Look(stamp, parse_keys(content.decode("utf-8-sig"), origin))
    except SettingsError as error:
        return _Look(stamp, {}, error)
    except UnicodeDecodeError:
        return _Look(stamp, {}, SettingsError(f"{origin} cannot be read: not UTF-8."))


def _stamp(path: Path) -> _Stamp:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino
