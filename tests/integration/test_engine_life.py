"""Models over a server's life, with real ones: published again, deleted, steered, far too many."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from gpt2export import writer
from gpt2serve import SamplingParams
from gpt2serve.errors import ModelLoadFailed, ModelNotFound
from gpt2serve.package import MANIFEST_FILE, WEIGHTS_FILE, package_path
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
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
SAMPLES = (REAGAN, JEFFERSON, WASHINGTON)
PROMPT = "The people"
SHORT = SamplingParams(max_new_tokens=4, min_new_tokens=4, seed=3)
MIDDLE = SamplingParams(max_new_tokens=40, min_new_tokens=40, seed=3)
LONG = SamplingParams(max_new_tokens=200, min_new_tokens=200, do_sample=True, seed=3)
PATIENCE = 30.0


def publish(sample_store: Path, sample: str, store: Path, model: str) -> None:
    """Put a sample in a model's place as the exporter does, each package at once."""
    fresh = copy_model(sample_store, sample, store / ".fresh", model, linked=True)
    for package in (file.parent for file in fresh.glob(f"*/{MANIFEST_FILE}")):
        target, precision = package.name.split("-")
        writer.publish(package, package_path(store, model, target, precision))
    shutil.rmtree(store / ".fresh")


def test_publishing_again_while_requests_run(sample_store: Path, tmp_path: Path) -> None:
    publish(sample_store, REAGAN, tmp_path, "model")
    with open_engine(sample_store) as engine:
        expected = {
            sample: engine.generate(sample, PROMPT, LONG).generations
            for sample in (REAGAN, JEFFERSON)
        }
    watcher = Watcher()
    with open_engine(tmp_path, store_refresh=0.0, observer=watcher) as engine:
        versions = [engine.describe("model").version]
        before = [send(engine, "model", PROMPT, LONG).stream for _ in range(3)]
        wait_until(lambda: all(stream.token_count for stream in before))
        publish(sample_store, JEFFERSON, tmp_path, "model")
        after = [send(engine, "model", PROMPT, LONG).stream for _ in range(3)]
        versions.append(engine.describe("model").version)
        for streams, version, sample in zip((before, after), versions, expected, strict=True):
            for stream in streams:
                assert tuple(stream.finish().generations) == expected[sample]
                assert stream.events[-1].model_version == version
        wait_until(lambda: watcher.evicted == [("model", "replaced")])
        assert engine.stats().models_resident == 1
        assert_idle(engine)


def test_publishing_again_and_again_under_load_fails_nobody(
    sample_store: Path, tmp_path: Path
) -> None:
    """Clients that never stop, room for two versions, and a new one every few requests."""
    publish(sample_store, REAGAN, tmp_path, "model")
    with open_engine(sample_store) as engine:
        texts = {engine.generate(s, PROMPT, SHORT).generations[0].text: s for s in SAMPLES}
        versions = {s: engine.describe(s).version for s in SAMPLES}
        size = engine.describe(REAGAN).bytes_needed
    with open_engine(tmp_path, store_refresh=0.0, model_cache_bytes=int(2.2 * size)) as engine:
        problems: list[object] = []
        spoke: set[str] = set()
        stop = threading.Event()

        def client() -> None:
            while not stop.is_set():
                try:
                    result = engine.generate("model", PROMPT, SHORT)
                except Exception as error:
                    problems.append(error)
                    return
                sample = texts[result.generations[0].text]
                spoke.add(sample)
                if versions[sample] != result.model_version:
                    problems.append((sample, result))

        clients = [threading.Thread(target=client) for _ in range(4)]
        for thread in clients:
            thread.start()
        for n in range(1, 16):
            publish(sample_store, SAMPLES[n % 3], tmp_path, "model")
            expected = versions[SAMPLES[n % 3]]
            # A request that comes while another one asks the store goes on with what is known.
            speaks = lambda v=expected: engine.generate("model", PROMPT, SHORT).model_version == v  # noqa: E731
            wait_until(speaks)
        stop.set()
        for thread in clients:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        assert not problems, problems[:3]
        assert spoke == set(SAMPLES)
        wait_until(lambda: engine.stats().models_resident <= 1)
        assert_idle(engine)


def test_a_deleted_model_ends_what_it_has_begun(sample_store: Path, tmp_path: Path) -> None:
    publish(sample_store, REAGAN, tmp_path, "model")
    watcher = Watcher()
    with open_engine(tmp_path, store_refresh=0.0, observer=watcher) as engine:
        running = send(engine, "model", PROMPT, LONG).stream
        wait_until(lambda: running.token_count > 0)
        shutil.rmtree(tmp_path / "model")
        with pytest.raises(ModelNotFound):
            engine.generate("model", PROMPT, SHORT)
        assert not running.ended.is_set()
        running.finish()
        wait_until(lambda: watcher.evicted == [("model", "deleted")])
        with pytest.raises(ModelNotFound):
            engine.status("model")
        assert_idle(engine)


@pytest.mark.parametrize("last_asked", ["describe", "prepare"])
def test_a_model_that_is_deleted_before_its_first_load_is_not_found(
    sample_store: Path, tmp_path: Path, last_asked: str
) -> None:
    """However fresh what is known of it: a file that is missing has the store asked again, the
    tokenizer's or, where that is known already, the weights'."""
    publish(sample_store, REAGAN, tmp_path, "model")
    with open_engine(tmp_path, store_refresh=3600.0) as engine:
        if last_asked == "describe":
            engine.describe("model")
        else:
            engine.prepare("model", PROMPT, SHORT)
        shutil.rmtree(tmp_path / "model")
        with pytest.raises(ModelNotFound):
            engine.generate("model", PROMPT, SHORT)
        assert_idle(engine)


def test_steering_real_models(sample_store: Path) -> None:
    watcher = Watcher()
    with open_engine(sample_store, observer=watcher) as engine:
        engine.pin(REAGAN)
        engine.load(JEFFERSON)
        states = {one.id: (one.state, one.pinned) for one in engine.list_models()}
        assert states == {
            REAGAN: ("resident", True),
            JEFFERSON: ("resident", False),
            WASHINGTON: ("cold", False),
        }
        running = send(engine, REAGAN, PROMPT, LONG).stream
        wait_until(lambda: running.token_count > 0)
        gone = engine.start_unload(REAGAN)
        engine.unload(JEFFERSON)
        assert not gone.done()
        running.finish()
        gone.result(PATIENCE)
        assert watcher.evicted == [(JEFFERSON, "unload"), (REAGAN, "unload")]
        assert engine.stats().model_cache_used_bytes == 0
        assert_idle(engine)


def test_alternating_requests_are_not_a_load_each(sample_store: Path) -> None:
    """A B A B ... with room for one, so fast that each has always some that run."""
    watcher = Watcher()
    with open_engine(sample_store) as engine:
        size = engine.describe(REAGAN).bytes_needed
    with open_engine(
        sample_store,
        model_cache_bytes=int(1.5 * size),
        model_max_wait=0.3,
        max_queue=1000,
        observer=watcher,
    ) as engine:
        prepared = {m: engine.prepare(m, PROMPT, MIDDLE) for m in (REAGAN, JEFFERSON)}
        streams: list[Recording] = []
        for n in range(300):
            stream = Recording()
            engine._admit(prepared[(REAGAN, JEFFERSON)[n % 2]], stream, wants_tokens=False)
            streams.append(stream)
            threading.Event().wait(0.004)
        for stream in streams:
            stream.finish()
        assert_idle(engine)
    assert watcher.loads.count(False) == 0
    assert len(watcher.evicted) <= 300 / 10, Counter(watcher.evicted)


# -- far more models than memory -------------------------------------------------------------

MANY, ROOM = 200, 20


@pytest.fixture(scope="module")
def many(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages without weights of their own on the disk. Read-only."""
    store = tmp_path_factory.mktemp("many")
    for n in range(MANY):
        copy_model(sample_store, SAMPLES[n % 3], store, f"user-{n % 7}/model-{n}", linked=True)
    return store


def test_memory_stays_within_the_budgets(many: Path) -> None:
    """Of a process of its own: the most that it ever has, above what it had before the traffic.

    Everything that is resident counts (`VmRSS`, looked at every few milliseconds): pages of
    mapped files too, which the kernel could take back, and memory that is kept for the next model.
    """
    command = [sys.executable, "-m", "tests.integration.random_traffic", many, str(ROOM), "600"]
    paths = os.pathsep.join(str(ROOT / name) for name in ("", "server", "export"))
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["finished"] == 600
    assert seen["loads"] > 3 * ROOM, "models should have come and gone"
    assert not seen["over"], seen
    assert seen["used"] > 0.8 * seen["model_budget"], "the room is there to be used"
    budgets = seen["model_budget"] + seen["kv_budget"]
    assert seen["highest"] - seen["before"] <= 1.15 * budgets, {
        name: value // MIB for name, value in seen.items()
    }


#: Loads, runs and unloads; some of them fail. CYCLES=2000 takes some minutes.
CYCLES = int(os.environ.get("CYCLES", "200"))
WARM_UP = 60


def copies(sample_store: Path, store: Path) -> None:
    """Thirty models, and three that cannot be loaded."""
    for n in range(30):
        copy_model(sample_store, SAMPLES[n % 3], store, f"m{n}", linked=True)
    for n in range(3):
        copy_model(sample_store, REAGAN, store, f"broken{n}")
        for weights in (store / f"broken{n}").rglob(WEIGHTS_FILE):
            data = bytearray(weights.read_bytes())
            data[1000] ^= 1
            weights.write_bytes(data)


def test_loads_runs_and_unloads_leave_nothing(sample_store: Path, tmp_path: Path) -> None:
    copies(sample_store, tmp_path)
    watcher = Watcher()
    generator = random.Random(1)
    sizes, files = [], []
    threads = threading.active_count()
    engine = open_engine(
        tmp_path, observer=watcher, load_retry_min=0.0, load_retry_max=0.0, store_refresh=0.0
    )
    with engine:
        for cycle in range(CYCLES + WARM_UP):
            model = f"m{generator.randrange(30)}"
            if cycle % 2:
                engine.load(model)  # packed, too
            engine.generate(model, PROMPT, SHORT)
            engine.unload(model)
            if cycle % 10 == 0:
                with pytest.raises(ModelLoadFailed):
                    engine.generate(f"broken{generator.randrange(3)}", PROMPT, SHORT)
            if cycle >= WARM_UP:
                sizes.append(resident_bytes())
                files.append(len(os.listdir("/proc/self/fd")))  # noqa: PTH208
        assert_idle(engine)
        assert engine.stats().models_resident == 0
    assert threading.active_count() <= threads
    assert watcher.loads.count(True) == CYCLES + WARM_UP
    assert len(watcher.evicted) == CYCLES + WARM_UP
    quarter = len(sizes) // 4
    growth = sorted(sizes[-quarter:])[quarter // 2] - sorted(sizes[:quarter])[quarter // 2]
    # One model is some 4 MB: a leak of one in a hundred loads would show.
    assert growth < 16 * MIB, [size // MIB for size in sizes[:: quarter // 5]]
    assert max(files[-quarter:]) <= max(files[:quarter]) + 2
