"""From what somebody asks for to what the engine thread can work on. In the asker's thread."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gpt2serve.engine.defaults import resolve
from gpt2serve.engine.kv_buffers import bytes_per_token
from gpt2serve.engine.kv_cache import kv_tokens, prompt_room, rectangle, scored_together
from gpt2serve.engine.params import ResolvedParams, SamplingParams
from gpt2serve.engine.prompts import Prompt, tokenise
from gpt2serve.engine.store import ModelStore, Package
from gpt2serve.engine.tokenizer import Tokenizer, TokenizerCache
from gpt2serve.errors import CorruptPackage, ModelTooLarge
from gpt2serve.package import Manifest
from gpt2serve.settings import EngineSettings


@dataclass(frozen=True, slots=True)
class Asked:
    """What a caller asked for, to prepare it again should the model be published again."""

    prompt: Prompt
    params: SamplingParams


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
    #: Places of the prompt that are scored in one step; 0 if none are to be.
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


class Preparation:
    """Checks and tokenises requests. Thread-safe; may read from disk and network."""

    def __init__(self, store: ModelStore, settings: EngineSettings) -> None:
        self._store = store
        self._settings = settings
        self._tokenizers = TokenizerCache()

    def prepare(
        self, model: str, prompt: Prompt, params: SamplingParams | None = None
    ) -> PreparedRequest:
        """What `Engine.prepare` promises."""
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
            max_sequences=self._settings.max_batch_size,
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

    def prepare_again(self, prepared: PreparedRequest) -> PreparedRequest:
        """The same, for the version that the store has now. Raises what `prepare` raises."""
        asked = prepared.asked
        return self.prepare(prepared.model, asked.prompt, asked.params)

    def _with_tokenizer(self, model: str) -> tuple[Package, Tokenizer]:
        package = self._store.resolve(model)
        try:
            return package, self.tokenizer_of(package)
        except CorruptPackage:
            # In a folder the file may be a newer version's by now, or gone with its model.
            self._store.doubt(model)
            newest = self._store.resolve(model)
            if newest.manifest == package.manifest:
                raise
            return newest, self.tokenizer_of(newest)

    def tokenizer_of(self, package: Package) -> Tokenizer:
        """Raises `CorruptPackage` or `StoreUnavailable`."""
        known = self._tokenizers.find(package.tokenizer_hash)
        return known or self._tokenizers.get(
            self._store.tokenizer_file(package), package.tokenizer_hash
        )

    def _fit_kv_cache(self, manifest: Manifest, prompt: int, params: ResolvedParams) -> int:
        """How many places of the prompt are scored together: fewer where there is less room.

        Raises `ModelTooLarge` if the request can never fit.
        """
        chunk, budget = self._settings.prefill_chunk, self._settings.kv_cache_bytes
        shape = rectangle(
            [prompt + params.max_tokens] * params.sequences,
            context_length=manifest.dimensions.context_length,
            max_slots=self._settings.max_batch_size,
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
