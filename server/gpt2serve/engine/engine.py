"""The engine as others see it: a library object, and the HTTP side's only door."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from gpt2serve.engine.core import EngineCore
from gpt2serve.engine.defaults import resolve
from gpt2serve.engine.events import Generation, GenerationResult, PromptTokens, TokenEvent
from gpt2serve.engine.kv_buffers import bytes_per_token
from gpt2serve.engine.kv_cache import kv_tokens, prompt_room, rectangle, scored_together
from gpt2serve.engine.messages import (
    Ask,
    Call,
    Cancel,
    Changed,
    Message,
    Preload,
    Stop,
    Submit,
    Unload,
    Unpin,
)
from gpt2serve.engine.observer import EngineStats, NoObserver, Observer
from gpt2serve.engine.params import ResolvedParams, SamplingParams
from gpt2serve.engine.prompts import Prompt, tokenise
from gpt2serve.engine.request import Asked, Request, Times
from gpt2serve.engine.residency import Waiting
from gpt2serve.engine.runner import cuda_is_available
from gpt2serve.engine.shares import OF_THE_QUEUE, leaves_room
from gpt2serve.engine.status import WARM_STATES, Known, ModelStatus, models_in, statuses
from gpt2serve.engine.store import ModelStore, Package
from gpt2serve.engine.stream import BlockingStream, Stream, TokenStream
from gpt2serve.engine.tokenizer import Tokenizer, TokenizerCache
from gpt2serve.errors import (
    CorruptPackage,
    DeviceUnavailable,
    EngineClosed,
    EngineNotStarted,
    Gpt2ServeError,
    InvalidModelId,
    InvalidRequest,
    ModelNotFound,
    ModelTooLarge,
    Overloaded,
    PackageError,
    PackageReplaced,
    SettingsError,
    StoreUnavailable,
)
from gpt2serve.package import VARIANTS, Manifest
from gpt2serve.settings import EngineSettings, cpu_count, engine_settings, is_url

_T = TypeVar("_T")

#: Looked through at a time for those that somebody may see.
_IDS_AT_ONCE = 1000

#: What still runs in threads of the store has this many seconds to notice that all is over.
CLOSE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request that was checked against its model, and tokenised."""

    model: str
    #: The prompt's text, also if token ids were given.
    prompt: str
    prompt_ids: list[int]
    asked: Asked
    params: ResolvedParams
    package: Package
    tokenizer: Tokenizer
    #: Bytes of a character that token ids begin and do not end; not in `prompt`.
    begun: bytes = b""
    #: How many of `prompt_ids` are the model's prefix, which comes first.
    prefix_tokens: int = 0
    #: Places of the prompt that are scored in one step.
    scored_together: int = 0

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt_ids)

    @property
    def most_tokens(self) -> int:
        """Prompt and generated tokens of all sequences, at most."""
        return self.prompt_tokens + self.params.sequences * self.params.max_tokens

    def text_of(self, tokens: Iterable[int]) -> str:
        """The text of these tokens by themselves; half of a character is U+FFFD."""
        return self.tokenizer.decode(tokens).decode(errors="replace")


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
        device = _device(settings.device)
        self._store = ModelStore(
            settings.store,
            _variants(device, settings.precision),
            refresh=settings.store_refresh,
            disk_cache=settings.disk_cache,
            disk_cache_bytes=settings.disk_cache_bytes,
            clock=clock,
        )
        self._tokenizers = TokenizerCache()
        self._clock = clock
        self._lock = threading.Lock()
        self._admitted = 0
        #: The same, by owner.
        self._owned: Counter[str] = Counter()
        self._draining = False
        self._started = False
        self._closed = False
        self._dead = False
        self._all_ended = threading.Condition(self._lock)
        self._core = EngineCore(
            settings,
            self._store,
            device=device,
            threads=settings.threads or cpu_count(),
            observer=observer or NoObserver(),
            clock=clock,
            on_request_ended=self._request_ended,
            on_stopped=self._stopped,
            prepare_again=self._prepare_again,
        )
        self._store.on_change = self._changed

    # -- life -----------------------------------------------------------------------------

    def start(self) -> None:
        """Start the threads and load what is to be loaded at start. Idempotent.

        Raises what went wrong with a model of `preload` or `pin`.
        """
        with self._lock:
            if self._closed:
                raise EngineClosed("The engine was closed.")
            if self._started:
                return
            self._started = True
            # Under the lock, so that nobody closes what has begun only half.
            self._core.start()
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
                self._tokenizers.get(self._store.tokenizer_file(package), package.tokenizer_hash)
                self._core.warm(package)

    def close(self) -> None:
        """Abort what is running, free everything, end the threads. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = self._draining = True
            started = self._started
        if started:
            self._core.inbox.put(Stop())
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
        with self._lock:
            self._draining = True
        return await asyncio.to_thread(self._wait_until_idle, timeout)

    def _wait_until_idle(self, timeout: float) -> bool:
        with self._all_ended:
            return self._all_ended.wait_for(lambda: self._admitted == 0, timeout)

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
        package, tokenizer = self._with_tokenizer(model)
        manifest = package.manifest
        read = tokenise(prompt, manifest, tokenizer)
        # A list may be changed by whoever gave it.
        given = prompt if isinstance(prompt, str) else tuple(prompt)
        asked = Asked(given, params or SamplingParams())
        resolved = resolve(
            asked.params,
            manifest.generation_defaults,
            prompt_tokens=len(read.ids),
            prefix_tokens=read.prefix_tokens,
            context_length=manifest.dimensions.context_length,
            vocab_size=manifest.dimensions.vocab_size,
            max_sequences=self.settings.max_batch_size,
        )
        ids = read.ids[-asked.params.truncate :] if asked.params.truncate else read.ids
        return PreparedRequest(
            model=model,
            prompt=read.text,
            prompt_ids=ids,
            asked=asked,
            params=resolved,
            package=package,
            tokenizer=tokenizer,
            begun=read.begun,
            prefix_tokens=max(0, read.prefix_tokens - (len(read.ids) - len(ids))),
            scored_together=self._fit_kv_cache(manifest, len(ids), resolved),
        )

    def _with_tokenizer(self, model: str) -> tuple[Package, Tokenizer]:
        package = self._store.resolve(model)
        try:
            return package, self._tokenizer_of(package)
        except CorruptPackage:
            # In a folder the file may be a newer version's by now.
            if not self._was_replaced(package):
                raise
        package = self._store.resolve(model)
        return package, self._tokenizer_of(package)

    def _tokenizer_of(self, package: Package) -> Tokenizer:
        known = self._tokenizers.find(package.tokenizer_hash)
        return known or self._tokenizers.get(
            self._store.tokenizer_file(package), package.tokenizer_hash
        )

    def _was_replaced(self, package: Package) -> bool:
        try:
            self._store.verify(package)
        except PackageReplaced:
            return True
        except Gpt2ServeError:
            pass
        return False

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
        request = Request(
            key=prepared.package.key,
            model=prepared.model,
            prompt=prepared.prompt,
            prompt_ids=prepared.prompt_ids,
            params=prepared.params,
            stream=stream,
            wants_tokens=wants_tokens,
            times=Times(submitted=self._clock()),
            asked=prepared.asked,
            begun=prepared.begun,
            scored_together=prepared.scored_together,
            owner=owner,
        )
        manifest = prepared.package.manifest
        request.make_sequences(manifest.eos_token_ids, prepared.tokenizer.token_bytes)
        with self._lock:
            if self._draining:
                raise EngineClosed
            if not self._started:
                raise EngineNotStarted
            self._check_queue(owner)
            self._admitted += 1
            self._owned[owner] += 1
            # Under the lock, so that nothing comes after the `Stop` of `close`.
            self._core.inbox.put(Submit(request, prepared.package))
        return request

    def _check_queue(self, owner: str) -> None:
        """Under the lock. Raises `Overloaded`."""
        free = self.settings.max_queue - self._admitted
        if free <= 0:
            raise Overloaded(
                f"{self._admitted} requests are being worked on or waiting already.",
                retry_after=1.0,
            )
        if owner and not leaves_room(self._owned[owner], 1, free, OF_THE_QUEUE):
            raise Overloaded(
                f"{self._owned[owner]} requests of yours are being worked on or waiting already, "
                "and the rest of the queue is kept for others.",
                retry_after=1.0,
            )

    def _stopped(self) -> None:
        """The engine thread takes no more messages, whatever the reason."""
        with self._lock:
            self._dead = self._draining = True

    def _request_ended(self, request: Request) -> None:
        with self._all_ended:
            self._admitted -= 1
            self._owned[request.owner] -= 1
            if not self._owned[request.owner]:
                del self._owned[request.owner]
            if self._admitted == 0:
                self._all_ended.notify_all()

    def _fit_kv_cache(self, manifest: Manifest, prompt: int, params: ResolvedParams) -> int:
        """How many places of the prompt are scored together: fewer where there is less room.

        Raises `ModelTooLarge` if the request can never fit.
        """
        chunk, budget = self.settings.prefill_chunk, self.settings.kv_cache_bytes
        shape = rectangle(
            [prompt + params.max_tokens] * params.sequences,
            context_length=manifest.dimensions.context_length,
            max_slots=self.settings.max_batch_size,
        )
        scored = scored_together(prompt, chunk) if params.prompt_logprobs else 0
        while True:
            tokens = kv_tokens(shape, prompt_room(prompt, chunk, scored), chunk)
            needed = tokens * bytes_per_token(manifest.dimensions, manifest.kv.dtype)
            if needed <= budget:
                return scored
            if scored <= 1:
                break
            scored //= 2
        raise ModelTooLarge(
            f"The request needs {needed:,} bytes of KV cache and there are {budget:,}; ask for "
            "fewer or shorter sequences, or raise --kv-cache-bytes."
        )

    def _prepare_again(self, message: Waiting) -> Package:
        """The package that the store has for it now. Changes the request to one for that."""
        if isinstance(message, Preload):
            return self._store.resolve(message.package.model)
        request = message.request
        assert request.asked is not None  # noqa: S101
        prepared = self.prepare(request.model, request.asked.prompt, request.asked.params)
        request.key = prepared.package.key
        request.prompt, request.begun = prepared.prompt, prepared.begun
        request.prompt_ids = prepared.prompt_ids
        request.params = prepared.params
        request.scored_together = prepared.scored_together
        request.sequences.clear()
        manifest = prepared.package.manifest
        request.make_sequences(manifest.eos_token_ids, prepared.tokenizer.token_bytes)
        return prepared.package

    # -- models ---------------------------------------------------------------------------

    def start_load(self, model: str, *, pin: bool = False) -> Future[None]:
        """Begin to load a model; the future ends when it can work. May read from the store.

        `pin` keeps the model in memory, whatever its version, until `unpin` or `unload`; a load
        that fails pins nothing. Raises `ModelNotFound`, `PackageError`, `StoreUnavailable` or
        `EngineClosed`; the future raises the same, or `ModelUnavailable`.
        """
        preload = Preload(self._store.resolve(model), pin)
        self._tell(preload)
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
        self._tell(Unpin(model))

    def start_unload(self, model: str) -> Future[None]:
        """Put all versions of a model out of memory, pinned or not, and forget its pin.

        It goes at the next moment in which no request uses it; requests that come before are
        served. The future ends when it is gone, at once if it is not in memory, and raises
        `RequestAborted` if somebody loads or pins the model meanwhile. Raises `EngineClosed`.
        """
        order = Unload(model)
        self._tell(order)
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
        (found,) = self._statuses([self._look(model)])
        return found

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

        With a `search` those in which all its words occur, in id, title or handle; models in which
        every word begins a part come first, and `after` is a place in that order. `state`, one of
        `WARM_STATES`, leaves those that are in it; `allowed` those whose id it returns true for.

        From the store's index, which may be some seconds old; of a store behind a URL, versions,
        titles and expected bytes are told only if they are known. Raises `StoreUnavailable`, or
        `InvalidRequest` for another state.
        """
        among = None if state is None else self._models_in(state)
        page = partial(self._store.list, search=search, among=among)
        models = _those_allowed(page, after, limit, allowed)
        return self._statuses([self._glance(model) for model in models])

    def list_ids(
        self,
        *,
        after: str = "",
        limit: int = 100,
        allowed: Callable[[str], bool] | None = None,
    ) -> list[str]:
        """The ids of those models; nothing else is looked at, so many cost little."""
        return _those_allowed(self._store.list, after, limit, allowed)

    def _models_in(self, state: str) -> set[str]:
        if state not in WARM_STATES:
            raise InvalidRequest("state", f"must be one of {', '.join(WARM_STATES)}")
        models = self._core.models
        return self._ask(lambda: models_in(models, state, self._clock()))

    def _glance(self, model: str) -> Known:
        """As much as can be told without a network.

        What was deleted since the index was made is told too: a page that is short without being
        the last would end the listing.
        """
        if is_url(self.settings.store):
            return Known(model, self._store.peek(model), card=self._store.card(model))
        try:
            return self._look(model)
        except Gpt2ServeError:
            return Known(model)

    def _look(self, model: str) -> Known:
        try:
            package = self._store.resolve(model)
            return Known(model, package, card=self._store.card(model))
        except (ModelNotFound, InvalidModelId):
            raise
        except StoreUnavailable as error:
            return Known(model, self._store.peek(model), str(error), self._store.card(model))
        except PackageError as error:
            # It must not hide all others in a list.
            return Known(model, error=str(error))

    def _statuses(self, known: list[Known]) -> list[ModelStatus]:
        """One way to the engine thread and back for all of them."""
        core = self._core
        return self._ask(
            lambda: statuses(
                core.models, core.fetcher, known, now=self._clock(), unix_time=time.time()
            )
        )

    def _ask(self, function: Callable[[], _T]) -> _T:
        """What `function` returns in the engine thread; here if there is no such thread."""
        answer: Future[_T] = Future()
        ask = Ask(function, answer)
        with self._lock:
            running = self._started and not self._closed and not self._dead
            if running:
                self._core.inbox.put(ask)
        return answer.result() if running else function()

    def _tell(self, message: Message) -> None:
        with self._lock:
            if self._closed or self._dead or not self._started:
                raise EngineClosed
            # Under the lock, so that nothing comes after the `Stop` of `close`.
            self._core.inbox.put(message)

    def _changed(self, model: str, package: Package | None) -> None:
        """The store found another version. In any thread, at any time."""
        self._core.inbox.put(Changed(model, package))

    # -- being watched --------------------------------------------------------------------

    def stats(self) -> EngineStats:
        """The engine at the end of its last step. Never blocks."""
        return self._core.stats

    async def ping(self, timeout: float) -> bool:
        """Whether the engine takes work: goes through the engine thread and back."""
        if self._draining or not self._started:
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


def _those_allowed(
    page: Callable[[str, int], list[str]],
    after: str,
    limit: int,
    allowed: Callable[[str], bool] | None,
) -> list[str]:
    """The first `limit` ids behind `after` that are allowed, of what `page(after, limit)` gives."""
    if allowed is None:
        return page(after, limit)
    found: list[str] = []
    while len(found) < limit:
        ids = page(after, _IDS_AT_ONCE)
        found += filter(allowed, ids)
        if len(ids) < _IDS_AT_ONCE:
            break
        after = ids[-1]
    return found[:limit]


def _device(wanted: str) -> str:
    if wanted == "auto":
        return "cuda" if cuda_is_available() and Path("/dev/nvidiactl").exists() else "cpu"
    if wanted == "cuda" and not cuda_is_available():
        raise DeviceUnavailable(
            "CUDA was asked for, but this onnxruntime has no CUDA support: replace it with "
            "onnxruntime-gpu as docs/gpu.md says, or use --device cpu."
        )
    return wanted


def _variants(device: str, precision: str | None) -> list[tuple[str, str]]:
    fitting = [v for v in VARIANTS if v[0] == device and precision in (None, v[1])]
    if not fitting:
        offered = ", ".join(p for target, p in VARIANTS if target == device)
        raise SettingsError(f"On {device} there is no precision {precision}; there are: {offered}.")
    return [(target, name) for target, name in fitting]
