"""A row's logits do not depend on what else a step computes: same bits alone and in company."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from gpt2serve.engine.batch import Batch, Floats
from gpt2serve.engine.forms import Form, Shapes, Stage
from gpt2serve.engine.kv_cache import KVShape
from gpt2serve.engine.memory import HostMemory
from gpt2serve.engine.runner import Runner
from gpt2serve.errors import CorruptPackage
from gpt2serve.package import GRAPH_FILE, package_path, read_manifest
from tests.engine_driver import REAGAN, THREADS, WASHINGTON

VOCABULARY = 4095


@pytest.fixture(scope="module", params=["int8", "fp32", "unpacked"])
def runner(request: pytest.FixtureRequest, sample_store: Path) -> Runner:
    if request.param == "unpacked":
        return load(sample_store, "int8", Shapes())
    return load(sample_store, request.param)


def load(store: Path, precision: str, shapes: Shapes | None = None) -> Runner:
    package = package_path(store, REAGAN, "cpu", precision)
    manifest = read_manifest(package)
    return Runner.load(package, manifest, device="cpu", threads=THREADS, shapes=shapes)


def prompts(*lengths: int, seed: int = 1) -> list[list[int]]:
    generator = random.Random(seed)
    return [[generator.randrange(VOCABULARY) for _ in range(length)] for length in lengths]


def prefill(runner: Runner, prompt: list[int], length: int) -> tuple[Batch, Floats]:
    batch = runner.new_batch(KVShape(1, length), HostMemory())
    return batch, runner.prefill(batch, [prompt], 0)[0].copy()


def keys_and_values(batch: Batch, slot: int, tokens: int) -> np.ndarray:
    return batch.kv.array[:, slot, :, :tokens].copy()


@pytest.mark.parametrize("lengths", [(1, 2), (17, 1, 9, 16), (3,) * 8, (40, 39, 1), (128, 5)])
def test_padded_prefill_equals_each_prompt_alone(runner: Runner, lengths: tuple[int, ...]) -> None:
    together = prompts(*lengths)
    batch = runner.new_batch(KVShape(len(together), max(lengths)), HostMemory())
    logits = runner.prefill(batch, together, 0).copy()
    for row, prompt in enumerate(together):
        alone, expected = prefill(runner, prompt, len(prompt))
        assert np.array_equal(logits[row], expected)
        assert np.array_equal(
            keys_and_values(batch, row, len(prompt)), keys_and_values(alone, 0, len(prompt))
        )


@pytest.mark.parametrize("chunk", [7, 16, 64, 98])
def test_prefill_in_chunks_equals_prefill_at_once(runner: Runner, chunk: int) -> None:
    logits, cache, expected = in_chunks(runner, chunk)
    assert np.array_equal(logits, expected[0])
    assert np.array_equal(cache, expected[1])


@pytest.mark.parametrize("chunk", [1, 99])
def test_a_chunk_of_one_token_differs_in_the_last_bits_only(runner: Runner, chunk: int) -> None:
    """GroupQueryAttention adds in another order when it reads a single token.

    Where a prompt is cut depends on the setting alone, never on the load, so the promise of
    equal texts does not suffer.
    """
    # One bit may move an activation to the next of the 256 values that int8 has for it.
    tolerance = 1e-4 if runner.manifest.precision == "fp32" else 0.2
    logits, cache, expected = in_chunks(runner, chunk)
    np.testing.assert_allclose(logits, expected[0], atol=tolerance)
    np.testing.assert_allclose(cache, expected[1], atol=tolerance)


def in_chunks(runner: Runner, chunk: int) -> tuple[Floats, np.ndarray, tuple[Floats, np.ndarray]]:
    """Logits and KV cache of a prompt read in chunks, and both of the same prompt at once."""
    (prompt,) = prompts(100)
    whole, expected = prefill(runner, prompt, 100)
    batch = runner.new_batch(KVShape(1, 100), HostMemory())
    for start in range(0, len(prompt), chunk):
        logits = runner.prefill(batch, [prompt[start : start + chunk]], start)
    cache = keys_and_values(batch, 0, 100)
    return logits[0], cache, (expected, keys_and_values(whole, 0, 100))


def test_decode_batch_equals_each_row_alone(runner: Runner) -> None:
    lengths = (1, 30, 16, 5, 64, 2, 33)
    steps = 6
    alone = []
    for prompt, forced in zip(prompts(*lengths), prompts(*[steps] * 7, seed=2), strict=True):
        batch, logits = prefill(runner, prompt, 128)
        trace = [logits]
        for done, token in enumerate(forced):
            length = np.array([len(prompt) + done + 1], dtype=np.int32)
            trace.append(runner.decode(batch, [token], length)[0].copy())
        alone.append(trace)

    together = runner.new_batch(KVShape(8, 128), HostMemory())
    for slot, prompt in enumerate(prompts(*lengths)):
        own, _ = prefill(runner, prompt, len(prompt))
        together.kv.copy(own.kv, 0, [slot], len(prompt))
    forced_tokens = prompts(*[steps] * 7, seed=2)
    for done in range(steps):
        # The number of rows changes from step to step, as when sequences join and leave.
        rows = 7 - done % 3 if done < steps - 1 else 7
        if rows < 7:
            _catch_up(runner, together, lengths, forced_tokens, done, rows)
        tokens = [forced[done] for forced in forced_tokens[:rows]]
        now = np.array([length + done + 1 for length in lengths[:rows]], dtype=np.int32)
        logits = runner.decode(together, tokens, now)
        for row in range(rows):
            assert np.array_equal(logits[row], alone[row][done + 1]), (row, done)


def _catch_up(
    runner: Runner,
    batch: Batch,
    lengths: tuple[int, ...],
    forced: list[list[int]],
    done: int,
    rows: int,
) -> None:
    """Compute step `done` of all rows once, so that those left out later have their cache."""
    now = np.array([length + done + 1 for length in lengths], dtype=np.int32)
    runner.decode(batch, [tokens[done] for tokens in forced], now)
    assert rows < len(lengths)


def test_what_a_slot_held_before_does_not_matter(runner: Runner) -> None:
    (long, short) = prompts(100, 4)
    batch = runner.new_batch(KVShape(2, 128), HostMemory())
    runner.prefill(batch, [long, long], 0)
    used = runner.prefill(batch, [short], 0)[0].copy()
    _, expected = prefill(runner, short, 4)
    assert np.array_equal(used, expected)
    length = np.array([5], dtype=np.int32)
    fresh, _ = prefill(runner, short, 128)
    assert np.array_equal(
        runner.decode(batch, [7], length)[0], runner.decode(fresh, [7], length)[0]
    )


def test_logits_are_not_all_the_same(runner: Runner) -> None:
    """Against a graph that ignores its inputs, with which every test above would pass."""
    one, two = (prefill(runner, prompt, 16)[1] for prompt in prompts(9, 9))
    assert not np.array_equal(one, two)
    assert np.isfinite(one).all()


# -- unpacked and packed -----------------------------------------------------------------------


def pack(runner: Runner) -> Form:
    return runner.pack(lambda parts: [part() for part in parts])


def test_a_model_can_be_packed_between_two_steps(sample_store: Path) -> None:
    """Every combination of forms gives the bits of the packed one."""
    whole = load(sample_store, "int8")
    assert whole.packed
    expected = generation(whole, pack_before=None)
    for step in (0, 1, 2, 5):
        switching = load(sample_store, "int8", Shapes())
        assert not switching.packed
        logits = generation(switching, pack_before=step)
        assert switching.packed
        assert np.array_equal(logits, expected)


def generation(runner: Runner, pack_before: int | None) -> Floats:
    """Logits of three rows over six steps; the model is packed before one of them."""
    batch = runner.new_batch(KVShape(3, 32), HostMemory())
    rows = prompts(9, 1, 17)
    lengths = np.array([len(row) for row in rows], dtype=np.int32)
    logits = []
    for step in range(6):
        if step == pack_before:
            runner.use(pack(runner))
        if step == 0:
            made = runner.prefill(batch, rows, 0)
        else:
            lengths += 1
            made = runner.decode(batch, made.argmax(axis=1).tolist(), lengths)
        logits.append(made.copy())
    return np.stack(logits)


def test_models_of_one_shape_share_what_has_no_weights(sample_store: Path) -> None:
    shapes = Shapes()
    one, other = load(sample_store, "int8", shapes), load(sample_store, "int8", shapes)
    assert one._form[0].session is other._form[0].session
    one.use(pack(one))
    assert one._form[0].session is not other._form[0].session


def test_pages_that_were_dropped_come_back(sample_store: Path) -> None:
    runner = load(sample_store, "int8", Shapes())
    expected = generation(runner, pack_before=None)
    runner.drop_pages()
    assert np.array_equal(generation(runner, pack_before=None), expected)
    runner.use(pack(runner))
    runner.drop_pages()
    assert np.array_equal(generation(runner, pack_before=None), expected)


def test_a_package_that_was_replaced_is_not_packed(sample_store: Path, tmp_path: Path) -> None:
    """The old version goes on as it is: its name leads to other weights now."""
    package = package_path(tmp_path, REAGAN, "cpu", "int8")
    shutil.copytree(package_path(sample_store, REAGAN, "cpu", "int8"), package)
    runner = load(tmp_path, "int8", Shapes())
    expected = generation(runner, pack_before=None)
    other = package_path(sample_store, WASHINGTON, "cpu", "int8")
    shutil.copytree(other, tmp_path / "new")
    package.rename(tmp_path / "old")
    (tmp_path / "new").rename(package)
    with pytest.raises(CorruptPackage, match="was replaced"):
        pack(runner)
    shutil.rmtree(tmp_path / "old")
    assert np.array_equal(generation(runner, pack_before=None), expected)


def test_a_package_that_came_back_meanwhile_is_not_packed(
    sample_store: Path, tmp_path: Path
) -> None:
    """Other weights were there when it was packed, though the same file is there again after it."""
    package = package_path(tmp_path, REAGAN, "cpu", "int8")
    first = package_path(sample_store, REAGAN, "cpu", "int8")
    other = package_path(sample_store, WASHINGTON, "cpu", "int8")

    def put(source: Path) -> None:
        shutil.rmtree(package, ignore_errors=True)
        shutil.copytree(source, package, copy_function=os.link)

    put(first)
    runner = load(tmp_path, "int8", Shapes())

    def meanwhile(parts: Sequence[Callable[[], Stage]]) -> list[Stage]:
        put(other)
        stages = [part() for part in parts]
        put(first)
        return stages

    with pytest.raises(CorruptPackage, match="was replaced"):
        runner.pack(meanwhile)


def test_a_damaged_graph_is_not_taken_for_the_shape_of_others(
    sample_store: Path, tmp_path: Path
) -> None:
    """What is made ready at start comes from a package that nobody has checked."""
    package = package_path(tmp_path, REAGAN, "cpu", "int8")
    shutil.copytree(package_path(sample_store, REAGAN, "cpu", "int8"), package)
    graph = bytearray((package / GRAPH_FILE).read_bytes())
    graph[-1] ^= 1
    (package / GRAPH_FILE).write_bytes(graph)
    shapes = Shapes()
    with pytest.raises(CorruptPackage, match="differs"):
        shapes.of(package, read_manifest(package))
    assert load(sample_store, "int8", shapes).packed is False
