"""Reading checkpoints: every form that is accepted, every fault that is refused."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt2export.checkpoint import load_checkpoint
from gpt2export.errors import CheckpointError, UnsupportedModel
from gpt2export.sources import source_hash
from gpt2export.tensors import expected_shapes
from tests.export_fixtures import CONFIG, VOCAB_SIZE, Tensors, random_tensors, write_checkpoint


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("original") / "tiny")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "tiny")


def set_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder: Path, change: Callable[[Tensors], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def plain(tensors: Tensors) -> Tensors:
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def as_pickle(folder: Path, tensors: Tensors) -> None:
    torch.save(tensors, folder / "pytorch_model.bin")


def as_old_pickle(folder: Path, tensors: Tensors) -> None:
    """As of 2020: not a zip file, with mask buffers and the tied head, without the prefix."""
    old = plain(tensors) | {"lm_head.weight": tensors["transformer.wte.weight"]}
    for layer in range(CONFIG["n_layer"]):
        old[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 48, 48, dtype=torch.uint8)
        old[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(old, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def as_shards(folder: Path, tensors: Tensors) -> None:
    names = sorted(tensors)
    places = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in set(places.values()):
        save_file({n: tensors[n] for n in names if places[n] == shard}, folder / shard)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def as_pickled_shards(folder: Path, tensors: Tensors) -> None:
    names = sorted(tensors)
    places = {name: f"pytorch_model-0000{1 + i % 2}-of-2.bin" for i, name in enumerate(names)}
    for shard in set(places.values()):
        torch.save({n: tensors[n] for n in names if places[n] == shard}, folder / shard)
    index = {"metadata": {}, "weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("write", [as_pickle, as_old_pickle, as_shards, as_pickled_shards])
def test_every_weight_format_gives_the_same_tensors(
    folder: Path, original: Path, write: Callable[[Path, Tensors], None]
) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    write(folder, tensors)
    found, expected = load_checkpoint(folder).tensors, load_checkpoint(original).tensors
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_become_float32(folder: Path, dtype: torch.dtype) -> None:
    change_tensors(folder, lambda t: t.update({n: x.to(dtype) for n, x in t.items()}))
    tensors = load_checkpoint(folder).tensors
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_dimensions_come_from_the_config(tmp_path: Path) -> None:
    folder = write_checkpoint(
        tmp_path / "odd", n_embd=120, n_head=3, n_layer=1, n_positions=20, n_inner=200
    )
    found = load_checkpoint(folder).dimensions
    assert (found.heads, found.head_size, found.hidden_size) == (3, 40, 120)
    assert (found.layers, found.context_length, found.inner_size) == (1, 20, 200)
    assert found.vocab_size == VOCAB_SIZE


def test_every_wrong_tensor_is_named_at_once(folder: Path) -> None:
    def damage(tensors: Tensors) -> None:
        del tensors["transformer.h.0.ln_1.weight"]
        del tensors["transformer.ln_f.bias"]
        tensors["transformer.h.7.mlp.c_fc.bias"] = torch.zeros(3)
        tensors["transformer.wpe.weight"] = torch.zeros(47, 32)
        tensors["transformer.h.1.ln_1.bias"] = torch.zeros(32, dtype=torch.int32)

    change_tensors(folder, damage)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    message = str(caught.value)
    assert "missing: h.0.ln_1.weight (32,)" in message
    assert "missing: ln_f.bias (32,)" in message
    assert "unexpected: h.7.mlp.c_fc.bias (3,)" in message
    assert "wrong shape: wpe.weight is (47, 32), the config says (48, 32)" in message
    assert "not floating point: h.1.ln_1.bias is torch.int32" in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gpt_neo"}, "model_type is 'gpt_neo'"),
        ({"architectures": ["GPT2DoubleHeadsModel"]}, "GPT2DoubleHeadsModel"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is set"),
        ({"add_cross_attention": True}, "add_cross_attention is set"),
        ({"scale_attn_weights": False}, "scale_attn_weights is false"),
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"activation_function": "gelu"}, "activation_function is 'gelu'"),
        ({"n_head": 3}, "n_embd (32) is not a multiple of n_head (3)"),
        ({"n_head": 8}, "a multiple of 8"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config is set"),
    ],
)
def test_what_is_not_plain_gpt2_is_refused_by_name(
    folder: Path, changes: dict[str, Any], words: str
) -> None:
    set_config(folder, **changes)
    with pytest.raises(UnsupportedModel, match=re.escape(words)):
        load_checkpoint(folder)


def test_all_unsupported_settings_are_named_at_once(folder: Path) -> None:
    set_config(folder, add_cross_attention=True, activation_function="relu")
    with pytest.raises(UnsupportedModel, match=r"add_cross_attention.*activation_function"):
        load_checkpoint(folder)


@pytest.mark.parametrize("changes", [{"reorder_and_upcast_attn": True}, {"architectures": None}])
def test_settings_without_effect_on_the_result_are_accepted(
    folder: Path, changes: dict[str, Any]
) -> None:
    set_config(folder, **changes)
    load_checkpoint(folder)


def test_gelu_under_its_other_name_is_accepted(folder: Path) -> None:
    set_config(folder, activation_function="gelu_pytorch_tanh")
    load_checkpoint(folder)


def test_an_untied_head_is_refused(folder: Path) -> None:
    head = torch.zeros(VOCAB_SIZE, CONFIG["n_embd"])
    change_tensors(folder, lambda tensors: tensors.update({"lm_head.weight": head}))
    with pytest.raises(UnsupportedModel, match=r"lm_head\.weight differs"):
        load_checkpoint(folder)


def test_a_promised_head_must_be_there(folder: Path) -> None:
    set_config(folder, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing"):
        load_checkpoint(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_refused(folder: Path, value: float) -> None:
    change_tensors(folder, lambda tensors: tensors["transformer.ln_f.bias"].fill_(value))
    with pytest.raises(CheckpointError, match=r"ln_f\.bias holds NaN or infinity"):
        load_checkpoint(folder)


class Trap:
    """A pickle that would run code when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('the pickle ran code')",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_cannot_run_code(folder: Path, zipped: bool) -> None:
    (folder / "model.safetensors").unlink()
    content = {"wte.weight": Trap()}
    torch.save(content, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        load_checkpoint(folder)


@pytest.mark.parametrize("content", [b"", b"not weights", pickle.dumps([1, 2])])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_broken_weight_files_are_refused(folder: Path, name: str, content: bytes) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(name)):
        load_checkpoint(folder)


def test_a_truncated_file_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a readable"):
        load_checkpoint(folder)


def test_a_shard_outside_the_folder_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    index = {"weight_map": {"wte.weight": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="elsewhere"):
        load_checkpoint(folder)


def test_no_weights_no_config_no_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        load_checkpoint(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_checkpoint(folder)
    with pytest.raises(CheckpointError, match="is not a folder"):
        load_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "gpt2", "n_layer": "two"}'])
def test_a_broken_config_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_checkpoint(folder)


@pytest.mark.parametrize("key", ["vocab_size", "n_positions", "n_layer", "n_head", "n_embd"])
def test_sizes_must_be_positive(folder: Path, key: str) -> None:
    set_config(folder, **{key: 0})
    with pytest.raises(CheckpointError, match=f"{key} is 0"):
        load_checkpoint(folder)


def test_special_ids_outside_the_vocabulary_are_left_out(folder: Path) -> None:
    set_config(folder, bos_token_id=50256, eos_token_id=[50256, 7])
    found = load_checkpoint(folder)
    assert (found.bos_token_id, found.eos_token_ids) == (7, (7,))
    set_config(folder, eos_token_id=50256)
    with pytest.raises(CheckpointError, match="neither bos_token_id"):
        load_checkpoint(folder)


def test_the_hash_covers_every_file_that_is_read(folder: Path) -> None:
    (folder / "README.md").write_text("# Card")
    (folder / "generation_config.json").write_text("{}")
    seen = {source_hash(folder)}
    for name in (
        "config.json",
        "model.safetensors",
        "vocab.json",
        "README.md",
        "generation_config.json",
        "special_tokens_map.json",
    ):
        path = folder / name
        path.write_bytes(path.read_bytes() + b" ")
        seen.add(source_hash(folder))
    assert len(seen) == 7
    (folder / "training_args.bin").write_bytes(b"not read")
    assert source_hash(folder) in seen


def test_expected_shapes_are_those_of_transformers(original: Path) -> None:
    config = {key: value for key, value in CONFIG.items() if key != "architectures"}
    expected = {name: tuple(t.shape) for name, t in plain(random_tensors(config)).items()}
    assert expected_shapes(load_checkpoint(original).dimensions) == expected
