"""Packages of tiny models against PyTorch, against optimum's export, and against themselves."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import GPT2LMHeadModel

from gpt2export.calibration import windows
from gpt2export.checkpoint import Checkpoint, load_checkpoint
from gpt2export.errors import ExportError, VerificationFailed
from gpt2export.exporter import Exporter, Job, Options
from gpt2export.graph import kv_layout
from gpt2export.package_files import write_model
from gpt2export.reference import Reference
from gpt2export.runner import PackageRunner
from gpt2export.verify import verify
from gpt2serve.engine.sessions import share_thread_pool
from gpt2serve.package import Precision, read_manifest, verify_hashes
from tests.conftest import export
from tests.export_fixtures import (
    CONFIG,
    Tensors,
    calibration_text,
    random_tensors,
    write_checkpoint,
)

PROMPTS = [[5, 6, 7, 8, 9], [10], [11, 12, 13, 14, 15, 16, 17, 18, 19], [20, 21]]
STEPS = 20

#: Odd shapes: head size, inner size, depth, context.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {},
    "odd": {"n_embd": 72, "n_head": 3, "n_layer": 1, "n_inner": 100, "n_positions": 37},
    "one head": {"n_embd": 40, "n_head": 1, "n_layer": 3, "layer_norm_epsilon": 1e-3},
}


@pytest.fixture(scope="module", params=SHAPES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    return write_checkpoint(folder, **SHAPES[request.param])


@pytest.fixture(scope="module")
def store(checkpoint: Path) -> Path:
    """All three variants, verified."""
    store = checkpoint.parent / "store"
    for variant in (("cpu", "int8"), ("cpu", "fp32"), ("cuda", "fp16")):
        options = Options(store=store, variants=(variant,))
        outcomes = list(Exporter(Job(str(checkpoint), "tiny"), options, lambda line: None).run())
        assert [(o.status, o.message) for o in outcomes] == [("exported", "")]
    return store


def runner(package: Path, *, rows: int = 4) -> PackageRunner:
    manifest = read_manifest(package)
    return PackageRunner(
        package, manifest.dimensions, manifest.kv.dtype, rows=rows, length=32, threads=1
    )


def verified(
    package: Path, checkpoint: Checkpoint, precision: Precision, text: str | None = None
) -> dict[str, Any]:
    reference = Reference(checkpoint)
    ids = windows(checkpoint, calibration_text() if text is None else text)
    return verify(package, reference, reference.read(ids), precision, threads=1)


def greedy(package: Path, prompts: list[list[int]]) -> list[list[int]]:
    running = runner(package, rows=len(prompts))
    sequences = [list(prompt) for prompt in prompts]
    logits = running.prefill(prompts)
    for _ in range(STEPS):
        tokens = logits.argmax(-1)
        for sequence, token in zip(sequences, tokens, strict=True):
            sequence.append(int(token))
        logits = running.step(tokens)
    return sequences


def original(checkpoint: Path) -> GPT2LMHeadModel:
    return GPT2LMHeadModel.from_pretrained(checkpoint, attn_implementation="eager").eval()


def torch_greedy(model: Any, prompt: list[int]) -> list[int]:
    answer = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        do_sample=False,
        min_new_tokens=STEPS,
        max_new_tokens=STEPS,
        eos_token_id=None,
        pad_token_id=0,
    )
    sequence: list[int] = answer[0].tolist()
    return sequence


@pytest.mark.parametrize(
    ("variant", "most"), [("cpu-fp32", 1e-4), ("cuda-fp16", 0.05), ("cpu-int8", 0.6)]
)
def test_logits_are_the_originals(checkpoint: Path, store: Path, variant: str, most: float) -> None:
    """A padded prefill of mixed lengths, then steps."""
    model, running = original(checkpoint), runner(store / "tiny" / variant)
    sequences = [list(prompt) for prompt in PROMPTS]
    logits = running.prefill(PROMPTS)
    for _ in range(6):
        with torch.inference_mode():
            expected = [model(torch.tensor([s])).logits[0, -1].numpy() for s in sequences]
        assert np.abs(logits - np.array(expected)).max() <= most
        tokens = np.argmax(expected, axis=-1)
        for sequence, token in zip(sequences, tokens, strict=True):
            sequence.append(int(token))
        logits = running.step(tokens)


def test_fp32_speaks_the_same_tokens(checkpoint: Path, store: Path) -> None:
    model = original(checkpoint)
    expected = [torch_greedy(model, prompt) for prompt in PROMPTS]
    assert greedy(store / "tiny" / "cpu-fp32", PROMPTS) == expected


@pytest.mark.parametrize("variant", ["cpu-int8", "cpu-fp32"])
def test_a_row_does_not_depend_on_the_others(store: Path, variant: str) -> None:
    """Bit for bit: in a padded prefill and in every step."""
    together, alone = runner(store / "tiny" / variant), runner(store / "tiny" / variant, rows=1)
    tokens = np.arange(40, 40 + STEPS)
    batch = [together.prefill(PROMPTS)]
    batch += [together.step(np.full(len(PROMPTS), token)) for token in tokens]
    for row, prompt in enumerate(PROMPTS):
        single = [alone.prefill([prompt])] + [alone.step(np.array([token])) for token in tokens]
        for step, (one, many) in enumerate(zip(single, batch, strict=True)):
            assert np.array_equal(one[0], many[row]), (row, step)


def test_the_manifest_tells_the_truth(checkpoint: Path, store: Path) -> None:
    for precision, dtype in (("int8", "float32"), ("fp32", "float32"), ("fp16", "float16")):
        target = "cuda" if precision == "fp16" else "cpu"
        package = store / "tiny" / f"{target}-{precision}"
        manifest = read_manifest(package)
        verify_hashes(package, manifest)
        graph = onnx.load(package / "model.onnx", load_external_data=False).graph
        assert manifest.inputs == tuple(value.name for value in graph.input)
        assert manifest.outputs == tuple(value.name for value in graph.output)
        assert manifest.kv.dtype == dtype
        assert manifest.bytes_needed >= manifest.files["model.onnx.data"].bytes * 0.99
        report = manifest.verification
        assert abs(report["perplexity_change"]) <= 0.01
        assert report["top1_agreement"] > 0.9
        assert report["mean_kl"] < 0.01
        if precision == "fp32":
            assert report["max_logit_error"] <= report["max_logit_error_limit"]
            assert (report["greedy_wrong"], report["greedy_tokens"] > 0) == (0, True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_optimums_export_is_of_one_mind(tmp_path: Path) -> None:
    """`--portable`: other code, the same tokens."""
    checkpoint, store = write_checkpoint(tmp_path / "tiny"), tmp_path / "store"
    # As a command of its own: optimum's sessions do not get along with an engine's thread pool.
    for status in ("exported", "unchanged"):
        output = export(store, str(checkpoint), "--precision", "fp32", "--portable")
        assert output.count(f"  {status}") == 2, output
    from optimum.onnxruntime import ORTModelForCausalLM

    # An engine of another test may have made onnxruntime share one pool of threads.
    shared = onnxruntime.SessionOptions()
    shared.use_per_session_threads = False
    share_thread_pool(2)
    model = ORTModelForCausalLM.from_pretrained(store / "tiny" / "portable", session_options=shared)
    for sequence, prompt in zip(greedy(store / "tiny" / "cpu-fp32", PROMPTS), PROMPTS, strict=True):
        assert sequence == torch_greedy(model, prompt)


def zeroed(names: tuple[str, ...]) -> Tensors:
    config = {key: value for key, value in CONFIG.items() if key != "architectures"}
    tensors = random_tensors(config)
    return {
        name: torch.zeros_like(tensor) if name.endswith(names) else tensor
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize(
    "names",
    [
        ("ln_1.weight", "ln_1.bias"),
        ("ln_f.weight", "ln_f.bias"),
        ("c_attn.weight", "c_attn.bias"),
        ("c_fc.weight", "c_fc.bias"),
        ("wte.weight",),
        ("weight", "bias"),
    ],
)
@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_rows_of_zeros_stay_numbers(
    tmp_path: Path, names: tuple[str, ...], precision: Precision
) -> None:
    checkpoint = load_checkpoint(write_checkpoint(tmp_path / "tiny", tensors=zeroed(names)))
    package = tmp_path / "package"
    package.mkdir()
    write_model(package, checkpoint, precision)
    report = verified(package, checkpoint, precision)
    assert np.isfinite(report["max_logit_error"])


@pytest.mark.parametrize(
    ("precision", "bound", "advice"),
    [
        ("fp32", "the largest logit error", "report this model"),
        ("int8", "the relative change of the perplexity", "--precision fp32"),
        ("fp16", "the relative change of the perplexity", "--target cpu"),
    ],
)
def test_a_package_of_other_weights_is_not_published(
    tmp_path: Path, precision: Precision, bound: str, advice: str
) -> None:
    right = load_checkpoint(write_checkpoint(tmp_path / "right", seed=1))
    wrong = load_checkpoint(write_checkpoint(tmp_path / "wrong", seed=2))
    write_model(tmp_path, wrong, precision)
    with pytest.raises(VerificationFailed, match=bound) as caught:
        verified(tmp_path, right, precision)
    assert advice in str(caught.value)
    assert caught.value.measured > caught.value.limit


def test_fp16_overflow_is_found_and_leaves_no_package(tmp_path: Path) -> None:
    tensors = zeroed(())
    tensors["transformer.h.0.mlp.c_fc.bias"][0] = 1e6
    folder = write_checkpoint(tmp_path / "tiny", tensors=tensors)
    options = Options(store=tmp_path / "store", variants=(("cuda", "fp16"),))
    outcome = next(Exporter(Job(str(folder), "tiny"), options, lambda line: None).run())
    assert outcome.status == "failed"
    assert "try --target cpu" in outcome.message
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_dir()] == []


def test_a_short_text_and_a_short_context_will_do(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(write_checkpoint(tmp_path / "tiny", n_positions=4))
    write_model(tmp_path, checkpoint, "fp32")
    for text in ("ab", "My fellow citizens"):
        report = verified(tmp_path, checkpoint, "fp32", text)
        assert report["tokens"] > 0
    with pytest.raises(ExportError, match="not enough"):
        verified(tmp_path, checkpoint, "fp32", "")


def test_weights_outside_the_folder_are_not_needed(store: Path, tmp_path: Path) -> None:
    """A package can be copied to another place as it is."""
    shutil.copytree(store / "tiny" / "cpu-int8", tmp_path / "copy")
    manifest = read_manifest(tmp_path / "copy")
    running = PackageRunner(
        tmp_path / "copy",
        manifest.dimensions,
        kv_layout("int8").dtype,
        rows=1,
        length=8,
        threads=1,
    )
    assert np.isfinite(running.prefill([[1, 2, 3]])).all()
