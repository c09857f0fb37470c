"""The engine as others see it: a library object, and the HTTP side's only door."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gpt2serve.engine.core import EngineCore
from gpt2serve.engine.device import choose_device
from gpt2serve.engine.events import Generation, GenerationResult, PromptTokens, TokenEvent
from gpt2serve.engine.gate import Gate
from gpt2serve.engine.listing import Listing
from gpt2serve.engine.messages import Call, Cancel, Changed, Preload, Stop, Unload, Unpin
from gpt2serve.engine.observer import EngineStats, NoObserver, Observer
from gpt2serve.engine.params import SamplingParams
from gpt2serve.engine.preparation import Preparation, PreparedRequest
from gpt2serve.engine.prompts import Prompt
from gpt2serve.engine.request import Request, Times
from gpt2serve.engine.status import ModelStatus
from gpt2serve.engine.store import ModelStore, Package
from gpt2serve.engine.stream import BlockingStream, Stream, TokenStream
from gpt2serve.errors import Gpt2ServeError, SettingsError
from gpt2serve.package import VARIANTS, Manifest
from gpt2serve.settings import EngineSettings, engine_settings, is_url
from gpt2serve.sizes import cpu_count

#: What still runs in threads of the store has this many seconds to notice that all is over.
CLOSE_SECONDS = 2.0


class Engine:
    """Serves any model of a store. Thread-safe; use it as a context manager.

        with Engine(store="models/") as engine:
            result = engine.generate("user/model", "My dream is", SamplingParams(seed=7))

    Takes the fields of `EngineSettings` as keyword arguments, or ready-made `settings`.
    Raises `SettingsError` or `DeviceUnavailable` if it cannot work as asked.
    """

    def __init__(
        self,
        store: str | Path | None = None,
        *,
        settings: EngineSettings | None = None,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
        **options: Any,
    ) -> None:
        if settings is None:
            if store is None:
                raise SettingsError("Give the engine a store: Engine(store='models/').")
            settings = engine_settings(store, **options)
        self.settings = settings
        #: cpu or cuda.
        self.device = device = choose_device(settings.device)
        self._store = ModelStore(
            settings.store,
            _variants(device, settings.precision),
            refresh=settings.store_refresh,
            disk_cache=settings.disk_cache,
            disk_cache_bytes=settings.disk_cache_bytes,
            clock=clock,
        )
        self._clock = clock
        self._preparation = Preparation(self._store, settings)
        self._gate = Gate(lambda message: self._core.inbox.put(message), settings.max_queue)
        self._core = EngineCore(
            settings,
            self._store,
            device=device,
            threads=settings.threads or cpu_count(),
            observer=observer or NoObserver(),
            clock=clock,
            on_request_ended=self._gate.ended,
            on_stopped=self._gate.stopped,
            prepare_again=self._preparation.prepare_again,
        )
        self._listing = Listing(
            self._store, self._core, self._gate, clock=clock, local=not is_url(settings.store)
        )
        self._store.on_change = self._changed

    # -- life -----------------------------------------------------------------------------

    def start(self) -> None:
        """Start the threads and load what is to be loaded at start. Idempotent.

        Raises what went wrong with a model of `preload` or `pin`.
        """
        if not self._gate.open(self._core.start):
            return
        threading.Thread(target=self._warm_up, name="gpt2serve-warm-up", daemon=True).start()
        loads = [self.start_load(model, pin=True) for model in self.settings.pin]
        loads += [self.start_load(model) for model in self.settings.preload]
        for load in loads:
            load.result()

    def _warm_up(self) -> None:
        """Make the first cold model's first token as fast as that of all others.

        What models have in common, the graph of their shape and the tokenizer, is most likely
        what some model of the store has.
        """
        with contextlib.suppress(Gpt2ServeError, OSError):  # whoever asks for a model is told
            package = self._store.any_local()
            if package is not None:
                self._preparation.tokenizer_of(package)
                self._core.warm(package)

    def close(self) -> None:
        """Abort what is running, free everything, end the threads. Idempotent."""
        if not self._gate.close(Stop()):
            return
        if self._gate.started:
            self._core.join()
        self._store.close()
        self._core.fetcher.join(CLOSE_SECONDS)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def drain(self, timeout: float) -> bool:
        """Take no new requests and wait for the running ones; True if all ended in time."""
        self._gate.drain()
        return await asyncio.to_thread(self._gate.wait_until_idle, timeout)

    # -- generating -----------------------------------------------------------------------

    def generate(
        self, model: str, prompt: Prompt, params: SamplingParams | None = None
    ) -> GenerationResult:
        """Continue `prompt`, a text or token ids; blocks until all sequences have ended.

        Raises `InvalidRequest`, `ModelNotFound`, `PackageError`, `ModelUnavailable`,
        `Overloaded`, `EngineClosed`, or `StepFailed`.
        """
        self.start()
        prepared = self.prepare(model, prompt, params)
        stream = BlockingStream(model)
        self._admit(prepared, stream, wants_tokens=False)
        return stream.result()

    async def stream(
        self, model: str, prompt: Prompt, params: SamplingParams | None = None
    ) -> AsyncIterator[PromptTokens | TokenEvent | Generation]:
        """Tokens as they are made, and each sequence's `Generation` at its end.

        Leaving the loop cancels the request. Raises what `generate` raises.
        """
        await asyncio.to_thread(self.start)
        prepared = await asyncio.to_thread(self.prepare, model, prompt, params)
        async for event in self.submit(prepared, wants_tokens=True).events():
            yield event

    def prepare(
        self, model: str, prompt: Prompt, params: SamplingParams | None = None
    ) -> PreparedRequest:
        """Check a request against its model and tokenise it. May read from the disk.

        Token ids are taken as they are, without the model's prefix.
        Raises `InvalidModelId`, `ModelNotFound`, `PackageError`, `InvalidRequest`, or
        `ModelTooLarge` if its keys and values can never fit into the KV cache.
        """
        return self._preparation.prepare(model, prompt, params)

    def submit(
        self, request: PreparedRequest, *, wants_tokens: bool, owner: str = ""
    ) -> TokenStream:
        """Hand a request to the engine thread, from a running event loop. Never blocks.

        `owner`: whom it is for, "" for nobody in particular. Owners share queue, batches and
        computing time fairly.
        Raises `Overloaded`, `EngineNotStarted` or `EngineClosed`; everything later comes out of
        the stream.
        """
        admitted: list[Request] = []
        stream = TokenStream(
            request.model,
            cancel=lambda: self._core.inbox.put(Cancel(admitted[0])) if admitted else None,
            timing=lambda: admitted[0].times.timing(self._clock()),
            tokens_used=lambda: admitted[0].tokens_used if admitted else 0,
        )
        admitted.append(self._admit(request, stream, wants_tokens=wants_tokens, owner=owner))
        return stream

    def _admit(
        self, prepared: PreparedRequest, stream: Stream, *, wants_tokens: bool, owner: str = ""
    ) -> Request:
        """Take a place in the queue, which the end of the request gives back."""
        times = Times(submitted=self._clock())
        request = Request(prepared, stream, wants_tokens, times, owner)
        self._gate.admit(request)
        return request

    # -- models ---------------------------------------------------------------------------

    def start_load(self, model: str, *, pin: bool = False) -> Future[None]:
        """Begin to load a model; the future ends when it can work. May read from the store.

        `pin` keeps the model in memory, whatever its version, until `unpin` or `unload`; a load
        that fails pins nothing. Raises `ModelNotFound`, `PackageError`, `StoreUnavailable` or
        `EngineClosed`; the future raises the same, or `ModelUnavailable`.
        """
        preload = Preload(self._store.resolve(model), pin)
        self._gate.tell(preload)
        return preload.done

    def load(self, model: str, *, pin: bool = False) -> None:
        """Load a model and wait for it. Raises what `start_load` and its future raise."""
        self.start_load(model, pin=pin).result()

    def pin(self, model: str) -> None:
        """Load a model and keep it in memory. Raises what `load` raises."""
        self.load(model, pin=True)

    def unpin(self, model: str) -> None:
        """Let a model go when others need its room. Harmless if it is not pinned.

        Raises `EngineClosed`.
        """
        self._gate.tell(Unpin(model))

    def start_unload(self, model: str) -> Future[None]:
        """Put all versions of a model out of memory, pinned or not, and forget its pin.

        It goes at the next moment in which no request uses it; requests that come before are
        served. The future ends when it is gone, at once if it is not in memory, and raises
        `RequestAborted` if somebody loads or pins the model meanwhile. Raises `EngineClosed`.
        """
        order = Unload(model)
        self._gate.tell(order)
        return order.done

    def unload(self, model: str) -> None:
        """Unload a model and wait until it is gone. Raises what `start_unload` does."""
        self.start_unload(model).result()

    def describe(self, model: str) -> Manifest:
        """The manifest of the package that would serve `model`. May read from the store."""
        return self._store.resolve(model).manifest

    def status(self, model: str) -> ModelStatus:
        """How the engine has a model. May read from the store.

        Raises `InvalidModelId`, or `ModelNotFound` if it is not in the store.
        """
        return self._listing.status(model)

    def list_models(
        self,
        *,
        after: str = "",
        limit: int = 100,
        search: str = "",
        state: str | None = None,
        allowed: Callable[[str], bool] | None = None,
    ) -> list[ModelStatus]:
        """Up to `limit` models, in order of id, that come after the id `after`.

        With a `search` those in which all its words occur, in id, title or handle; the one whose
        id it is comes first, then those in which every word begins a part, and `after` is a place
        in that order. `state`, one of `WARM_STATES`, leaves those that are in it; `allowed` those
        whose id it returns true for.

        From the store's index, which may be some seconds old; of a store behind a URL, versions,
        titles and expected bytes are told only if they are known. Raises `StoreUnavailable`, or
        `InvalidRequest` for another state.
        """
        return self._listing.models(after, limit, search, state, allowed)

    def list_ids(
        self,
        *,
        after: str = "",
        limit: int = 100,
        allowed: Callable[[str], bool] | None = None,
    ) -> list[str]:
        """The ids of those models; nothing else is looked at, so many cost little."""
        return self._listing.ids(after, limit, allowed)

    def _changed(self, model: str, package: Package | None) -> None:
        """The store found another version. In any thread, at any time."""
        self._core.inbox.put(Changed(model, package))

    # -- being watched --------------------------------------------------------------------

    def stats(self) -> EngineStats:
        """The engine at the end of its last step. Never blocks."""
        return self._core.stats()

    @property
    def takes_requests(self) -> bool:
        """Whether it was started, and neither drains nor has ended."""
        return self._gate.takes_requests

    async def ping(self, timeout: float) -> bool:
        """Whether the engine takes work: goes through the engine thread and back."""
        if not self._gate.takes_requests:
            return False
        loop = asyncio.get_running_loop()
        answered = asyncio.Event()

        def answer() -> None:
            # Who asked may have given up, and its loop may be closed.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(answered.set)

        self._core.inbox.put(Call(answer))
        try:
            await asyncio.wait_for(answered.wait(), timeout)
        except TimeoutError:
            return False
        return True


def _variants(device: str, precision: str | None) -> list[tuple[str, str]]:
    fitting = [v for v in VARIANTS if v[0] == device and precision in (None, v[1])]
    if not fitting:
        offered = ", ".join(p for target, p in VARIANTS if target == device)
        raise SettingsError(f"On {device} there is no precision {precision}; there are: {offered}.")
    return [(target, name) for target, name in fitting]
