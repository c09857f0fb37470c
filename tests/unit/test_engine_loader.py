"""What a loaded model counts for in the cache."""

from __future__ import annotations

import pytest

from gpt2serve.engine.packer import counted


@pytest.mark.parametrize(
    ("measured", "size"),
    [
        # It found the memory of a model that was evicted: it takes as much as ever.
        (-40, 100),
        (0, 100),
        (60, 100),
        (100, 100),
        (130, 130),
        # A KV cache grew while it was loaded.
        (900, 200),
    ],
)
def test_a_model_counts_for_what_the_exporter_says_at_least(measured: int, size: int) -> None:
    assert counted(measured, predicted=100) == size
