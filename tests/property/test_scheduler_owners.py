"""The scheduler with requests of several owners, driven at random.

What it promises: an owner's requests join in their order; of owners who wait, who has had the
least comes first; everybody gets in some day; and if there is only one owner, or nobody in
particular, all is as it would be without owners.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gpt2serve.engine.kv_cache import KVShape
from gpt2serve.engine.request import Request
from gpt2serve.engine.scheduler import Decode, Plan, Prefill, PrefillChunk, Scheduler
from gpt2serve.engine.shares import OF_A_BATCH
from tests.engine_fakes import make_request

BATCH, CHUNK, CONTEXT, KV_TOKENS = 16, 8, 64, 600
OWNERS = ("", "a", "b", "c")

requests_strategy = st.builds(
    make_request,
    st.sampled_from([1, 2, 3, 8, 9, 20]).map(lambda length: [1] * length),
    sequences=st.sampled_from([1, 1, 1, 2, 5, 16]),
    max_tokens=st.integers(1, 12),
    owner=st.sampled_from(OWNERS),
)


def make_scheduler(seconds: Callable[[str], float] = lambda _: 0.0) -> Scheduler:
    def fits(shape: KVShape, extra: int) -> bool:
        return shape.slots * shape.length + extra <= KV_TOKENS

    return Scheduler(
        max_batch_size=BATCH,
        prefill_chunk=CHUNK,
        context_length=CONTEXT,
        kv_fits=fits,
        seconds=seconds,
    )


def fits_alone(request: Request) -> bool:
    return len(request.sequences) * 64 <= 512 or request.max_length <= 16


class OwnersMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.spent = dict.fromkeys(OWNERS, 0.0)
        self.scheduler = make_scheduler(self.spent.__getitem__)
        self.added: list[Request] = []
        self.joined: list[Request] = []

    @rule(requests=st.lists(requests_strategy, min_size=1, max_size=4))
    def add(self, requests: list[Request]) -> None:
        for request in filter(fits_alone, requests):
            self.scheduler.add(request)
            self.added.append(request)

    @rule()
    def step(self) -> None:
        scheduler = self.scheduler
        waiting = list(scheduler.waiting)
        had = {owner: self._slots(owner) for owner in OWNERS}
        plan = scheduler.schedule()
        if plan is None:
            assert not scheduler.has_work, "somebody waits although nothing runs"
            return
        match plan:
            case Decode():
                for sequence in scheduler.running:
                    self.spent[sequence.request.owner] += 1 / len(scheduler.running)
            case Prefill(requests):
                self._check_prefill(requests, waiting, had)
                for request in requests:
                    self._join(request)
                    self.spent[request.owner] += 1 / len(requests)
            case PrefillChunk(request):
                self.spent[request.owner] += 1
                if plan.last:
                    self._join(request)

    @precondition(lambda self: self.scheduler.running)
    @rule(data=st.data())
    def finish_some(self, data: st.DataObject) -> None:
        running = self.scheduler.running
        slots = data.draw(st.sets(st.sampled_from(range(len(running))), min_size=1))
        self._finish([running[slot] for slot in slots])

    @precondition(lambda self: self.scheduler.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(list(self.scheduler.waiting)))
        self.scheduler.drop(request)
        self.added.remove(request)

    def _finish(self, sequences: list[Any]) -> None:
        for sequence in sequences:
            sequence.finish_reason = "eos"
        self.scheduler.leave(sequences)

    def _slots(self, owner: str) -> int:
        live = [s.request for s in self.scheduler.running]
        if self.scheduler.long is not None:
            live += [self.scheduler.long] * len(self.scheduler.long.sequences)
        return sum(request.owner == owner for request in live)

    def _join(self, request: Request) -> None:
        self.joined.append(request)
        self.scheduler.join(request)

    def _check_prefill(
        self, requests: list[Request], waiting: list[Request], had: dict[str, int]
    ) -> None:
        first, long = requests[0], self.scheduler.long
        for owner in {r.owner for r in waiting if self.spent[r.owner] < self.spent[first.owner]}:
            # Kept back by its own share, or by a long prompt that waits for another one.
            theirs = next(request for request in waiting if request.owner == owner)
            waits_for_long = theirs.prompt_length > CHUNK and long is not None
            assert (owner and had[owner]) or waits_for_long, "who has had more came first"
        has = {owner: self._slots(owner) for owner in OWNERS}
        for request in requests:
            before = has[request.owner]
            has[request.owner] += len(request.sequences)
            free = BATCH - sum(has.values())
            assert free >= 0
            if request.owner and before:
                assert has[request.owner] <= OF_A_BATCH * free, "no room is left for others"

    @invariant()
    def own_order_is_kept(self) -> None:
        """Short prompts of one owner, and long ones, each join in the order of their coming."""
        self.scheduler.check_integrity()
        for owner in OWNERS:
            for long in (False, True):
                mine = [
                    self.added.index(r)
                    for r in self.joined
                    if r.owner == owner and (r.prompt_length > CHUNK) == long and r in self.added
                ]
                assert mine == sorted(mine)

    @invariant()
    def who_only_waits_makes_no_claim(self) -> None:
        claimants = self.scheduler.claimants
        known = {r.owner for r in self.scheduler.waiting} | self.scheduler.running_owners
        assert self.scheduler.running_owners <= claimants <= known
        assert bool(claimants) == self.scheduler.has_work

    def teardown(self) -> None:
        for turn in range(3000):
            if not self.scheduler.has_work:
                break
            self.step()
            if turn % 3 == 2 and self.scheduler.running:
                self._finish([self.scheduler.running[0]])
        assert not self.scheduler.has_work
        assert set(self.added) <= set(self.joined), "somebody never joined"


def test_owners_share_a_batch() -> None:
    run_state_machine_as_test(
        OwnersMachine,
        settings=settings(
            deadline=None, derandomize=True, max_examples=100, stateful_step_count=30
        ),
    )


def plans(requests: list[Request], *, seconds: Callable[[str], float]) -> list[Any]:
    """All steps until all have ended, as the numbers of the requests in them."""
    scheduler = make_scheduler(seconds)
    numbers = {request: n for n, request in enumerate(requests)}
    coming, made = list(requests), []
    for turn in range(2000):
        if coming and turn % 2 == 0:
            scheduler.add(coming.pop(0))
        if not (scheduler.has_work or coming):
            break
        plan = scheduler.schedule()
        made.append(_named(plan, numbers))
        if isinstance(plan, Prefill):
            for request in plan.requests:
                scheduler.join(request)
        elif isinstance(plan, PrefillChunk) and plan.last:
            scheduler.join(plan.request)
        elif turn % 3 == 2:
            scheduler.leave(scheduler.running[:1])
    assert not scheduler.has_work
    return made


def _named(plan: Plan | None, numbers: dict[Request, int]) -> Any:
    match plan:
        case Prefill(requests):
            return [numbers[request] for request in requests]
        case PrefillChunk(request, start, stop):
            return (numbers[request], start, stop)
    return plan


@settings(deadline=None, derandomize=True, max_examples=80)
@given(requests=st.lists(requests_strategy, max_size=12), spent=st.floats(0, 9))
def test_nobody_in_particular_goes_as_if_there_were_no_owners(
    requests: list[Request], spent: float
) -> None:
    """The line is first come, first served, whatever the only owner has had."""
    fitting = [request for request in requests if fits_alone(request)]
    for request in fitting:
        request.owner = ""
    first = plans(fitting, seconds=lambda _: spent)
    assert first == plans(fitting, seconds=lambda _: 0.0)
    scheduler = make_scheduler(lambda _: spent)
    for request in fitting:
        scheduler.add(request)
    assert scheduler._line() == fitting


@settings(deadline=None, derandomize=True, max_examples=80)
@given(requests=st.lists(requests_strategy, max_size=12), spent=st.floats(0, 9))
def test_the_requests_of_one_owner_stand_in_line_as_they_came(
    requests: list[Request], spent: float
) -> None:
    scheduler = make_scheduler(lambda _: spent)
    for request in requests:
        request.owner = "a"
        scheduler.add(request)
    assert scheduler._line() == requests


def test_one_of_each_owner_in_turn_and_who_has_had_the_least_first() -> None:
    spent = {"a": 5.0, "b": 1.0, "": 3.0}
    scheduler = make_scheduler(spent.__getitem__)
    made = {
        name: make_request([1], owner=name[:-1]) for name in ("a1", "a2", "a3", "b1", "1", "b2")
    }
    for request in made.values():
        scheduler.add(request)
    names = {request: name for name, request in made.items()}
    line = [names[request] for request in scheduler._line()]
    assert line == ["b1", "1", "a1", "b2", "a2", "a3"]


def test_a_flood_leaves_slots_to_whoever_comes_next() -> None:
    scheduler = make_scheduler()
    for _ in range(40):
        scheduler.add(make_request([1], owner="flood"))
    for _ in range(40):
        plan = scheduler.schedule()
        if isinstance(plan, Prefill):
            for request in plan.requests:
                scheduler.join(request)
    assert len(scheduler.running) == 14  # 7 for each one of the two that are free
    assert scheduler.schedule() == Decode()
    other = make_request([1], owner="other")
    scheduler.add(other)
    assert scheduler.schedule() == Prefill([other])


def test_a_request_that_wants_the_whole_batch_gets_it_some_day() -> None:
    spent = {"a": 0.0, "b": 0.0}
    scheduler = make_scheduler(spent.__getitem__)
    small = [make_request([1], owner="b", max_tokens=1) for _ in range(30)]
    large = make_request([1], owner="a", sequences=BATCH, max_tokens=1)
    scheduler.add(small[0])
    scheduler.add(large)
    for request in small[1:]:
        scheduler.add(request)
    for _ in range(200):
        plan = scheduler.schedule()
        if isinstance(plan, Prefill):
            for request in plan.requests:
                scheduler.join(request)
                spent[request.owner] += 1
            if large in plan.requests:
                break
        else:
            scheduler.leave(scheduler.running[:1])
    assert large not in scheduler.waiting
    assert len(scheduler.waiting) > 10, "it waited for all others"


def test_who_waits_for_others_to_end_makes_no_claim_to_steps() -> None:
    scheduler = make_scheduler()
    flood = make_request([1], owner="flood", sequences=BATCH)
    scheduler.add(flood)
    assert scheduler.schedule() == Prefill([flood])
    scheduler.join(flood)
    scheduler.add(make_request([1], owner="other"))
    assert scheduler.claimants == {"flood", "other"}, "it may get in, as far as is known"
    assert [scheduler.schedule() for _ in range(2)] == [Decode()] * 2
    assert scheduler.claimants == {"flood"}
    scheduler.leave(flood.sequences[:1])
    assert scheduler.claimants == {"flood", "other"}
