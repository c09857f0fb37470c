"""The benchmarks' prompts, vocabulary, and many models made of one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import ByteLevelBPETokenizer

from benchmarks.common import copies, model
from benchmarks.common.formats import END_OF_TEXT, VOCABULARY, padded
from benchmarks.common.model import Assets
from gpt2serve.package import read_manifest

SAMPLE = model.ROOT / "samples" / "george-washington"


def test_the_made_up_vocabulary_has_the_real_size_and_keeps_what_was_there() -> None:
    small = {"a": 0, "\u0120w00001": 1, "b": 2, END_OF_TEXT: 3}
    made = padded(small)
    assert sorted(made.values()) == list(range(VOCABULARY))
    assert made[END_OF_TEXT] == VOCABULARY - 1
    assert [made[token] for token in ("a", "\u0120w00001", "b")] == [0, 1, 2]


@pytest.mark.parametrize("tokens", [1, 8, 512])
def test_prompts_have_the_length_that_their_text_has(tokens: int) -> None:
    # An implementation of the tokenizer that the prompts are not made with.
    tokenizer = ByteLevelBPETokenizer.from_file(
        str(SAMPLE / "vocab.json"), str(SAMPLE / "merges.txt")
    )
    made = model.prompts(SAMPLE, 5, tokens)
    for prompt in made:
        assert len(prompt["ids"]) == tokens
        assert tokenizer.encode(prompt["text"]).ids == prompt["ids"]
    assert len({prompt["text"] for prompt in made}) == 5


def test_more_prompts_begin_with_the_same_ones() -> None:
    assert model.prompts(SAMPLE, 3, 8) == model.prompts(SAMPLE, 6, 8)[:3]


def test_a_format_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ct2-int4"):
        model.prepare(tmp_path, ["ct2-int4"])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def one(sample_store: Path, tmp_path: Path) -> Assets:
    """A sample's package, and made-up files for the rest. All may be linked to."""
    made = Assets(
        checkpoint=tmp_path / "one" / "checkpoint",
        store=sample_store,
        ct2=tmp_path / "one" / "ct2",
        onnx=tmp_path / "one" / "onnx",
        gguf=tmp_path / "one" / "model.gguf",
        model="george-washington",
    )
    for path in (made.checkpoint / "config.json", made.ct2 / "int8" / "model.bin", made.gguf):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("content")
    return made


@pytest.mark.parametrize("copy", [False, True])
def test_many_models_of_one(one: Assets, tmp_path: Path, *, copy: bool) -> None:
    kinds = ["package-int8", "checkpoint", "ct2-int8", "gguf-q8_0"]
    made = copies.many(one, 2, kinds, tmp_path / "many", copy=copy)
    assert [each.model for each in made] == copies.model_ids(2) == ["bench/m000", "bench/m001"]
    for each in made:
        assert (each.checkpoint / "config.json").read_text() == "content"
        assert (each.ct2 / "int8" / "model.bin").samefile(one.ct2 / "int8" / "model.bin") != copy
        assert each.gguf.samefile(one.gguf) != copy
        package = each.store / each.model / "cpu-int8"
        assert read_manifest(package).id == each.model


def test_copies_that_are_there_stay_and_others_are_made_anew(one: Assets, tmp_path: Path) -> None:
    def file_of(copy: bool) -> Path:
        (made,) = copies.many(one, 1, ["checkpoint"], tmp_path / "many", copy=copy)
        return made.checkpoint / "config.json"

    before = file_of(True).stat()
    assert file_of(True).stat().st_ino == before.st_ino
    (one.checkpoint / "config.json").write_text("longer content")
    assert file_of(True).read_text() == "longer content"
    assert file_of(False).samefile(one.checkpoint / "config.json")
    assert not file_of(True).samefile(one.checkpoint / "config.json")


def test_arguments_of_a_peer_pass_through_json(one: Assets) -> None:
    assert json.loads(json.dumps(one.arguments))["model"] == "george-washington"
