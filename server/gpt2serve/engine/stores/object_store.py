"""A prefix in an object store, over obstore: the only module that imports it.

Objects are named by their path below the prefix. Credentials, region and endpoint come from the
environment variables that obstore reads by itself, such as AWS_ACCESS_KEY_ID.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from gpt2serve.errors import SettingsError, StoreUnavailable

if TYPE_CHECKING:
    from obstore.store import ObjectStore as Client

#: Seconds for a small object, from the connection to the last byte.
SMALL_TIMEOUT = 2.0
#: Seconds for a connection, and between two pieces of a large object.
CONNECT_TIMEOUT = 5.0
STALL_TIMEOUT = 10.0
#: Seconds for one page of a listing.
LIST_TIMEOUT = 30.0
#: The most that one request may last at all; there is no "no limit".
LONGEST = 24 * 3600.0
#: Bytes that come out of a stream at once; as much may be lost when it breaks.
CHUNK = 256 * 1024
#: Keys of one page of a listing.
PAGE = 1000
#: Seconds after which it is worth trying again.
RETRY_AFTER = 5.0

_STATUS = re.compile(r"status code: (\d{3}[\w -]*)")
_Answer = TypeVar("_Answer")


class ObjectMissing(Exception):
    """There is no such object."""


class ObjectChanged(Exception):
    """The object cannot be gone on with: it is another one now, or only to be had as a whole."""


class ObjectUnchanged(Exception):
    """The object is still the one that is known."""


@dataclass(frozen=True, slots=True)
class Content:
    """A small object. `etag` is None where the server gives none."""

    data: bytes
    etag: str | None


@dataclass(frozen=True, slots=True)
class Stream:
    """An object from some byte on. `size` is that of the whole object."""

    size: int
    etag: str | None
    chunks: Iterator[bytes]


class ObjectStore:
    """Thread-safe. Every method may block, but none for ever.

    What cannot be had for now raises `StoreUnavailable`; with `everywhere` false if it is only
    this object that the server refuses.
    """

    def __init__(self, url: str, *, allow_http: bool) -> None:
        """Raises `SettingsError` if the URL is of no known kind, or obstore is missing."""
        try:
            import obstore
            import obstore.store
        except ModuleNotFoundError as error:
            raise SettingsError(
                f"The store {url} needs obstore: pip install 'gpt2serve[s3]'."
            ) from error
        self._get: Callable[..., Any] = obstore.get
        self._list: Callable[..., Any] = obstore.list
        self.url = url
        try:
            self._small = _client(url, allow_http, _Limits(whole=SMALL_TIMEOUT, retries=2))
            # Whoever downloads decides when to ask again: it knows what it has got already.
            self._large = _client(url, allow_http, _Limits(whole=LONGEST, retries=0))
            self._pages = _client(url, allow_http, _Limits(whole=LIST_TIMEOUT, retries=3))
        except Exception as error:  # obstore raises many kinds for what is no store
            raise SettingsError(f"{url} is no store: {_first_line(error)}") from error
        #: A plain web server has no listing.
        self.listable = not isinstance(self._small, obstore.store.HTTPStore)

    def read(self, path: str, known: str | None = None) -> Content:
        """A small object. Raises `ObjectMissing`; `ObjectUnchanged` if its etag is `known`."""

        def read() -> Content:
            options = {"if_none_match": known} if known else {}
            result = self._get(self._small, path, options=options)
            return Content(bytes(result.bytes()), result.meta["e_tag"])

        return _translated(read)

    def open(self, path: str, offset: int = 0, known: str | None = None) -> Stream:
        """An object from byte `offset` on.

        Raises `ObjectMissing`; `ObjectChanged` if its etag is not `known`. The chunks raise what
        this raises.
        """

        def open_() -> Stream:
            options: dict[str, Any] = {"if_match": known} if known else {}
            if offset:
                options["range"] = {"offset": offset}
            result = self._get(self._large, path, options=options)
            meta = result.meta
            return Stream(meta["size"], meta["e_tag"], _chunks(result.stream(min_chunk_size=CHUNK)))

        return _translated(open_)

    def list(self) -> Iterator[str]:
        """Paths of all objects, page by page."""
        pages = iter(self._list(self._pages, chunk_size=PAGE))
        while (page := _translated(lambda: next(pages, None))) is not None:
            for meta in page:
                yield meta["path"]


@dataclass(frozen=True, slots=True)
class _Limits:
    """Seconds for a request, and how often it is repeated within them if it fails at once."""

    whole: float
    retries: int


def _client(url: str, allow_http: bool, limits: _Limits) -> Client:  # noqa: FBT001
    from obstore.store import from_url

    def seconds(most: float) -> timedelta:
        return timedelta(seconds=min(most, limits.whole))

    return from_url(
        url,
        # These take the place of what obstore would read from the environment for its client.
        client_options={
            "allow_http": allow_http,
            "connect_timeout": seconds(CONNECT_TIMEOUT),
            "read_timeout": seconds(STALL_TIMEOUT),
            "timeout": seconds(limits.whole),
        },
        retry_config={
            "max_retries": limits.retries,
            # So that what was waited for in vain is not waited for again.
            "retry_timeout": seconds(limits.whole / 2),
            "backoff": {"init_backoff": timedelta(seconds=0.05), "base": 2},
        },
    )


def _chunks(stream: Any) -> Iterator[bytes]:
    chunks = iter(stream)
    while (chunk := _translated(lambda: next(chunks, None))) is not None:
        yield bytes(chunk)


def _translated(call: Callable[[], _Answer]) -> _Answer:
    from obstore import exceptions

    try:
        return call()
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):
            raise _unavailable("there is no such bucket") from error
        raise ObjectMissing from error
    except exceptions.NotModifiedError as error:
        raise ObjectUnchanged from error
    except (exceptions.PreconditionError, exceptions.NotSupportedError) as error:
        # The latter: a web server that knows no ranges has sent the whole object.
        raise ObjectChanged from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise StoreUnavailable(
            "The store refuses access: its credentials may be wrong, or not allow to read this.",
            retry_after=RETRY_AFTER,
            everywhere=False,
        ) from error
    except (exceptions.BaseError, OSError) as error:
        raise _unavailable(_reason(error)) from error


def _unavailable(reason: str) -> StoreUnavailable:
    """Callers over HTTP see the sentence, so it names neither hosts nor keys; the cause does."""
    return StoreUnavailable(f"The store does not answer ({reason}).", retry_after=RETRY_AFTER)


def _reason(error: Exception) -> str:
    status = _STATUS.search(str(error))
    return f"status {status[1].strip()}" if status else "no answer, or a broken one"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
