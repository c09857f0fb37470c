"""What goes wrong ends the requests that it concerns, once, and nothing else."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt2serve import Engine, SamplingParams
from gpt2serve.engine.kv_cache import KVShape
from gpt2serve.engine.memory import HostMemory
from gpt2serve.engine.messages import Call
from gpt2serve.engine.runner import Runner
from gpt2serve.engine.stream import Delivery
from gpt2serve.errors import (
    CorruptPackage,
    DeviceUnavailable,
    EngineClosed,
    ModelLoadFailed,
    RequestAborted,
    SettingsError,
    StepFailed,
    UnknownRevision,
)
from gpt2serve.package import MANIFEST_FILE, WEIGHTS_FILE, package_path
from tests.engine_driver import (
    JEFFERSON,
    REAGAN,
    Arrival,
    Recording,
    Script,
    Sent,
    Watcher,
    assert_idle,
    cancel,
    copy_model,
    kv_bytes,
    open_engine,
    send,
)
from tests.waiting import wait_until

PARAMS = SamplingParams(max_new_tokens=12, min_new_tokens=12, seed=3)
LONG = SamplingParams(max_new_tokens=200, min_new_tokens=200, seed=3)


def fail_once(
    monkeypatch: pytest.MonkeyPatch, method: str, model: str, error: Exception, after: int = 0
) -> list[int]:
    """Let `Runner.<method>` of one model raise at its call number `after`; returns the calls."""
    original: Callable[..., Any] = getattr(Runner, method)
    calls: list[int] = []

    def replaced(self: Runner, *arguments: Any) -> Any:
        if self.manifest.id == model:
            calls.append(len(calls))
            if len(calls) == after + 1:
                raise error
        return original(self, *arguments)

    monkeypatch.setattr(Runner, method, replaced)
    return calls


@pytest.mark.parametrize("method", ["decode", "prefill"])
def test_a_failing_step_ends_its_own_requests_only(
    sample_store: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    with open_engine(sample_store) as engine:
        expected = {m: engine.generate(m, "We", PARAMS).generations for m in (REAGAN, JEFFERSON)}
        fail_once(monkeypatch, method, REAGAN, RuntimeError("injected"))
        sent = {m: send(engine, m, "We", PARAMS).stream for m in (REAGAN, JEFFERSON)}
        failed = sent[REAGAN].wait()
        assert isinstance(failed.error, StepFailed)
        assert "injected" in str(failed.error)
        assert failed.terminals == 1
        assert sent[JEFFERSON].finish().generations == list(expected[JEFFERSON])
        for model, generations in expected.items():
            assert engine.generate(model, "We", PARAMS).generations == generations
        assert_idle(engine)


def test_a_failing_prefill_spares_those_that_run_already(
    sample_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_engine(sample_store) as engine:
        expected = engine.generate(REAGAN, "We", LONG).generations
        running = send(engine, REAGAN, "We", LONG)
        wait_until(lambda: running.stream.token_count > 2)
        fail_once(monkeypatch, "prefill", REAGAN, RuntimeError("injected"))
        late = send(engine, REAGAN, "They", PARAMS).stream.wait()
        assert isinstance(late.error, StepFailed)
        assert running.stream.finish().generations == list(expected)
        assert_idle(engine)


def test_no_memory_for_a_larger_batch_ends_those_that_join(
    sample_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two join at once and the batch cannot grow: they fail, what runs goes on."""
    with open_engine(sample_store) as engine:
        expected = engine.generate(REAGAN, "We", LONG).generations
        running = send(engine, REAGAN, "We", LONG)
        wait_until(lambda: running.stream.token_count > 2)
        # The first new batch is that of the prompts, the second one is the larger batch.
        fail_once(monkeypatch, "new_batch", REAGAN, MemoryError("injected"), after=1)
        joining: list[Sent] = []

        def both() -> None:
            joining.extend(send(engine, REAGAN, prompt, PARAMS) for prompt in ("They", "You"))

        engine._core.inbox.put(Call(both))
        wait_until(lambda: len(joining) == 2)
        for one in joining:
            assert isinstance(one.stream.wait().error, StepFailed)
        assert running.stream.finish().generations == list(expected)
        assert engine.generate(REAGAN, "We", LONG).generations == expected
        assert_idle(engine)


def test_no_memory_for_a_smaller_batch_is_no_failure(
    sample_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Runner.new_batch
    refused: list[KVShape] = []

    def new_batch(self: Runner, shape: KVShape, memory: HostMemory) -> Any:
        if shape == (1, 256):
            refused.append(shape)
            raise OSError("injected")
        return original(self, shape, memory)

    with open_engine(sample_store) as engine:
        engine.load(REAGAN)
        expected = engine.generate(REAGAN, "We", LONG).generations
        monkeypatch.setattr(Runner, "new_batch", new_batch)
        sent: list[Sent] = []

        def all_at_once() -> None:
            sent.extend(send(engine, REAGAN, "We", PARAMS) for _ in range(8))
            sent.append(send(engine, REAGAN, "We", LONG))

        engine._core.inbox.put(Call(all_at_once))
        wait_until(lambda: len(sent) == 9)
        assert sent[-1].stream.finish().generations == list(expected)
        assert refused, "the batch should have become smaller"
        assert_idle(engine)


def test_short_prompts_beside_a_long_one_keep_to_the_kv_budget(sample_store: Path) -> None:
    """What was let in has room: beside a long prompt's own tokens only few short ones fit."""
    long_prompt = "peace and commerce " * 40
    # Alone the long one fits; one more slot fits only once its prompt has been read.
    options = {"prefill_chunk": 16, "max_batch_size": 4, "kv_cache_bytes": kv_bytes(2, 128, 40)}
    with open_engine(sample_store, **options) as engine:
        engine.load(REAGAN)
        sent: list[Sent] = []

        def both() -> None:
            sent.append(send(engine, REAGAN, long_prompt[:300], PARAMS))
            sent.append(send(engine, REAGAN, "We", SamplingParams(max_new_tokens=80, seed=1)))

        engine._core.inbox.put(Call(both))
        wait_until(lambda: len(sent) == 2)
        assert 16 < sent[0].request.prompt_length < 116
        for one in sent:
            one.stream.finish()
        assert_idle(engine)


def test_exactly_one_end_under_random_failures_and_cancels(
    sample_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = random.Random(11)
    original = {name: getattr(Runner, name) for name in ("decode", "prefill", "new_batch")}

    def unreliable(name: str) -> Callable[..., Any]:
        def call(self: Runner, *arguments: Any) -> Any:
            if generator.random() < 0.06:
                raise OSError("injected") if name == "new_batch" else RuntimeError("injected")
            return original[name](self, *arguments)

        return call

    watcher = Watcher()
    options = {"max_batch_size": 4, "prefill_chunk": 8, "kv_cache_bytes": kv_bytes(4, 64, 64)}
    with open_engine(sample_store, observer=watcher, **options) as engine:
        for model in (REAGAN, JEFFERSON):
            engine.load(model)
        for name in original:
            monkeypatch.setattr(Runner, name, unreliable(name))
        prompts = ["We", "The people of our union " * 3, "Peace"]
        prepared = [
            engine.prepare(
                (REAGAN, JEFFERSON)[n % 2],
                prompts[n % 3],
                SamplingParams(
                    max_new_tokens=1 + n % 7, num_return_sequences=1 + n % 3, do_sample=True
                ),
            )
            for n in range(12)
        ]
        arrivals = [
            Arrival(generator.randrange(12), generator.randrange(200), generator.choice([None, 3]))
            for _ in range(120)
        ]
        sent = Script(watcher, engine, prepared, arrivals).play()
        ends = [one.stream.terminals for _, one in sent]
        assert ends == [1] * 120
        kinds = {type(one.stream.error) for _, one in sent}
        assert kinds == {type(None), StepFailed, RequestAborted}
        assert len(watcher.finished) == 120
        assert [s.error for s in watcher.finished].count(None) == sum(
            one.stream.error is None for _, one in sent
        )
        assert_idle(engine)


# -- packages that cannot be loaded ----------------------------------------------------------


def truncate(package: Path) -> None:
    with (package / WEIGHTS_FILE).open("r+b") as file:
        file.truncate(1000)


def alter(package: Path) -> None:
    with (package / WEIGHTS_FILE).open("r+b") as file:
        file.seek(5000)
        byte = file.read(1)[0]
        file.seek(5000)
        file.write(bytes([byte ^ 1]))


def make_newer(package: Path) -> None:
    manifest = json.loads((package / MANIFEST_FILE).read_text())
    manifest["format_revision"] += 1
    (package / MANIFEST_FILE).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("harm", "error", "reason"),
    [
        (truncate, CorruptPackage, "has 1000 bytes"),
        (alter, ModelLoadFailed, "sha256"),
        (make_newer, UnknownRevision, "package format 2"),
    ],
)
def test_a_broken_package_is_refused_and_others_are_served(
    sample_store: Path,
    tmp_path: Path,
    harm: Callable[[Path], None],
    error: type[Exception],
    reason: str,
) -> None:
    copy_model(sample_store, REAGAN, tmp_path)
    copy_model(sample_store, JEFFERSON, tmp_path)
    harm(package_path(tmp_path, REAGAN, "cpu", "int8"))
    with open_engine(tmp_path) as engine:
        with pytest.raises(error, match=reason):
            engine.generate(REAGAN, "We", PARAMS)
        engine.generate(JEFFERSON, "We", PARAMS)
        with pytest.raises(error, match=reason):
            engine.load(REAGAN)
        assert_idle(engine)


def test_a_failed_load_is_remembered_for_a_while_and_then_tried_again(
    sample_store: Path, tmp_path: Path
) -> None:
    copy_model(sample_store, REAGAN, tmp_path)
    package = package_path(tmp_path, REAGAN, "cpu", "int8")
    watcher = Watcher()
    now = 1000.0
    with open_engine(
        tmp_path, observer=watcher, clock=lambda: now, load_retry_min=2.0, load_retry_max=5.0
    ) as engine:
        alter(package)
        # After each failure the wait doubles, up to the limit.
        for attempt, wait in enumerate((2.0, 4.0, 5.0, 5.0), start=1):
            _expect_failure(engine)
            assert len(watcher.loads) == attempt
            now += wait - 0.1
            error = _expect_failure(engine)
            assert len(watcher.loads) == attempt, "tried again too early"
            assert error.retry_after == pytest.approx(0.1)
            (status,) = engine.list_models()
            assert status.state == "failed"
            now += 0.2
        alter(package)  # the same bit again: repaired
        engine.generate(REAGAN, "We", PARAMS)
        assert watcher.loads == [False] * 4 + [True]
        assert_idle(engine)


def _expect_failure(engine: Engine) -> ModelLoadFailed:
    with pytest.raises(ModelLoadFailed) as caught:
        engine.generate(REAGAN, "We", PARAMS)
    return caught.value


def test_a_success_forgets_the_failures_before_it(sample_store: Path, tmp_path: Path) -> None:
    copy_model(sample_store, REAGAN, tmp_path)
    package = package_path(tmp_path, REAGAN, "cpu", "int8")
    now = 1000.0
    with open_engine(tmp_path, clock=lambda: now, load_retry_min=2.0) as engine:
        alter(package)
        for _ in range(3):
            _expect_failure(engine)
            now += 60.0
        alter(package)
        engine.generate(REAGAN, "We", PARAMS)
        assert not engine._core.models.cache._failures


# -- the engine itself -----------------------------------------------------------------------


class Injected(BaseException):
    """Nothing that the engine could have been written to expect."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_death_of_the_engine_thread_leaves_nobody_waiting(sample_store: Path) -> None:
    def die() -> None:
        raise Injected

    with open_engine(sample_store) as engine:
        engine.load(REAGAN)
        sent = [send(engine, REAGAN, "We", LONG), send(engine, JEFFERSON, "We", LONG)]
        wait_until(lambda: sent[0].stream.token_count > 2)
        engine._core.inbox.put(Call(die))
        for one in sent:
            assert isinstance(one.stream.wait().error, EngineClosed)
            assert one.stream.terminals == 1
        wait_until(lambda: not engine._core._thread.is_alive())
        assert not _ping(engine)
        assert not engine.takes_requests
        wait_until(lambda: engine.stats().unresponsive > 0.1)
        with pytest.raises(EngineClosed):
            send(engine, REAGAN, "We", PARAMS).stream.wait(timeout=5)
        with pytest.raises(EngineClosed):
            _in_time(lambda: engine.load(REAGAN))


def _ping(engine: Engine) -> bool:
    return asyncio.run(engine.ping(0.3))


def _in_time(function: Callable[[], object]) -> None:
    """Run in a thread, so that waiting for ever is a failure and not a hang."""
    problems: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive(), "waits for ever"
    for problem in problems:
        raise problem


def test_closing_with_a_model_that_waits_for_room(
    sample_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Aborting what runs makes room for what waits, at a moment when nothing may begin."""
    monkeypatch.setattr("gpt2serve.engine.packer.counted", lambda _, predicted: predicted)
    with open_engine(sample_store) as engine:
        needed = engine.describe(REAGAN).bytes_needed
    engine = open_engine(sample_store, model_cache_bytes=int(1.3 * needed), model_max_wait=0.0)
    engine.start()
    running = [send(engine, REAGAN, "We", LONG) for _ in range(3)]
    wait_until(lambda: running[2].stream.token_count > 0)
    waiting = send(engine, JEFFERSON, "We", PARAMS)
    held_back = send(engine, REAGAN, "We", PARAMS)
    wait_until(lambda: engine.stats().requests_waiting == 2)
    _in_time(engine.close)
    for one in (*running, waiting, held_back):
        assert isinstance(one.stream.wait(5).error, EngineClosed)
        assert one.stream.terminals == 1


def test_a_model_larger_than_predicted_does_not_harm(
    sample_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predicted to fit, measured too large: it serves who waits, then it has to go."""
    monkeypatch.setattr("gpt2serve.engine.packer.counted", lambda _, predicted: 2 * predicted)
    with open_engine(sample_store) as engine:
        needed = engine.describe(REAGAN).bytes_needed
    with open_engine(sample_store, model_cache_bytes=int(1.3 * needed)) as engine:
        for model in (REAGAN, JEFFERSON, REAGAN):
            stream = send(engine, model, "We", PARAMS).stream.wait()
            assert stream.error is None
        assert_idle(engine)
        assert _ping(engine)


def test_close_aborts_what_runs_and_what_waits(sample_store: Path) -> None:
    engine = open_engine(sample_store, max_batch_size=1)
    engine.start()
    sent = [send(engine, model, "We", LONG) for model in (REAGAN, REAGAN, JEFFERSON)]
    wait_until(lambda: sent[0].stream.token_count > 0)
    engine.close()
    for one in sent:
        assert isinstance(one.stream.wait(1).error, EngineClosed)
        assert one.stream.terminals == 1
    assert engine._gate.admitted == 0
    with pytest.raises(EngineClosed):
        engine.generate(REAGAN, "We")
    engine.close()


def test_load_on_a_closed_engine_says_so(sample_store: Path) -> None:
    engine = open_engine(sample_store)
    engine.start()
    engine.close()
    with pytest.raises(EngineClosed):
        _in_time(lambda: engine.load(REAGAN))


def test_cancel_after_the_end_and_twice_is_harmless(sample_store: Path) -> None:
    with open_engine(sample_store) as engine:
        one = send(engine, REAGAN, "We", LONG)
        wait_until(lambda: one.stream.token_count > 0)
        for _ in range(3):
            cancel(engine, one)
        assert isinstance(one.stream.wait().error, RequestAborted)
        done = send(engine, REAGAN, "We", PARAMS)
        done.stream.finish()
        cancel(engine, done)
        assert_idle(engine)
        assert (one.stream.terminals, done.stream.terminals) == (1, 1)


def test_recordings_count_every_end() -> None:
    """The counter that the tests above rely on is not stuck at one."""
    stream = Recording()
    for _ in range(2):
        stream.receive(Delivery(error=RequestAborted("twice")))
    assert stream.terminals == 2


# -- devices -----------------------------------------------------------------------------------


def test_cuda_without_a_gpu_is_an_error(sample_store: Path) -> None:
    with pytest.raises(DeviceUnavailable, match="CUDA"):
        open_engine(sample_store, device="cuda")


def test_cuda_provider_that_falls_back_to_the_cpu_is_an_error(
    sample_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime's own behaviour where the driver is missing: it goes on with the CPU."""
    import onnxruntime as ort

    from gpt2serve.package import read_manifest

    package = package_path(sample_store, REAGAN, "cpu", "int8")
    original = ort.InferenceSession

    def fallen_back(path: Path, options: Any, providers: list[str]) -> Any:
        assert providers == ["CUDAExecutionProvider"]
        return original(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr("gpt2serve.engine.sessions.Session", fallen_back)
    with pytest.raises(DeviceUnavailable, match="CUDA"):
        Runner.load(package, read_manifest(package), device="cuda", threads=2)


def test_a_precision_that_the_device_has_not_is_an_error(sample_store: Path) -> None:
    with pytest.raises(SettingsError, match="fp16"):
        open_engine(sample_store, precision="fp16")
