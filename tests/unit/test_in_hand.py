"""How far a job is, and how long it still needs the engine."""

from __future__ import annotations

import pytest

from tenkaigen_worker.engine.base import Step
from tenkaigen_worker.worker.in_hand import JobInHand
from tests.unit.examples import Clock, claimed


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def hand(clock: Clock) -> JobInHand:
    return JobInHand(claimed(), on_change=lambda: None, clock=clock)


def test_encoding_is_no_progress_and_tells_nothing_about_the_rest(hand: JobInHand, clock: Clock) -> None:
    # A quick encoding must not promise that a slow job is nearly over: the next row would be claimed far too early.
    hand.enter("generating")
    clock.now += 0.1
    hand.step(Step("encode", 0, 1, 1), pictures=1)

    assert hand.progress.fraction == 0
    assert hand.seconds_left() == float("inf")


def test_steps_and_decoding_fill_the_bar_evenly(hand: JobInHand) -> None:
    hand.enter("generating")
    fractions = []
    steps = [Step("encode", 0, 1, 1)]
    for index in range(2):
        steps += [*(Step("denoise", index, step, 3) for step in (1, 2, 3)), Step("decode", index, 0, 1)]
    for step in steps:
        hand.step(step, pictures=2)
        fractions.append(hand.progress.fraction * 8)

    assert fractions == [0, 1, 2, 3, 3, 5, 6, 7, 7]


def test_pictures_that_share_a_step_count_each(hand: JobInHand) -> None:
    hand.enter("generating")
    fractions = []
    steps = [*(Step("denoise", 0, step, 3, 3) for step in (1, 2, 3)), *(Step("decode", at, 0, 1) for at in (0, 1, 2))]
    for step in [*steps, Step("denoise", 3, 2, 3)]:
        hand.step(step, pictures=4)
        fractions.append(hand.progress.fraction * 16)

    assert fractions == [3, 6, 9, 9, 9, 10, 14]


def test_estimates_what_is_left_from_what_was_done(hand: JobInHand, clock: Clock) -> None:
    assert hand.seconds_left() == float("inf")
    clock.now += 50
    hand.enter("generating")
    clock.now += 3
    hand.step(Step("denoise", 0, 1, 3), pictures=1)

    assert hand.seconds_left() == pytest.approx(9)
