"""When a worker claims its next job, and who is at the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tenkaigen_worker.engine.base import Step
from tenkaigen_worker.worker.in_hand import JobInHand
from tenkaigen_worker.worker.turns import PUBLISHING_AT_MOST, SLOW_AFTER_SECONDS, EngineBusy, EngineTurns
from tests.unit.examples import Clock, claimed


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def claim(clock: Clock) -> Callable[[], JobInHand]:
    def make() -> JobInHand:
        return JobInHand(claimed(), on_change=lambda: None, clock=clock)

    return make


async def enter(turns: EngineTurns, hand: JobInHand, leave: asyncio.Event, entered: asyncio.Event) -> None:
    async with turns.at_engine(hand):
        hand.enter("generating")
        entered.set()
        await leave.wait()


async def at_engine(turns: EngineTurns, hand: JobInHand) -> tuple[asyncio.Task[None], asyncio.Event]:
    """Put ``hand`` at the engine; set the event to end its turn."""
    leave, entered = asyncio.Event(), asyncio.Event()
    turns.expect(hand)
    task = asyncio.create_task(enter(turns, hand, leave, entered))
    await entered.wait()
    return task, leave


async def test_claims_when_the_engine_is_free_and_only_one_job_at_a_time(claim: Callable[[], JobInHand]) -> None:
    turns = EngineTurns(3.0, on_gap=lambda seconds: None)
    assert turns.may_claim()

    hand = claim()
    turns.expect(hand)
    assert not turns.may_claim()

    turns.leave(hand)
    assert turns.may_claim()


async def test_a_job_that_is_slow_to_prepare_does_not_keep_the_engine_idle(
    claim: Callable[[], JobInHand], clock: Clock
) -> None:
    turns = EngineTurns(3.0, on_gap=lambda seconds: None)
    slow = claim()
    turns.expect(slow)
    clock.now += SLOW_AFTER_SECONDS
    assert turns.may_claim()

    quick = claim()
    turns.expect(quick)
    quick.enter("waiting")
    clock.now += SLOW_AFTER_SECONDS
    assert not turns.may_claim(), "this one is ready for the engine"

    turns.leave(quick)
    turns.expect(claim())
    clock.now += SLOW_AFTER_SECONDS
    assert turns.may_claim()

    turns.expect(claim())
    clock.now += SLOW_AFTER_SECONDS
    assert not turns.may_claim(), "three are enough"


async def test_looks_again_while_a_job_is_prepared(
    claim: Callable[[], JobInHand], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenkaigen_worker.worker.turns.SLOW_AFTER_SECONDS", 0.01)
    turns = EngineTurns(3.0, on_gap=lambda seconds: None)
    turns.expect(claim())
    await turns.until_changed()


async def test_claims_the_next_job_when_the_running_one_is_about_to_end(
    claim: Callable[[], JobInHand], clock: Clock
) -> None:
    turns = EngineTurns(3.0, on_gap=lambda seconds: None)
    hand = claim()
    task, leave = await at_engine(turns, hand)
    assert not turns.may_claim(), "before its first step nobody knows how long a job takes"

    clock.now += 4.0
    hand.step(Step("denoise", index=0, step=4, total=9), pictures=1)
    assert hand.seconds_left() == pytest.approx(6.0)
    assert not turns.may_claim(), "a row claimed now would wait here while another worker may be idle"

    clock.now += 4.0
    hand.step(Step("denoise", index=0, step=8, total=9), pictures=1)
    assert hand.seconds_left() == pytest.approx(2.0)
    assert turns.may_claim()

    leave.set()
    await task


async def test_stops_claiming_while_storage_is_slower_than_the_engine(claim: Callable[[], JobInHand]) -> None:
    turns = EngineTurns(3.0, on_gap=lambda seconds: None)
    hands = [claim() for _ in range(PUBLISHING_AT_MOST)]
    for hand in hands:
        assert turns.may_claim()
        task, leave = await at_engine(turns, hand)
        leave.set()
        await task
    assert not turns.may_claim()

    turns.leave(hands[0])
    assert turns.may_claim()


async def test_a_job_claimed_ahead_waits_for_storage_too(
    claim: Callable[[], JobInHand], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = EngineTurns(3.0, on_gap=lambda seconds: None)
    first, second, ahead = claim(), claim(), claim()
    for hand in (first, second):
        turns.expect(hand)
    turns.expect(ahead)
    for hand in (first, second):
        async with turns.at_engine(hand):
            pass

    leave, entered = asyncio.Event(), asyncio.Event()
    with monkeypatch.context() as patch:
        patch.setattr("tenkaigen_worker.worker.turns.START_WITHIN_SECONDS", 0)
        with pytest.raises(EngineBusy):
            await enter(turns, ahead, leave, entered)
    assert not entered.is_set()

    waiting = asyncio.create_task(enter(turns, ahead, leave, entered))
    turns.leave(first)
    await entered.wait()
    leave.set()
    await waiting


async def test_reports_a_gap_only_between_jobs_that_followed_each_other(claim: Callable[[], JobInHand]) -> None:
    gaps: list[float] = []
    turns = EngineTurns(3.0, on_gap=gaps.append)
    first, second, later = claim(), claim(), claim()

    task, leave = await at_engine(turns, first)
    turns.expect(second)
    follower = asyncio.create_task(enter(turns, second, leave, asyncio.Event()))
    leave.set()
    await asyncio.gather(task, follower)
    assert len(gaps) == 1

    turns.leave(first)
    task, leave = await at_engine(turns, later)
    leave.set()
    await task
    assert len(gaps) == 1, "the queue was empty in between: that is no gap"
