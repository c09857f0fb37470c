"""The checkpoint's tokenizer as one `tokenizers` file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2export.config import read_json
from gpt2export.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_JSON = "tokenizer.json"
VOCABULARY, MERGES = "vocab.json", "merges.txt"
#: Files that name special and added tokens, where they are there.
OPTIONAL = ("special_tokens_map.json", "added_tokens.json", "tokenizer_config.json")

END_OF_TEXT = "<|endoftext|>"


def tokenizer_files(folder: Path) -> list[Path]:
    """The files that `load_tokenizer` reads."""
    if (folder / TOKENIZER_JSON).is_file():
        return [folder / TOKENIZER_JSON]
    names = (VOCABULARY, MERGES, *OPTIONAL)
    return [folder / name for name in names if (folder / name).is_file()]


def load_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    """Raises `CheckpointError` for one that is absent, empty, broken or too large."""
    from tokenizers import Tokenizer

    if (folder / TOKENIZER_JSON).is_file():
        try:
            tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_JSON))
        except Exception as error:  # tokenizers raises plain Exception
            raise CheckpointError(f"{folder / TOKENIZER_JSON} is not valid ({error}).") from error
    else:
        tokenizer = _build(folder)
    # A file may hold limits that were meant for training; a server must see the whole prompt.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    _check(tokenizer, vocab_size, folder)
    return tokenizer


def _build(folder: Path) -> Tokenizer:
    """Byte-level BPE from `vocab.json` and `merges.txt`, as GPT2TokenizerFast would build it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    for name in (VOCABULARY, MERGES):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} holds no tokenizer: neither {TOKENIZER_JSON} nor "
                f"{VOCABULARY} with {MERGES}."
            )
    try:
        model = models.BPE.from_file(str(folder / VOCABULARY), str(folder / MERGES))
    except Exception as error:  # tokenizers raises plain Exception
        raise CheckpointError(f"{folder}: the tokenizer is not valid ({error}).") from error
    tokenizer = Tokenizer(model)
    settings = _optional_json(folder / "tokenizer_config.json")
    space = bool(settings.get("add_prefix_space", False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    _add_tokens(tokenizer, folder)
    return tokenizer


def _add_tokens(tokenizer: Tokenizer, folder: Path) -> None:
    """Added tokens under the ids that the files give them, and special ones.

    A special token that no file gives an id (a padding token, mostly) is left out: the model
    has no embedding for it.
    """
    from tokenizers import AddedToken

    special = _special_tokens(folder)
    for token, number in sorted(_added_tokens(folder).items(), key=lambda item: item[1]):
        # add_tokens gives the next free id: the order of the ids keeps them.
        tokenizer.add_tokens([AddedToken(token, normalized=False)])
        if tokenizer.token_to_id(token) != number:
            raise CheckpointError(
                f"{folder}: the added token {token!r} would get id "
                f"{tokenizer.token_to_id(token)}, its file says {number}."
            )
    known = [token for token in special if tokenizer.token_to_id(token) is not None]
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in known]
    )


def _added_tokens(folder: Path) -> dict[str, int]:
    """Token to id, from `added_tokens.json` and, as newer versions write it, the config."""
    listed = _optional_json(folder / "tokenizer_config.json").get("added_tokens_decoder")
    found = {}
    for number, entry in listed.items() if isinstance(listed, dict) else ():
        for token in _contents([entry]):
            found[token] = int(number)
    return found | _optional_json(folder / "added_tokens.json")


def _special_tokens(folder: Path) -> list[str]:
    """What the tokenizer's files name as special; GPT-2's own if they name nothing."""
    found: list[str] = []
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in _optional_json(folder / name).items():
            if key.endswith("_token") and not key.startswith("add_"):
                found += _contents([value])
            elif key == "additional_special_tokens" and isinstance(value, list):
                found += _contents(value)
    return list(dict.fromkeys(found)) or [END_OF_TEXT]


def _contents(values: list[Any]) -> list[str]:
    """A token is written as a string, or as an object with `content`."""
    texts = [value.get("content") if isinstance(value, dict) else value for value in values]
    return [text for text in texts if isinstance(text, str) and text]


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _check(tokenizer: Tokenizer, vocab_size: int, folder: Path) -> None:
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    if not tokenizer.encode("a").ids:
        raise CheckpointError(f"{folder}: the tokenizer is empty; it turns 'a' into no token.")
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if highest >= vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {size} tokens with ids up to {highest}, the model's "
            f"vocabulary has {vocab_size}."
        )


def to_text(tokenizer: Tokenizer) -> str:
    """The tokenizer's JSON, compact; the same for the same tokenizer."""
    text: str = tokenizer.to_str(pretty=False)
    return text
