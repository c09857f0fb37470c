"""What /metrics says after known events."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from gpt2serve.engine.events import Timing, Usage
from gpt2serve.engine.observer import EngineStats, RequestSummary
from gpt2serve.metrics import _GAUGES, Metrics, ServerStats


def summary(error: str | None = None, model: str = "somebody/some-model") -> RequestSummary:
    return RequestSummary(
        model=model,
        error=error,
        finish_reasons=("eos", "length") if error is None else (),
        usage=Usage(prompt_tokens=4, completion_tokens=22),
        timing=Timing(queue_ms=1.0, load_ms=200.0, prefill_ms=9.0, decode_ms=100.0),
    )


def samples(metrics: Metrics) -> dict[str, float]:
    """Value by name and label values: `requests_total ok`."""
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            assert sample.name.startswith(("gpt2serve_", "process_"))
            assert not sample.name.endswith("_created")
            key = " ".join([sample.name.removeprefix("gpt2serve_"), *sample.labels.values()])
            found[key] = sample.value
    return found


def test_finished_request() -> None:
    metrics = Metrics()
    metrics.on_request_finished(summary())
    found = samples(metrics)
    assert found["requests_total ok"] == 1
    assert found["prompt_tokens_total"] == 4
    assert found["generation_tokens_total"] == 22
    assert found["generations_total eos"] == found["generations_total length"] == 1
    assert found["queue_seconds_sum"] == 0.001
    assert found["load_wait_seconds_sum"] == 0.2
    assert abs(found["time_to_first_token_seconds_sum"] - 0.21) < 1e-9
    assert abs(found["request_duration_seconds_sum"] - 0.31) < 1e-9
    # 22 tokens of 2 sequences: 10 decode steps each after the first token.
    assert abs(found["time_per_output_token_seconds_sum"] - 0.01) < 1e-9


def test_failed_request_counts_but_has_no_times() -> None:
    metrics = Metrics()
    metrics.on_request_finished(summary("generation_failed"))
    found = samples(metrics)
    assert found["requests_total generation_failed"] == 1
    assert found["generation_tokens_total"] == 22
    assert found["request_duration_seconds_count"] == 0


def test_engine_events() -> None:
    metrics = Metrics()
    metrics.on_step("prefill", 5, 0.01)
    metrics.on_step("decode", 5, 0.01)
    metrics.on_model_wanted("a", hit=True)
    metrics.on_model_wanted("a", hit=False)
    metrics.on_fetch("a", 0.75, 100, ok=True)
    metrics.on_fetch("a", 9.0, 50, ok=False)
    metrics.on_load("a", 0.5, ok=True)
    metrics.on_load("a", 0.1, ok=False)
    metrics.on_pack("a", 0.25, ok=True)
    metrics.on_pack("a", 9.0, ok=False)
    metrics.on_first_run("a", 0.125)
    metrics.on_evict("a", "lru")
    found = samples(metrics)
    assert found["batch_size_sum prefill"] == found["batch_size_sum decode"] == 5
    assert found["step_seconds_count decode"] == 1
    assert found["model_cache_hits_total"] == found["model_cache_misses_total"] == 1
    assert found["model_loads_total ok"] == found["model_loads_total failed"] == 1
    assert found["model_load_seconds_sum"] == 0.5
    assert found["model_load_phase_seconds_sum fetch"] == 0.75
    assert found["model_load_phase_seconds_sum pack"] == 0.25
    assert found["model_load_phase_seconds_sum first_run"] == 0.125
    assert found["model_packs_total ok"] == found["model_packs_total failed"] == 1
    assert found["model_fetches_total ok"] == found["model_fetches_total failed"] == 1
    assert found["fetched_bytes_total"] == 150
    assert found["model_load_phase_seconds_count map"] == 1
    assert found["model_evictions_total lru"] == 1


def test_snapshot_is_read_at_scrape_time() -> None:
    metrics = Metrics()
    stats = EngineStats(requests_running=1, oldest_load_wait=2.5)
    metrics.watch(lambda: stats)
    assert samples(metrics)["requests_running"] == 1
    stats = EngineStats(requests_running=2)
    found = samples(metrics)
    assert found["requests_running"] == 2
    assert found["oldest_load_wait_seconds"] == 0


def test_every_number_of_the_snapshots_is_shown() -> None:
    fields = EngineStats.__struct_fields__ + ServerStats.__struct_fields__
    assert set(_GAUGES) == set(fields)
    assert len(fields) == len(set(fields))


def test_what_the_engine_does_not_have_is_not_shown() -> None:
    stats = EngineStats()
    metrics = Metrics()
    metrics.watch(lambda: stats)
    assert "disk_cache_used_bytes" not in samples(metrics)
    stats = EngineStats(disk_cache_used_bytes=0, disk_cache_limit_bytes=9)
    assert samples(metrics)["disk_cache_used_bytes"] == 0
    assert samples(metrics)["disk_cache_limit_bytes"] == 9


def test_what_the_server_says_of_itself() -> None:
    server = ServerStats(ready=True)
    metrics = Metrics()
    metrics.watch(EngineStats, lambda: server, version="1.2.3", device="cpu")
    found = samples(metrics)
    assert found["ready"] == 1
    assert {"": "gpt2serve_info", "version": "1.2.3", "device": "cpu"} in series(metrics)
    assert "api_keys_last_reload_successful" not in found
    server = ServerStats(ready=False, api_keys_current=False)
    found = samples(metrics)
    assert found["ready"] == found["api_keys_last_reload_successful"] == 0


def test_the_process_is_shown() -> None:
    found = samples(Metrics())
    assert found["process_resident_memory_bytes"] > 2**20
    assert found["process_open_fds"] > 0
    assert found["process_start_time_seconds"] > 1.7e9
    assert found["process_cpu_seconds_total"] > 0


def test_no_model_name_becomes_a_label() -> None:
    metrics = Metrics()
    metrics.on_request_finished(summary())
    assert b"somebody" not in metrics.render()


def tell_everything(metrics: Metrics, model: str) -> None:
    metrics.on_model_wanted(model, hit=True)
    metrics.on_model_wanted(model, hit=False)
    metrics.on_fetch(model, 0.1, 9, ok=True)
    metrics.on_load(model, 0.1, ok=True)
    metrics.on_load(model, 0.1, ok=False)
    metrics.on_evict(model, "room")
    metrics.on_request_finished(summary(model=model))
    metrics.on_request_finished(summary("generation_failed", model=model))


def series(metrics: Metrics) -> list[dict[str, str]]:
    families = text_string_to_metric_families(metrics.render().decode())
    return [{"": s.name} | s.labels for family in families for s in family.samples]


def test_without_model_labels_there_is_no_such_label() -> None:
    metrics = Metrics()
    before = len(series(metrics))
    for n in range(50):
        tell_everything(metrics, f"model-{n}")
    assert not [labels for labels in series(metrics) if "model" in labels]
    one = Metrics()
    tell_everything(one, "model-0")
    assert before < len(series(metrics)) == len(series(one))


def test_at_most_so_many_models_have_a_label() -> None:
    metrics = Metrics(model_labels=10)
    for n in range(5000):
        tell_everything(metrics, f"org/model-{n}")
    labels = [labels["model"] for labels in series(metrics) if "model" in labels]
    first = [f"org/model-{n}" for n in range(10)]
    assert set(labels) == {*first, "other"}
    # Each has the same few series: no histogram is among them.
    assert {labels.count(model) for model in set(labels)} == {9}


def test_labels_keep_their_meaning() -> None:
    metrics = Metrics(model_labels=2)
    for model in ("a", "b", "c", "c", "c", "a"):
        metrics.on_model_wanted(model, hit=True)
    found = samples(metrics)
    hits = {model: found[f"model_cache_hits_total {model}"] for model in ("a", "b", "other")}
    assert hits == {"a": 2, "b": 1, "other": 3}
    metrics.on_request_finished(summary(model="a"))
    assert samples(metrics)["requests_total ok a"] == 1
    assert samples(metrics)["generation_tokens_total a"] == 22


def test_two_apps_do_not_share_metrics() -> None:
    one, other = Metrics(), Metrics()
    one.on_model_wanted("a", hit=True)
    assert samples(other)["model_cache_hits_total"] == 0
