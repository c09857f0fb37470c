"""Writes the files of one package into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2export.checkpoint import Checkpoint
from gpt2export.graph import build_graph, input_names, kv_layout, output_names
from gpt2export.layout import TensorSpec, weights_layout
from gpt2export.quantize import convert
from gpt2export.smooth import Ranges
from gpt2serve import package
from gpt2serve.package import Dimensions, Manifest, Precision, Target

#: What onnxruntime's session takes besides the weights, measured.
SESSION_BYTES = 2**20


def write_model(
    folder: Path, checkpoint: Checkpoint, precision: Precision, ranges: Ranges | None = None
) -> None:
    """Graph, weights and tokenizer; the manifest comes last, when the numbers are known.

    `ranges`: what int8 is smoothed by.
    """
    dimensions = checkpoint.dimensions
    graph = build_graph(dimensions, precision, checkpoint.config.epsilon)
    (folder / package.GRAPH_FILE).write_bytes(graph)
    _write_weights(folder / package.WEIGHTS_FILE, checkpoint, precision, ranges)
    (folder / package.TOKENIZER_FILE).write_text(checkpoint.tokenizer_text, encoding="utf-8")


def _write_weights(
    path: Path, checkpoint: Checkpoint, precision: Precision, ranges: Ranges | None
) -> None:
    """One tensor in memory at a time, beside the checkpoint's own."""
    tensors = {name: tensor.numpy() for name, tensor in checkpoint.tensors.items()}
    specs = weights_layout(checkpoint.dimensions, precision)
    arrays = convert(tensors, precision, checkpoint.dimensions.layers, ranges)
    with path.open("wb") as file:
        for spec, (name, array) in zip(specs, arrays, strict=True):
            _check_fits(spec, name, array)
            file.seek(spec.offset)
            file.write(np.ascontiguousarray(array).data)


def _check_fits(spec: TensorSpec, name: str, array: NDArray[Any]) -> None:
    """Layout and conversion are written apart; a slip in one must not reach the store."""
    made = (name, str(array.dtype), array.shape)
    if made != (spec.name, spec.dtype, spec.shape):
        raise AssertionError(f"the layout says {spec}, the conversion made {made}")


def write_manifest(
    folder: Path,
    checkpoint: Checkpoint,
    *,
    model: str,
    target: Target,
    precision: Precision,
    source: package.Source,
    verification: dict[str, Any],
) -> Manifest:
    manifest = Manifest(
        format_revision=package.FORMAT_REVISION,
        id=model,
        target=target,
        precision=precision,
        source=source,
        dimensions=checkpoint.dimensions,
        bos_token_id=checkpoint.bos_token_id,
        eos_token_ids=checkpoint.eos_token_ids,
        inputs=input_names(checkpoint.dimensions),
        outputs=output_names(checkpoint.dimensions),
        kv=kv_layout(precision),
        generation_defaults=checkpoint.generation_defaults,
        card=checkpoint.card,
        bytes_needed=bytes_needed(checkpoint.dimensions, precision),
        files=_file_entries(folder),
        verification=verification,
    )
    (folder / package.MANIFEST_FILE).write_bytes(package.encode_manifest(manifest))
    return manifest


def bytes_needed(dimensions: Dimensions, precision: Precision) -> int:
    """Private memory of the loaded model, from its weights.

    onnxruntime repacks each matrix for the processor into memory of its own and lets go of the
    original. What it leaves as it is stays mapped from the file, as pages that are shared and
    that the kernel can drop.
    """
    return sum(spec.nbytes for spec in weights_layout(dimensions, precision)) + SESSION_BYTES


def _file_entries(folder: Path) -> dict[str, package.FileEntry]:
    names = (package.GRAPH_FILE, package.WEIGHTS_FILE, package.TOKENIZER_FILE)
    return {name: package.file_entry(folder / name) for name in names}
