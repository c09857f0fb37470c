"""The text on which a package is compared with its checkpoint."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpt2export.checkpoint import Checkpoint
from gpt2export.errors import ExportError

#: Enough to see a perplexity change of a fraction of a percent, few enough for seconds.
ROWS, LENGTH = 16, 64


def read_calibration(path: Path | None) -> str:
    """The given file, or the text that ships with the exporter. Raises `ExportError`."""
    if path is None:
        return (resources.files("gpt2export") / "data" / "calibration.txt").read_text("utf-8")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ExportError(f"The calibration file {path} cannot be read ({error}).") from error


def windows(checkpoint: Checkpoint, text: str) -> NDArray[np.int64]:
    """[rows, length] token ids from all over the text, each row beginning with bos.

    At most `ROWS` by `LENGTH`; less for a short text or a short context. Raises `ExportError`
    if there is nothing to predict.
    """
    ids = checkpoint.tokenizer.encode(text, add_special_tokens=False).ids
    fresh = min(LENGTH, checkpoint.dimensions.context_length) - 1
    fresh = min(fresh, len(ids))
    if fresh < 1:
        raise ExportError(
            "There is not enough to verify with: the calibration text is empty, or the model's "
            "context is a single token. Give a text with --calibration, or use --no-verify."
        )
    rows = min(ROWS, len(ids) // fresh)
    starts = np.linspace(0, len(ids) - fresh, rows).astype(np.int64)
    body = np.array([ids[start : start + fresh] for start in starts], np.int64)
    bos = np.full((rows, 1), checkpoint.bos_token_id, np.int64)
    return np.concatenate([bos, body], axis=1)
