"""Memory comes back: KV cache when idle, models when unloaded, all after failed loads."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from gpt2serve import Engine, SamplingParams
from gpt2serve.errors import ModelLoadFailed
from gpt2serve.package import WEIGHTS_FILE, package_path
from tests.engine_driver import (
    JEFFERSON,
    MIB,
    REAGAN,
    WASHINGTON,
    Recording,
    Watcher,
    assert_idle,
    copy_model,
    open_engine,
    resident_bytes,
    send,
)

PARAMS = SamplingParams(max_new_tokens=4, min_new_tokens=4, num_return_sequences=4, do_sample=True)


def test_kv_cache_is_given_back_when_idle(sample_store: Path) -> None:
    with open_engine(sample_store) as engine:
        used: list[int] = []
        first = Recording()
        first.on_delivery = lambda _: used.append(engine.stats().kv_cache_used_bytes)
        sent = [send(engine, REAGAN, "We", PARAMS, stream=first)]
        sent += [send(engine, model, "We", PARAMS) for model in (JEFFERSON, REAGAN) * 4]
        for one in sent:
            one.stream.finish()
        assert max(used) > 0
        assert_idle(engine)
        assert engine.stats().kv_cache_used_bytes == 0


CYCLES = 60


def test_loading_and_unloading_does_not_leak(
    sample_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One model too many for the cache: each use is a load and an unload; some loads fail.

    A package takes 4 MB in memory and its keys and values are of that order too: what is
    kept of each cycle by mistake shows up 60 times.
    """
    monkeypatch.setattr("gpt2serve.engine.packer.counted", lambda _, predicted: predicted)
    models = (REAGAN, JEFFERSON, WASHINGTON)
    for model in models:
        copy_model(sample_store, model, tmp_path)
    copy_model(sample_store, REAGAN, tmp_path, "broken")
    weights = package_path(tmp_path, "broken", "cpu", "int8") / WEIGHTS_FILE
    data = bytearray(weights.read_bytes())
    data[1000] ^= 1
    weights.write_bytes(data)
    watcher = Watcher()
    with open_engine(tmp_path, precision="int8") as probe:
        needed = probe.describe(REAGAN).bytes_needed
    with open_engine(
        tmp_path,
        precision="int8",
        observer=watcher,
        model_cache_bytes=int(1.3 * needed),
        load_retry_min=0.0,
        load_retry_max=0.0,
    ) as engine:
        sizes = []
        for cycle in range(CYCLES + 12):
            engine.generate(models[cycle % 3], "We", PARAMS)
            if cycle % 4 == 0:
                _fail(engine)
            if cycle >= 12:  # the first ones fill the allocator's own caches
                gc.collect()
                sizes.append(resident_bytes())
        assert_idle(engine)
    assert watcher.loads.count(True) == CYCLES + 12
    assert watcher.loads.count(False) == (CYCLES + 12) // 4
    growth = sorted(sizes[-12:])[6] - sorted(sizes[:12])[6]
    # A leak of one model a cycle would be 48 times 4 MB.
    assert growth < 24 * MIB, [size // MIB for size in sizes]


def _fail(engine: Engine) -> None:
    with pytest.raises(ModelLoadFailed):
        engine.generate("broken", "We", PARAMS)


def test_closed_engines_leave_nothing(sample_store: Path) -> None:
    sizes = []
    for _ in range(12):
        with open_engine(sample_store, precision="fp32") as engine:
            engine.generate(REAGAN, "We", PARAMS)
        del engine
        gc.collect()
        sizes.append(resident_bytes())
    growth = sorted(sizes[-4:])[2] - sorted(sizes[2:6])[2]
    # Each had a model of 14 MB.
    assert growth < 40 * MIB, [size // MIB for size in sizes]
