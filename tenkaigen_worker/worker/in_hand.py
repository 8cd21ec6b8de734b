"""One claimed job while this worker holds it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from tenkaigen_worker.engine.base import Step
from tenkaigen_worker.jobs import Job, Progress

PREPARING = "preparing"


class LeaseLost(Exception):
    """The job is no longer ours; whatever we made of it is dropped."""


class CancelRequested(Exception):
    """Somebody asked for this job to be canceled."""


class JobInHand:
    """A claimed job, how far it is, and whether it should go on.

    ``stop`` is set when the job was canceled or its lease lost; :meth:`reason` says which. ``on_change`` is called
    after every change of progress.
    """

    def __init__(self, job: Job, on_change: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.job = job
        self.stop = asyncio.Event()
        self.progress = Progress(PREPARING, 0.0)
        self._on_change = on_change
        self._clock = clock
        self._lost = False
        self._claimed_at = clock()
        self._at_engine_since: float | None = None

    def reason(self) -> LeaseLost | CancelRequested:
        """Why the job should not go on, once ``stop`` is set."""
        return LeaseLost() if self._lost else CancelRequested()

    def lose(self) -> None:
        """Note that the database gave the job to somebody else, or that it is over."""
        self._lost = True
        self.stop.set()

    def cancel(self) -> None:
        """Note that somebody asked to cancel."""
        self.stop.set()

    def enter(self, stage: str) -> None:
        """Begin a stage; its name is what the row's ``stage`` says."""
        if stage == "generating":
            self._at_engine_since = self._clock()
        self._report(stage, self.progress.fraction)

    def step(self, step: Step, pictures: int) -> None:
        """Take one message of the engine. Decoding counts as one more step of its picture, encoding as none."""
        if step.phase == "encode":
            return  # it takes a moment, whatever the steps take: nothing can be told from it
        done = step.total if step.phase == "decode" else step.step
        fraction = (step.index + step.count * done / (step.total + 1)) / pictures
        self._report("generating", max(fraction, self.progress.fraction))

    def seconds_left(self) -> float:
        """Estimate how long the job still needs the engine, in seconds; infinite before its first step."""
        fraction = self.progress.fraction
        if self._at_engine_since is None or fraction == 0:
            return float("inf")
        return (self._clock() - self._at_engine_since) * (1 - fraction) / fraction

    def seconds_preparing(self) -> float:
        """Seconds for which the job has been prepared so far; 0 once that is done."""
        return self._clock() - self._claimed_at if self.progress.stage == PREPARING else 0.0

    def elapsed_ms(self) -> int:
        """Milliseconds since the job was claimed."""
        return round((self._clock() - self._claimed_at) * 1000)

    def _report(self, stage: str, fraction: float) -> None:
        self.progress = Progress(stage, fraction)
        self._on_change()
