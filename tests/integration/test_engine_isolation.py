"""Never a token from another model: models whose vocabularies do not overlap."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from gpt2serve import Engine, SamplingParams
from gpt2serve.package import MANIFEST_FILE, package_path
from tests.engine_driver import (
    MIB,
    Watcher,
    assert_idle,
    band_checkpoint,
    copy_model,
    export,
    open_engine,
    send,
    send_prepared,
)

#: What each model can say: token ids, none of them in common.
BANDS = {
    "low": range(300, 800),
    "middle": range(1500, 2000),
    "high": range(3300, 3800),
    "low-again": range(2200, 2700),
}
MODELS = ("low", "middle", "high")


@pytest.fixture(scope="module")
def band_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only."""
    folder = tmp_path_factory.mktemp("bands")
    checkpoints = [band_checkpoint(folder / "in" / name, band) for name, band in BANDS.items()]
    for precision in ("int8", "fp32"):
        export(folder / "store", checkpoints, precision)
    return folder / "store"


def room_for(store: Path, models: float, precision: str) -> int:
    with open_engine(store, precision=precision) as engine:
        return int(engine.describe("low").bytes_needed * models)


def make_requests(count: int) -> list[tuple[str, str, SamplingParams]]:
    generator = random.Random(5)
    return [
        (
            generator.choice(MODELS),
            generator.choice(["The people", "War", "We shall have peace and commerce", ""]),
            SamplingParams(
                num_return_sequences=generator.choice([1, 2, 3]),
                max_new_tokens=generator.randint(1, 6),
                do_sample=True,
                top_k=generator.choice([0, 5, 50]),
                seed=generator.randrange(1000),
            ),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    ("precision", "room", "count"), [("int8", 1.2, 200), ("int8", 2.2, 100), ("fp32", 1.2, 60)]
)
def test_hundreds_of_interleaved_requests(
    band_store: Path, precision: str, room: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a load measures is not exact for models this small; here the room is what matters.
    monkeypatch.setattr("gpt2serve.engine.packer.counted", lambda _, predicted: predicted)
    requests = make_requests(count)
    with open_engine(band_store, precision=precision) as roomy:
        alone = {}
        for request in requests:
            if request not in alone:
                sent = send(roomy, *request)
                alone[request] = sent.stream.finish().outcome(sent.request.params.sequences)
    watcher = Watcher()
    with open_engine(
        band_store,
        precision=precision,
        observer=watcher,
        model_cache_bytes=room_for(band_store, room, precision),
        max_batch_size=8,
        max_queue=1000,
        model_max_wait=0.3,
    ) as engine:
        sent = []
        for n, request in enumerate(requests):
            sent.append((request, send(engine, *request)))
            if n % 20 == 19:
                # In waves: models must come back after they were evicted.
                sent[n - 10][1].stream.wait()
        for request, one in sent:
            one.stream.finish()
            band = BANDS[request[0]]
            for index in range(one.request.params.sequences):
                ids = [token.id for token in one.stream.tokens(index)]
                assert ids
                assert all(token in band for token in ids), (request[0], ids)
            assert one.stream.outcome(one.request.params.sequences) == alone[request]
        assert_idle(engine)
    assert len(watcher.evicted) >= 3, "models should have come and gone"


def test_a_package_published_anew_is_another_model(band_store: Path, tmp_path: Path) -> None:
    """Requests that were accepted before go on with the old weights, later ones get the new."""
    copy_model(band_store, "low", tmp_path, "model")
    params = SamplingParams(max_new_tokens=100, do_sample=True, seed=1)
    with open_engine(tmp_path, precision="int8", store_refresh=0.0) as engine:
        before = send(engine, "model", "We", params)
        while not before.stream.token_count:
            pass
        replace_model(band_store, "low-again", tmp_path, "model")
        after = send(engine, "model", "We", params)
        during = [token.id for token in after.stream.finish().tokens(0)]
        old = [token.id for token in before.stream.finish().tokens(0)]
    assert len(old) == len(during) == 100
    assert all(token in BANDS["low"] for token in old)
    assert all(token in BANDS["low-again"] for token in during)


def test_new_weights_never_answer_under_the_old_version(
    band_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prepared for one version, evicted, published anew, then loaded: the new one answers."""
    monkeypatch.setattr("gpt2serve.engine.packer.counted", lambda _, predicted: predicted)
    copy_model(band_store, "low", tmp_path, "model")
    copy_model(band_store, "high", tmp_path, "other")
    params = SamplingParams(max_new_tokens=3, do_sample=True, seed=1)
    budget = room_for(band_store, 1.2, "int8")
    options = {"model_cache_bytes": budget, "store_refresh": 0.0}
    with open_engine(tmp_path, precision="int8", **options) as engine:
        first = engine.generate("model", "We", params)
        prepared = engine.prepare("model", "We", params)
        engine.generate("other", "We", params)  # evicts "model"
        replace_model(band_store, "low-again", tmp_path, "model")
        stream = send_prepared(engine, prepared).stream.finish()
        assert all(token.id in BANDS["low-again"] for token in stream.tokens(0))
        assert stream.events[-1].model_version == engine.describe("model").version
        assert stream.events[-1].model_version != first.model_version
        assert_idle(engine)


def replace_model(store: Path, model: str, to_store: Path, as_model: str) -> None:
    """Publish another package under the same id; each file is a new one, as after a rename."""
    fresh = copy_model(store, model, to_store / "fresh", as_model)
    for package in (file.parent for file in fresh.glob(f"*/{MANIFEST_FILE}")):
        target, precision = package.name.split("-")
        old = package_path(to_store, as_model, target, precision)
        old.rename(to_store / f"old-{package.name}")
        package.rename(old)
    shutil.rmtree(to_store / "fresh")


def test_bands_are_what_they_say(band_store: Path) -> None:
    """The greedy token of each band is in it too, and texts of two bands differ."""
    with open_engine(band_store, model_cache_bytes=64 * MIB) as engine:
        greedy = SamplingParams(max_new_tokens=8, do_sample=False)
        texts = {model: _greedy(engine, model, greedy) for model in BANDS}
    assert len(set(texts.values())) == len(BANDS)


def _greedy(engine: Engine, model: str, params: SamplingParams) -> str:
    (generation,) = engine.generate(model, "The", params).generations
    return generation.text
