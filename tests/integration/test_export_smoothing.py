"""int8 keeps its accuracy on a model with strong outliers, as real GPT-2s have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gpt2export import calibration
from gpt2export.checkpoint import Checkpoint, load_checkpoint
from gpt2export.errors import VerificationFailed
from gpt2export.package_files import write_model
from gpt2export.reference import Reference
from gpt2export.smooth import smooth_head, smooth_layer
from gpt2export.verify import PERPLEXITY, verify

SAMPLE = Path(__file__).parents[2] / "samples" / "ronald-reagan"
OUTLIERS = ((3, 100.0), (50, 60.0), (120, 40.0))


@pytest.fixture(scope="module")
def text() -> str:
    return calibration.read_calibration(None)


@pytest.fixture
def spiky() -> Checkpoint:
    """A sample with outliers put in: in real numbers it is the same model as before."""
    checkpoint = load_checkpoint(SAMPLE)
    tensors = checkpoint.tensors
    for layer in range(checkpoint.dimensions.layers):
        for norm, linear in (("ln_1", "attn.c_attn"), ("ln_2", "mlp.c_fc")):
            made, read = f"h.{layer}.{norm}", f"h.{layer}.{linear}"
            for channel, times in OUTLIERS:
                offset = 3 * times
                tensors[f"{made}.weight"][channel] *= times
                tensors[f"{made}.bias"][channel] *= times
                tensors[f"{made}.bias"][channel] += offset
                tensors[f"{read}.weight"][channel] /= times
                tensors[f"{read}.bias"] -= offset * tensors[f"{read}.weight"][channel]
    return checkpoint


def test_outliers_are_within_the_bound(spiky: Checkpoint, text: str, tmp_path: Path) -> None:
    reference = Reference(spiky)
    reading = reference.read(calibration.windows(spiky, text))
    write_model(tmp_path, spiky, "int8", reading.ranges)
    report = verify(tmp_path, reference, reading, "int8", threads=1)
    assert abs(report["perplexity_change"]) < PERPLEXITY / 2


def test_without_smoothing_they_are_not(spiky: Checkpoint, text: str, tmp_path: Path) -> None:
    reference = Reference(spiky)
    reading = reference.read(calibration.windows(spiky, text))
    write_model(tmp_path, spiky, "int8", None)
    with pytest.raises(VerificationFailed):
        verify(tmp_path, reference, reading, "int8", threads=1)


def test_smoothing_does_not_change_the_model(text: str) -> None:
    checkpoint = load_checkpoint(SAMPLE)
    ids = calibration.windows(checkpoint, text)[:2]
    before = Reference(checkpoint).read(ids)
    expected, ranges = before.logits, before.ranges
    plain = {name: tensor.numpy() for name, tensor in checkpoint.tensors.items()}
    changed = dict(plain)
    for layer in range(checkpoint.dimensions.layers):
        changed |= smooth_layer(plain, ranges, layer)
    # The LM head alone gets the scaled embedding here; the embedding divides by the scale.
    head = smooth_head(plain, ranges)
    assert np.allclose(head["wte.weight"] * head["wte.channel"], plain["wte.weight"], atol=1e-6)
    checkpoint.tensors.update({name: torch.from_numpy(array) for name, array in changed.items()})
    assert np.abs(Reference(checkpoint).logits(ids) - expected).max() < 1e-3
