"""What workers offer together, and how long a job waits for them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tenkaigen_worker.offers import LINE_AT_MOST, Limits, Line, Offer, Work, WorkerState
from tenkaigen_worker.request import Names
from tests.unit.examples import WORKER

OTHER = replace(
    WORKER,
    worker_id="gpu-2",
    state=WorkerState.UNREADY,
    styles={"ANIME": "Spelled otherwise", "Ukiyo-e": "Woodblock"},
    modes=("Fast", "turbo"),
    picture_ms={"Fast": 1000, "quality": 40_000},
    loras={"INK": (), "Sumi": ()},
    templates={"Mug Wrap": "Around"},
)


def test_what_several_workers_have_is_joined() -> None:
    offer = Offer.of([WORKER, OTHER])
    assert offer.styles == {"Standard": "", "Anime": "Vibrant", "Ukiyo-e": "Woodblock"}
    assert offer.modes == ("quality", "fast", "turbo")
    assert offer.picture_ms == {"quality": 30_000, "fast": 1000}
    assert offer.ready == 1
    assert offer.loras == {"Ink": ("Edo",), "Sumi": ()}
    assert offer.templates == {"Mug Wrap": "Around"}
    assert set(Names.of(offer).loras) == {"Ink", "Edo", "Sumi"}


@pytest.mark.parametrize(
    ("limits", "joined"), [((100, 400), 400), ((400, None), None), ((400,), 400), ((None,), None), ((), None)]
)
def test_what_one_worker_has_memory_for_can_be_asked_for(limits: tuple[int | None, ...], joined: int | None) -> None:
    assert Offer.of([replace(WORKER, limits=Limits(one)) for one in limits]).limits == Limits(joined)


@pytest.mark.parametrize(
    ("line", "ready", "seconds"),
    [
        (Line(0, (), Work("quality", 2)), 1, 60),
        (Line(0, (), Work("quality", 2)), 2, 60),  # one job runs on one worker
        (Line(3, (Work("quality", 3), Work("FAST", 10)), Work(None, 1)), 2, 80),
        (Line(1, (Work("quality", 0.26),), Work("fast", 1)), 1, 9),  # what is left of a running job, rounded up
        (Line(1, (Work("typo", 8),), Work("fast", 1)), 1, 1),  # fails at once
        (Line(1, (Work("turbo", 1),), Work("fast", 1)), 1, None),  # not measured
        (Line(0, (), Work("fast", 1)), 0, None),  # nobody is ready
        (Line(LINE_AT_MOST, (), Work("fast", 1)), 1, None),  # not counted to the end
    ],
)
def test_estimates(line: Line, ready: int, seconds: int | None) -> None:
    offer = replace(Offer.of([WORKER, OTHER]), ready=ready)
    assert offer.seconds_until_done(line) == seconds


def test_nobody_offers_nothing() -> None:
    assert Offer.of([]).seconds_until_done(Line(0, (), Work(None, 1))) is None
