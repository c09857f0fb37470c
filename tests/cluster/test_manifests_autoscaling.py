"""What the autoscalers ask, answered by promtool: with requests, without, without replicas."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.manifests import K8S, manifests_of, named
from tests.cluster.programs import program

pytestmark = pytest.mark.cluster

LABELS = 'namespace="gpt2serve",pod='


def keda_queries() -> dict[str, str]:
    manifests = manifests_of("overlays/cpu", "components/autoscaling")
    triggers = named(manifests, "ScaledObject", "gpt2serve")["spec"]["triggers"]
    return {trigger["name"]: trigger["metadata"]["query"] for trigger in triggers}


def adapter_queries() -> dict[str, str]:
    """As prometheus-adapter fills its templates in, for a metric of all pods."""
    path = K8S / "components" / "autoscaling" / "hpa" / "adapter-rules.yaml"
    waiting, queue = yaml.safe_load(path.read_text())["rules"]["custom"]

    def filled(rule: dict[str, Any], series: str) -> str:
        text: str = rule["metricsQuery"]
        text = text.replace("<<.Series>>", series).replace("<<.GroupBy>>", "pod")
        return text.replace("<<.LabelMatchers>>", 'namespace="gpt2serve"')

    return {
        "waiting": filled(waiting, "gpt2serve_requests_waiting"),
        "queue-time": filled(queue, "gpt2serve_queue_seconds_bucket"),
    }


def gauges(name: str, **values: int) -> list[dict[str, str]]:
    return [
        {
            "series": f"gpt2serve_{name}{{{LABELS}{pod!r}}}".replace("'", '"'),
            "values": f"{value}x40",
        }
        for pod, value in values.items()
    ]


def waits(pod: str, *each: tuple[str, int]) -> list[dict[str, str]]:
    """A histogram: each bucket grows by so many every 15 seconds."""
    return [
        {
            "series": f'gpt2serve_queue_seconds_bucket{{{LABELS}"{pod}",le="{bound}"}}',
            "values": f"0+{count}x40",
        }
        for bound, count in each
    ]


def asked(
    folder: Path, query: str, series: list[dict[str, str]], *samples: tuple[str, float]
) -> bool:
    """Whether ten minutes later the query answers just that: labels and value of each sample."""
    test = {
        "interval": "15s",
        "input_series": series,
        "promql_expr_test": [
            {
                "expr": query,
                "eval_time": "10m",
                "exp_samples": [{"labels": labels, "value": value} for labels, value in samples],
            }
        ],
    }
    file = folder / "test.yaml"
    file.write_text(yaml.safe_dump({"evaluation_interval": "15s", "tests": [test]}))
    done = subprocess.run(
        [program("promtool"), "test", "rules", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode == 0


def test_all_questions_are_put() -> None:
    assert keda_queries().keys() == {"waiting", "queue-time", "running"}


QUIET = [("0.5", 0), ("1", 0), ("2.5", 0), ("+Inf", 0)]


@pytest.mark.parametrize("name", ["waiting", "running"])
def test_requests_of_all_replicas_are_added_up(tmp_path: Path, name: str) -> None:
    series = gauges(f"requests_{name}", a=3, b=5)
    assert asked(tmp_path, keda_queries()[name], series, ("{}", 8))
    assert not asked(tmp_path, keda_queries()[name], series, ("{}", 7))


def test_the_time_in_the_queue_is_that_of_all_replicas_together(tmp_path: Path) -> None:
    """Of 20 a quarter of a minute, 18 within half a second and 2 between 1 and 2.5."""
    series = waits("a", ("0.5", 10), ("1", 10), ("2.5", 10), ("+Inf", 10))
    series += waits("b", ("0.5", 8), ("1", 8), ("2.5", 10), ("+Inf", 10))
    assert asked(tmp_path, keda_queries()["queue-time"], series, ("{}", 1.75))


def test_no_requests_are_no_waiting(tmp_path: Path) -> None:
    """And not NaN, of which KEDA makes a large negative number, or an error."""
    series = waits("a", *QUIET) + gauges("requests_waiting", a=0)
    assert asked(tmp_path, keda_queries()["queue-time"], series, ("{}", 0))


@pytest.mark.parametrize("name", ["waiting", "queue-time", "running"])
def test_nobody_to_ask_is_no_answer(tmp_path: Path, name: str) -> None:
    """Not 0: that would take replicas away because Prometheus does not see them."""
    other = gauges("requests_waiting", a=3)[0]
    other["series"] = other["series"].replace('namespace="gpt2serve"', 'namespace="other"')
    assert asked(tmp_path, keda_queries()[name], [other])


def test_the_adapter_shows_each_replica(tmp_path: Path) -> None:
    series = gauges("requests_waiting", a=3, b=5)
    samples = (('{pod="a"}', 3), ('{pod="b"}', 5))
    assert asked(tmp_path, adapter_queries()["waiting"], series, *samples)

    series = waits("a", *QUIET) + waits("b", ("0.5", 0), ("1", 10), ("2.5", 10), ("+Inf", 10))
    samples = (('{pod="a"}', 0), ('{pod="b"}', 0.975))
    assert asked(tmp_path, adapter_queries()["queue-time"], series, *samples)
