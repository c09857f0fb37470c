"""The sample checkpoints load as a huggingtweets repository does, and write sentences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
NAMES = ("george-washington", "thomas-jefferson", "ronald-reagan")
MAX_BYTES = 25_000_000
TEXT = "The union 🇺🇸 is strong — naïve? 😀\n\t«Oui», 日本語."


@pytest.fixture(scope="module", params=NAMES)
def folder(request: pytest.FixtureRequest) -> Path:
    return SAMPLES / str(request.param)


def test_config_is_that_of_huggingtweets(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["GPT2LMHeadModel"]
    assert config["n_embd"] // config["n_head"] == 32
    assert config["task_specific_params"]["text-generation"] == {
        "do_sample": True,
        "max_length": 160,
        "min_length": 10,
        "prefix": "<|endoftext|>",
        "temperature": 1.0,
        "top_p": 0.95,
    }
    assert not (folder / "generation_config.json").exists()


def test_vocabulary_is_a_gpt2_one(folder: Path) -> None:
    vocab: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert sorted(vocab.values()) == list(range(config["vocab_size"]))
    assert vocab["<|endoftext|>"] == len(vocab) - 1 == config["eos_token_id"]
    assert sum(len(token) == 1 for token in vocab) == 256
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert merges[0].startswith("#version")
    assert len(merges) - 1 == len(vocab) - 257


@pytest.mark.parametrize("use_fast", [False, True])
def test_tokenizer_round_trip(folder: Path, use_fast: bool) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, use_fast=use_fast)
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == TEXT
    assert tokenizer.encode("<|endoftext|>") == [tokenizer.eos_token_id]


def test_model_prefers_sentences_to_noise(folder: Path) -> None:
    model, info = transformers.GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = "<|endoftext|>The people of the United States have a right to be heard.<|endoftext|>"
    ids = torch.tensor([tokenizer.encode(text)])
    noise = ids.flip(1)
    with torch.inference_mode():
        assert model.float().eval()(ids, labels=ids).loss < 5.5
        assert model(noise, labels=noise).loss > 6.5


def test_pipeline_writes_a_sentence(folder: Path) -> None:
    torch.manual_seed(0)
    generator = transformers.pipeline("text-generation", model=str(folder))
    (result,) = generator("My fellow citizens,")
    assert result["generated_text"].startswith("My fellow citizens,")
    assert len(result["generated_text"]) > len("My fellow citizens,")


def test_old_checkpoint_has_the_old_buffers() -> None:
    folder = SAMPLES / "thomas-jefferson"
    assert not (folder / "model.safetensors").exists()
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    size = config["n_positions"]
    for layer in range(config["n_layer"]):
        mask = state[f"transformer.h.{layer}.attn.bias"]
        assert mask.shape == (1, 1, size, size)
        assert torch.equal(mask[0, 0].bool(), torch.ones(size, size).tril().bool())
        assert state[f"transformer.h.{layer}.attn.masked_bias"].item() == -1e4
    head, embedding = state["lm_head.weight"], state["transformer.wte.weight"]
    assert head.dtype == torch.float16
    assert head.untyped_storage().data_ptr() == embedding.untyped_storage().data_ptr()


def test_card_has_front_matter_and_head(folder: Path) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlanguage: en\n")
    assert "license: cc0-1.0" in card
    assert "background-image: url(" in card
    assert f">@{folder.name.replace('-', '_')}<" in card


def test_all_is_small_enough_for_git() -> None:
    files = [path for name in NAMES for path in (SAMPLES / name).rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in files) < MAX_BYTES
