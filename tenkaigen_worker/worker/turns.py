"""Who is at the engine, who comes next, and whether the worker should claim another job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from time import monotonic
from uuid import UUID

from tenkaigen_worker.errors import EngineError
from tenkaigen_worker.worker.in_hand import JobInHand

# Pictures wait in the spool until they are stored. Past this many jobs storage is slower than the engine, which waits
# then, too.
PUBLISHING_AT_MOST = 2
# Jobs that are prepared or run at once, when one after the other is slow to prepare.
HELD_AT_MOST = 3
# A job that is prepared for longer than this holds nobody up: another may be claimed beside it.
SLOW_AFTER_SECONDS = 2.0
# Different jobs that the engine failed in a row, before no other is risked on it.
FAILURES_AT_MOST = 3
# A job that was prepared ahead is given back when the engine is not free by then.
START_WITHIN_SECONDS = 10.0


class EngineBusy(Exception):
    """The engine did not come free in time for a job that was ready."""


class EngineTurns:
    """One recipe at a time at the engine; the first job that is ready goes first.

    The engine should never wait for a row, and no row should wait behind a busy worker while another is idle. So the
    next job is claimed when the running one is expected to end within ``prefetch_seconds``, and not before. A job that
    is slow to prepare does not count as the next one.
    ``on_gap`` is told how long the engine stood idle between two jobs, in seconds, where the second was claimed before
    the first had ended: an empty queue is no gap.
    """

    def __init__(self, prefetch_seconds: float, on_gap: Callable[[float], None]) -> None:
        self._prefetch_seconds = prefetch_seconds
        self._on_gap = on_gap
        self._engine = asyncio.Lock()
        self._coming: dict[JobInHand, bool] = {}
        self._running: JobInHand | None = None
        self._publishing: set[JobInHand] = set()
        self._unpublished = asyncio.Semaphore(PUBLISHING_AT_MOST)
        self._changed = asyncio.Event()
        self._freed_at = monotonic()
        self._failed: set[UUID] = set()

    @property
    def trusted(self) -> bool:
        """Whether the engine may be given jobs: it has not just failed several different ones."""
        return len(self._failed) < FAILURES_AT_MOST

    async def prove(self, warm_up: Callable[[], Awaitable[None]]) -> None:
        """Trust the engine again if ``warm_up``, alone at the engine, does not raise."""
        async with self._engine:
            await warm_up()
        self._failed.clear()

    def may_claim(self) -> bool:
        """Whether a job claimed now would find the engine free, or nearly so."""
        held = len(self._coming) + (self._running is not None)
        if held >= HELD_AT_MOST or len(self._publishing) >= PUBLISHING_AT_MOST:
            return False
        if not all(hand.seconds_preparing() >= SLOW_AFTER_SECONDS for hand in self._coming):
            return False
        return self._running is None or self._running.seconds_left() <= self._prefetch_seconds

    def changed(self) -> None:
        """Look again whether a job may be claimed: some job made progress."""
        self._changed.set()

    async def until_changed(self) -> None:
        """Wait until :meth:`may_claim` may answer something else."""
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(SLOW_AFTER_SECONDS if self._coming else None):
                await self._changed.wait()

    def expect(self, hand: JobInHand) -> None:
        """Count a claimed job that will come to the engine once it is prepared."""
        self._coming[hand] = self._running is not None

    def leave(self, hand: JobInHand) -> None:
        """Forget a job that has its outcome."""
        self._coming.pop(hand, None)
        if hand in self._publishing:
            self._publishing.remove(hand)
            self._unpublished.release()
        self.changed()

    @asynccontextmanager
    async def at_engine(self, hand: JobInHand) -> AsyncIterator[None]:
        """Wait for the engine and keep it; afterwards the job counts as publishing until it leaves.

        Raises :class:`EngineBusy` when the engine, or the storage behind it, does not come free in time: another worker
        may be idle.
        """
        try:
            async with asyncio.timeout(START_WITHIN_SECONDS):
                await self._take_engine()
        except TimeoutError:
            raise EngineBusy from None

        try:
            claimed_beside_another = self._coming.pop(hand)
            if claimed_beside_another:
                self._on_gap(monotonic() - self._freed_at)
            self._running = hand
            self.changed()
            yield
            self._failed.clear()
        except EngineError:
            self._failed.add(hand.job.id)
            raise
        finally:
            self._running = None
            self._freed_at = monotonic()
            self._publishing.add(hand)
            self.changed()
            self._engine.release()

    async def _take_engine(self) -> None:
        await self._unpublished.acquire()
        try:
            await self._engine.acquire()
        except BaseException:
            self._unpublished.release()
            raise
