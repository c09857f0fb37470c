"""When a store that failed is asked again."""

from __future__ import annotations

from gpt2serve.engine.stores.reachability import Reachability


def test_a_store_is_left_alone_for_a_pause_and_then_one_tries() -> None:
    reachability = Reachability(5.0)
    assert not reachability.failing
    assert not reachability.take_probe(0.0)
    reachability.failed(10.0)
    assert reachability.failing
    assert not reachability.take_probe(14.9)
    assert reachability.retry_after(10.0) == 5.0
    assert reachability.retry_after(14.9) == 1.0
    assert reachability.take_probe(15.0)
    assert not reachability.take_probe(15.0)
    assert reachability.failing
    # A probe that never comes back does not end the probing.
    assert not reachability.take_probe(19.9)
    assert reachability.take_probe(20.0)
    reachability.failed(22.0)
    assert not reachability.take_probe(26.9)
    reachability.worked()
    assert not reachability.failing
    assert not reachability.take_probe(100.0)
