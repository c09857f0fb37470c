"""Holds a package to the checkpoint that it was made from, in PyTorch.

The graph answers with the logits of the last token only, so the calibration text is fed token
by token, all windows as one batch: that exercises the KV buffers too.

- fp32: no logit differs by more than `LOGIT_ERROR`, and greedy decoding gives the same tokens.
  Rounding grows with the numbers: where logits are larger than `LOGIT_RANGE`, as in large
  models, the bound grows in proportion.
- int8 and fp16: the perplexity stays within `PERPLEXITY` of the original's.

int8 uses symmetric weights per column, symmetric activations per token after outliers have been
moved into the weights (`smooth.py`), and activations with a zero point after the GELU; on the
trained models that were tried, and on one with strong outliers put in, that is well inside the
bound. There is no fallback that keeps single layers in higher precision: the graph would then
depend on the values. A model that misses the bound is served in fp32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2export.errors import VerificationFailed
from gpt2export.graph import kv_layout
from gpt2export.reference import Reading, Reference
from gpt2export.runner import PackageRunner
from gpt2serve.package import Precision

LOGIT_ERROR = 1e-4
LOGIT_RANGE = 32.0
PERPLEXITY = 0.01

GREEDY_ROWS, GREEDY_TOKENS = 4, 32

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

_ADVICE = {
    "fp32": "The exporter is at fault: please report this model.",
    "int8": "Try --precision fp32, or --calibration FILE with text of the kind the model knows.",
    "fp16": "The model may leave float16's range: try --target cpu.",
}


def verify(
    package: Path, reference: Reference, reading: Reading, precision: Precision, *, threads: int
) -> dict[str, Any]:
    """The figures for the manifest. Raises `VerificationFailed` outside a bound.

    `reading` is what `reference` said to the calibration text.
    """
    ids, dimensions = reading.ids, reference.checkpoint.dimensions
    runner = PackageRunner(
        package,
        dimensions,
        kv_layout(precision).dtype,
        rows=len(ids),
        length=min(dimensions.context_length, ids.shape[1] + GREEDY_TOKENS),
        threads=threads,
    )
    report = compare(runner, reading.logits[:, :-1], ids)
    if precision == "fp32":
        limit = LOGIT_ERROR * max(1.0, report["max_logit"] / LOGIT_RANGE)
        report["max_logit_error_limit"] = limit
        _hold("the largest logit error", report["max_logit_error"], limit, precision)
        report |= greedy(runner, reference, ids, tie=2 * limit)
        _hold("the number of wrong greedy tokens", report["greedy_wrong"], 0, precision)
    else:
        report["perplexity_change_limit"] = PERPLEXITY
        change = abs(report["perplexity_change"])
        _hold("the relative change of the perplexity", change, PERPLEXITY, precision)
    return {"tokens": int(ids[:, 1:].size)} | report


def compare(runner: PackageRunner, expected: Floats, ids: Ids) -> dict[str, Any]:
    """Feed `ids` [rows, length] token by token; `expected` is [rows, length - 1, vocab]."""
    error, losses, divergence, agree = np.float32(0), [], [], []
    for position in range(ids.shape[1] - 1):
        truth = expected[:, position]
        column = ids[:, position]
        logits = runner.prefill(column[:, None].tolist()) if position == 0 else runner.step(column)
        gap = truth - logits
        error = np.maximum(error, np.abs(gap).max())  # unlike max(), it keeps a NaN
        agree.append(logits.argmax(-1) == truth.argmax(-1))
        (p, norm_p), (_, norm_q) = _softmax(truth), _softmax(logits)
        # log p - log q is the gap of the logits and that of the norms, which p sums to itself.
        p *= gap
        divergence.append(p.sum(-1, dtype=np.float64) - norm_p + norm_q)
        following = ids[:, position + 1, None]
        losses.append(
            [
                (np.take_along_axis(values, following, -1)[:, 0] - norm).mean()
                for values, norm in ((truth, norm_p), (logits, norm_q))
            ]
        )
    loss_p, loss_q = -np.mean(losses, axis=0)
    return {
        "max_logit": float(max(expected.max(), -expected.min())),
        "max_logit_error": float(error),
        "perplexity_reference": float(np.exp(loss_p)),
        "perplexity": float(np.exp(loss_q)),
        "perplexity_change": float(np.expm1(loss_q - loss_p)),
        "top1_agreement": float(np.mean(agree)),
        "mean_kl": float(np.mean(divergence)),
    }


def greedy(runner: PackageRunner, reference: Reference, ids: Ids, *, tie: float) -> dict[str, int]:
    """Decode from prompts of different lengths and count the tokens that PyTorch would not take.

    PyTorch reads the finished sequences in one go: up to the first difference that is the same
    as decoding with it, and cheaper. Two logits nearer than `tie` count as equal.
    """
    rows, longest = ids[:GREEDY_ROWS], ids.shape[1]
    prompts = [row[: max(1, longest // 4 - 2 * n)].tolist() for n, row in enumerate(rows)]
    room = runner.length - max(map(len, prompts))
    sequences = [list(prompt) for prompt in prompts]
    logits = runner.prefill(prompts)
    for _ in range(min(GREEDY_TOKENS, room)):
        tokens = logits.argmax(-1)
        for sequence, token in zip(sequences, tokens, strict=True):
            sequence.append(int(token))
        logits = runner.step(tokens)
    wrong = 0
    for prompt, sequence in zip(prompts, sequences, strict=True):
        truth = reference.logits(np.array([sequence[:-1]], np.int64))[0, len(prompt) - 1 :]
        taken = np.take_along_axis(truth, np.array(sequence[len(prompt) :])[:, None], -1)[:, 0]
        wrong += int((truth.max(-1) - taken > tie).sum())
    return {
        "greedy_tokens": sum(map(len, sequences)) - sum(map(len, prompts)),
        "greedy_wrong": wrong,
    }


def _softmax(logits: Floats) -> tuple[Floats, NDArray[np.float64]]:
    """Probabilities [rows, vocab], and what log_softmax subtracts from the logits of a row."""
    peak = logits.max(-1, keepdims=True)
    p = np.exp(logits - peak)
    total = p.sum(-1, keepdims=True, dtype=np.float64)
    p /= total
    return p, (peak + np.log(total))[:, 0]


def _hold(bound: str, measured: float, limit: float, precision: Precision) -> None:
    if not measured <= limit:  # so that NaN fails, too
        raise VerificationFailed(bound, measured, limit, _ADVICE[precision])
