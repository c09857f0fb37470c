"""Prompts of an exact number of tokens, each a different one."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

#: Byte-level tokenizers write a space as this letter.
_SPACE = "\u0120"
_FIRST = re.compile(r"[A-Z][a-z]+")
_NEXT = re.compile(_SPACE + r"[a-z]{2,}")


def prompts(checkpoint: Path, count: int, tokens: int) -> list[dict[str, Any]]:
    """`count` different prompts of `tokens` tokens, as [{"text": str, "ids": [int]}].

    Words from the checkpoint's vocabulary in a random but fixed order: the same arguments give
    the same prompts, and a larger `count` begins with those of a smaller one. Each text has
    been tokenised, and its ids are what came out.
    """
    tokenizer = _tokenizer(checkpoint)
    merged = {first + second for first, second in _merges(checkpoint)}
    words = sorted(token for token in tokenizer.get_vocab() if token in merged)
    first = [word for word in words if _FIRST.fullmatch(word)]
    following = [word for word in words if _NEXT.fullmatch(word)]
    rng = random.Random(tokens)
    made: dict[str, list[int]] = {}
    while len(made) < count:
        text = "".join([rng.choice(first), *rng.choices(following, k=tokens - 1)])
        text = text.replace(_SPACE, " ")
        ids = tokenizer.encode(text).ids
        if len(ids) == tokens:
            made[text] = ids
    return [{"text": text, "ids": ids} for text, ids in made.items()]


def _merges(checkpoint: Path) -> list[tuple[str, str]]:
    lines = (checkpoint / "merges.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    return [(first, second) for first, second in pairs]


def _tokenizer(checkpoint: Path) -> Tokenizer:
    """GPT-2's, without transformers, which takes seconds to import."""
    vocabulary = json.loads((checkpoint / "vocab.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer(models.BPE(vocabulary, _merges(checkpoint)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer
