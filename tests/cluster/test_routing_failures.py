"""Replicas that die and that are replaced, under load. Real Envoy, real servers."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from benchmarks.cluster.fleet import DRAIN_DELAY, Fleet
from tests.cluster.conftest import MODELS
from tests.cluster.programs import program
from tests.cluster.traffic import Traffic
from tests.e2e.server_support import eventually

pytestmark = pytest.mark.cluster

#: Between the end of a process and the moment when the router has heard that its connections are
#: closed, on a busy machine.
MOMENT = 0.2


@pytest.fixture(autouse=True)
def needs_envoy() -> None:
    program("envoy")


def test_a_replica_that_is_killed_takes_only_its_own_requests_along(
    many_models: Path, tmp_path: Path
) -> None:
    with Fleet(many_models, tmp_path, 3) as fleet:
        with Traffic(fleet.router.url, MODELS, tokens=100) as traffic:
            eventually(lambda: len(traffic.sent) >= 60, 60)
            victim = max(fleet.replicas, key=lambda one: running(fleet, one))
            died = fleet.kill(victim)
            eventually(lambda: sum(one.begin > died for one in traffic.sent) >= 60, 60)
            back = time.monotonic()
            fleet.settled()
        served = fleet.router.replica_of(*(one.id for one in traffic.sent))
        replicas = {one.id: replica for one, replica in zip(traffic.sent, served, strict=True)}
        for one in traffic.failed:
            assert replicas[one.id] == victim, one
            assert one.begin < died + MOMENT, one
            assert one.end > died - MOMENT, one
        assert not [one for one in traffic.sent if replicas[one.id] == victim and one.begin > back]
        # What a replica had begun is not sent to another one.
        again = fleet.router.sent_again()
        begun = {one.id for one in traffic.sent if one.begin < died - MOMENT}
        assert again.isdisjoint(begun)
        # Its models are answered by others from the first request on.
        home = {one.model for one in traffic.sent if replicas[one.id] == victim}
        orphans = [one for one in traffic.sent if one.begin > died + MOMENT and one.model in home]
        first = min(orphans, key=lambda one: one.end)
        print(
            f"{len(traffic.sent)} requests, {len(traffic.failed)} in flight on the replica that "
            f"died failed; the first for one of its models was answered {first.end - died:.2f} s "
            "after its death"
        )
        assert first.end - died < 10
        traffic.assert_texts_are_the_same_everywhere()


def running(fleet: Fleet, address: str) -> float:
    return fleet.replicas[address].metric("requests_running")


def wait_until_busy(fleet: Fleet, address: str) -> None:
    eventually(lambda: running(fleet, address) > 0, 60)


def test_replicas_are_replaced_without_a_failed_request(many_models: Path, tmp_path: Path) -> None:
    """As a rolling update does it: first there is one more, then the old one goes."""
    with Fleet(many_models, tmp_path, 3) as fleet:
        with Traffic(fleet.router.url, MODELS, tokens=100) as traffic:
            for address in list(fleet.replicas):
                wait_until_busy(fleet, address)
                fleet.start(1)
                before = len(traffic.sent)
                assert fleet.leave(address) == 0
                assert len(traffic.sent) > before, "there was load meanwhile"
            fleet.settled()
        assert len(fleet.replicas) == 3
        assert_nothing_failed(traffic)


@pytest.mark.parametrize("drain_delay", [DRAIN_DELAY, 0])
def test_replicas_are_restarted_in_place_without_a_failed_request(
    many_models: Path, tmp_path: Path, drain_delay: int
) -> None:
    """As without a spare: the one that goes is told of until it has gone, and comes back.

    If it does not wait until the router has noticed, it refuses requests, which go to others then.
    """
    with Fleet(many_models, tmp_path, 3, "--drain-delay", str(drain_delay)) as fleet:
        with Traffic(fleet.router.url, MODELS, tokens=100) as traffic:
            for address in list(fleet.replicas):
                wait_until_busy(fleet, address)
                assert fleet.restart(address) == 0
                fleet.settled()
        assert_nothing_failed(traffic)


def assert_nothing_failed(traffic: Traffic) -> None:
    streams = sum(one.stream for one in traffic.sent)
    print(f"{len(traffic.sent)} requests, {streams} of them streamed, {len(traffic.failed)} failed")
    assert traffic.failed == []
    assert streams >= 20
    assert len(traffic.sent) - streams >= 20
    traffic.assert_texts_are_the_same_everywhere()


def test_a_replica_that_leaves_finishes_its_streams_and_gets_no_new_ones(
    many_models: Path, tmp_path: Path
) -> None:
    with Fleet(many_models, tmp_path, 2) as fleet:
        leaving, _ = fleet.replicas
        with Traffic(fleet.router.url, MODELS, tokens=200) as traffic:
            wait_until_busy(fleet, leaving)
            told = time.monotonic()
            assert fleet.leave(leaving) == 0
            left = time.monotonic()
        served = fleet.router.replica_of(*(one.id for one in traffic.sent))
        mine = [one for one, by in zip(traffic.sent, served, strict=True) if by == leaving]
        assert traffic.failed == []
        assert [one for one in mine if one.begin < told < one.end], "streams ran on"
        # It took requests until the router had noticed, which is sooner than it waited for.
        assert max(one.begin for one in mine) < told + DRAIN_DELAY
        assert max(one.end for one in mine) <= left + MOMENT
