"""The tokenizer of a package is the one that transformers would use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import GPT2TokenizerFast

from gpt2export.errors import CheckpointError
from gpt2export.tokenizer import load_tokenizer, to_text
from tests.export_fixtures import END, VOCAB_SIZE, small_bpe, write_tokenizer

TEXTS = [
    "My fellow citizens, the state of the union is strong.",
    "  spaces,\ttabs\n\nand lines ",
    "naïve 😀🏴‍☠️ 日本語 \u200b",
    f"{END}one{END}{END} two {END}",
    "",
    "<|endoftext",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    return tmp_path


@pytest.mark.parametrize("text", TEXTS)
def test_built_from_vocabulary_and_merges_it_equals_transformers(folder: Path, text: str) -> None:
    ours = load_tokenizer(folder, VOCAB_SIZE)
    theirs = GPT2TokenizerFast.from_pretrained(folder)
    ids = ours.encode(text).ids
    assert ids == theirs(text)["input_ids"]
    assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    assert ours.decode(ids, skip_special_tokens=False) == text


def test_the_written_text_is_the_same_tokenizer(folder: Path) -> None:
    ours = load_tokenizer(folder, VOCAB_SIZE)
    again = Tokenizer.from_str(to_text(ours))
    assert [again.encode(text).ids for text in TEXTS] == [ours.encode(text).ids for text in TEXTS]
    assert to_text(again) == to_text(ours)


def test_a_tokenizer_file_is_preferred_and_loses_its_limits(folder: Path) -> None:
    tokenizer = load_tokenizer(folder, VOCAB_SIZE)
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=10)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocab.json").unlink()
    assert len(load_tokenizer(folder, VOCAB_SIZE).encode(TEXTS[0]).ids) > 10


def test_added_tokens_keep_their_ids(folder: Path) -> None:
    added = {"<|user|>": VOCAB_SIZE, "@handle": VOCAB_SIZE + 1}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    special = {"eos_token": {"content": END}, "additional_special_tokens": ["<|user|>"]}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    tokenizer = load_tokenizer(folder, VOCAB_SIZE + 2)
    ids = tokenizer.encode("a<|user|>b@handle").ids
    assert VOCAB_SIZE in ids
    assert VOCAB_SIZE + 1 in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab@handle"


def test_added_tokens_in_the_config_count_too(folder: Path) -> None:
    entry = {"content": "<|user|>", "special": False, "normalized": False}
    config = {"added_tokens_decoder": {str(VOCAB_SIZE): entry}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(folder, VOCAB_SIZE + 1).encode("<|user|>").ids == [VOCAB_SIZE]


def test_a_special_token_without_an_id_is_left_out(folder: Path) -> None:
    names = {"eos_token": END, "pad_token": "<pad>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    tokenizer = load_tokenizer(folder, VOCAB_SIZE)
    assert max(tokenizer.encode("<pad>").ids) < VOCAB_SIZE


def test_added_tokens_under_impossible_ids_are_refused(folder: Path) -> None:
    (folder / "added_tokens.json").write_text(json.dumps({"<|user|>": VOCAB_SIZE + 5}))
    with pytest.raises(CheckpointError, match="the added token"):
        load_tokenizer(folder, VOCAB_SIZE + 6)


def test_without_a_special_tokens_map_gpt2s_own_is_special(folder: Path) -> None:
    (folder / "special_tokens_map.json").unlink()
    tokenizer = load_tokenizer(folder, VOCAB_SIZE)
    assert tokenizer.encode(END).ids == [VOCAB_SIZE - 1]
    assert tokenizer.decode([VOCAB_SIZE - 1], skip_special_tokens=True) == ""


def test_one_that_is_larger_than_the_vocabulary_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=f"ids up to {VOCAB_SIZE - 1}.*has {VOCAB_SIZE - 1}"):
        load_tokenizer(folder, VOCAB_SIZE - 1)


def test_an_empty_one_is_refused(folder: Path) -> None:
    (folder / "vocab.json").write_text("{}")
    (folder / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(CheckpointError, match="the tokenizer is empty"):
        load_tokenizer(folder, VOCAB_SIZE)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_one_file_of_two_is_no_tokenizer(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        load_tokenizer(folder, VOCAB_SIZE)


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer.json"])
def test_a_broken_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_text('{"model": ')
    with pytest.raises(CheckpointError, match="not valid"):
        load_tokenizer(folder, VOCAB_SIZE)


def test_the_fixture_has_the_size_it_claims() -> None:
    assert small_bpe().get_vocab_size() == VOCAB_SIZE - 1
