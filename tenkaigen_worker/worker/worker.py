"""The worker: small loops around one engine, each with one job of its own.

==========  =====================================================================================
claim       takes the next job when the engine is free, or soon will be
heartbeat   keeps all leases alive with one statement, writes progress, hears who is to be canceled
==========  =====================================================================================
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from time import monotonic
from uuid import UUID

from tenkaigen_worker.config import WorkerSettings
from tenkaigen_worker.errors import DatabaseError, EngineError
from tenkaigen_worker.jobs import Job, Lease
from tenkaigen_worker.recipe import warm_up
from tenkaigen_worker.worker.in_hand import JobInHand
from tenkaigen_worker.worker.run_job import run_job
from tenkaigen_worker.worker.tools import Tools
from tenkaigen_worker.worker.turns import EngineTurns
from tenkaigen_worker.worker.waiting import unless

log = logging.getLogger("tenkaigen.worker")

# How long a loop waits before it goes on after the database failed it, in seconds.
DATABASE_PAUSE = 1.0
# How long until an engine that cannot be used is tried again, in seconds.
ENGINE_PAUSE = 10.0
# A drained queue has nothing that is due within the longest pause between two attempts.
DRAIN_HORIZON = timedelta(minutes=7)


class Worker:
    """Runs jobs until it is told to stop, or with ``drain`` until the queue is empty.

    Whoever hears the database's notifications calls :meth:`work_may_wait` and :meth:`cancel_may_wait`.
    """

    def __init__(
        self,
        tools: Tools,
        settings: WorkerSettings,
        *,
        drain: bool = False,
    ) -> None:
        self._tools = tools
        self._settings = settings
        self._drain = drain
        self._turns = EngineTurns(settings.prefetch_seconds, tools.metrics.engine_gap)
        self._held: dict[Lease, tuple[JobInHand, asyncio.Task[None]]] = {}
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._work_may_wait = asyncio.Event()
        self._beat_at = self._last_beat = monotonic()
        self._beat_sooner = asyncio.Event()
        self._renewed = asyncio.Event()

    async def run(self, *, listening: Callable[[], bool]) -> None:
        """Claim and run jobs; returns when stopped or drained, with every job finished or given back.

        ``listening`` says whether notifications are proven to arrive: polling may be slow then.
        """
        async with asyncio.TaskGroup() as loops:
            heartbeat = loops.create_task(self._heartbeat_loop(), name="heartbeat")
            await self._claim_loop(listening)
            await self._finish()
            heartbeat.cancel()

    def stop(self) -> None:
        """Claim nothing more and finish what is in hand; a second call gives it back at once."""
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()
        self._turns.changed()
        self._work_may_wait.set()

    def work_may_wait(self) -> None:
        """Look at the queue now: something was queued."""
        self._work_may_wait.set()

    def cancel_may_wait(self, job_id: UUID) -> None:
        """Ask the database now whether a job is to be canceled, if it is one of ours."""
        if any(lease.job_id == job_id for lease in self._held):
            self._schedule_beat(monotonic())

    def problems(self) -> list[str]:
        """Why this worker is not ready to take jobs; empty when it is."""
        reasons = {
            "the engine is not loaded": self._tools.engine.info is None,
            "the engine failed several jobs in a row": not self._turns.trusted,
            "the worker is stopping": self._stopping.is_set(),
        }
        return [reason for reason, holds in reasons.items() if holds]

    async def _claim_loop(self, listening: Callable[[], bool]) -> None:
        while not self._stopping.is_set():
            if not self._turns.may_claim():
                await self._turns.until_changed()
                continue

            self._work_may_wait.clear()
            job = await self._claim()
            if job is not None:
                self._take(job)
            elif self._drain and not self._held and not await self._due_soon():
                log.info("The queue is empty", extra={"action": "drained"})
                return
            else:
                await self._until_work_may_wait(listening=listening())

    async def _claim(self) -> Job | None:
        """Take the next job, once the engine has its model and is trusted: one sick GPU must not eat the queue."""
        engine = self._tools.engine
        while not self._stopping.is_set():
            try:
                if engine.info is None:
                    await unless(self._stopping, engine.start())
                elif not self._turns.trusted:
                    await unless(self._stopping, self._turns.prove(self._warm_up))
                else:
                    return await self._tools.queue.claim()
            except DatabaseError as error:
                log.warning("%s", error, extra={"action": "claim_failed"})
                await unless(self._stopping, self._until_renewed())
            except EngineError as error:
                log.error("The engine cannot be used: %s", error, extra={"action": "engine_unusable"})
                await unless(self._stopping, asyncio.sleep(ENGINE_PAUSE))
        return None

    async def _warm_up(self) -> None:
        """Make a small picture that nobody waits for; raises ``EngineError`` when the engine cannot even do that."""
        info = await self._tools.engine.start()
        async for _ in self._tools.engine.generate(warm_up(info.model), on_step=lambda step: None):
            pass
        log.info("The engine works again", extra={"action": "engine_proven"})

    async def _due_soon(self) -> bool:
        """Whether a job is queued for now or, after a failed attempt, for a little later: draining waits for it."""
        try:
            return await self._tools.queue.due_within(DRAIN_HORIZON)
        except DatabaseError as error:
            log.warning("%s", error, extra={"action": "claim_failed"})
            return True

    def _take(self, job: Job) -> None:
        log.info(
            "Job %s is claimed, attempt %d of %d",
            job.id,
            job.attempt,
            job.max_attempts,
            extra={"action": "job_claimed", "job_id": job.id, "lease_token": job.lease.token},
        )
        hand = JobInHand(job, on_change=self._on_progress)
        self._turns.expect(hand)
        task = asyncio.create_task(run_job(hand, self._turns, self._tools), name=f"job {job.id}")
        self._held[job.lease] = (hand, task)
        self._tools.metrics.jobs_held(len(self._held))
        task.add_done_callback(lambda task: self._let_go(hand, task))

    def _let_go(self, hand: JobInHand, task: asyncio.Task[None]) -> None:
        del self._held[hand.job.lease]
        self._turns.leave(hand)
        self._tools.metrics.jobs_held(len(self._held))
        self._work_may_wait.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error(
                "Job %s met an error nobody foresaw after its end",
                hand.job.id,
                exc_info=error,
                extra={"action": "job_crashed", "job_id": hand.job.id},
            )

    async def _until_work_may_wait(self, *, listening: bool) -> None:
        patience = self._settings.poll_seconds_listening if listening else self._settings.poll_seconds
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._work_may_wait.wait()

    def _on_progress(self) -> None:
        self._turns.changed()
        self._schedule_beat(self._last_beat + self._settings.progress_seconds)

    def _schedule_beat(self, at: float) -> None:
        if at < self._beat_at:
            self._beat_at = at
            self._beat_sooner.set()

    async def _heartbeat_loop(self) -> None:
        while True:
            while (left := self._beat_at - monotonic()) > 0:
                self._beat_sooner.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._beat_sooner.wait()

            self._last_beat = monotonic()
            self._beat_at = self._last_beat + self._settings.heartbeat_seconds
            try:
                await self._beat()
                self._renewed.set()
            except DatabaseError as error:
                log.warning("%s", error, extra={"action": "heartbeat_failed"})
                await asyncio.sleep(DATABASE_PAUSE)
                self._beat_at = monotonic()

    async def _until_renewed(self) -> None:
        """Wait until the database is back and has renewed the leases: what is held comes before what is new."""
        await asyncio.sleep(DATABASE_PAUSE)
        self._renewed.clear()
        self._schedule_beat(monotonic())
        await self._renewed.wait()

    async def _beat(self) -> None:
        if not self._held:
            return
        answers = await self._tools.queue.heartbeat({lease: hand.progress for lease, (hand, _) in self._held.items()})
        for lease, answer in answers.items():
            if lease not in self._held:
                continue
            hand, _ = self._held[lease]
            if not answer.alive:
                hand.lose()
            elif answer.cancel_requested:
                hand.cancel()

    async def _finish(self) -> None:
        if not self._held:
            return
        grace = self._settings.grace_seconds
        log.info("Finishing %d jobs within %g s", len(self._held), grace, extra={"action": "finishing"})

        in_hand = {task for _, task in self._held.values()}
        finishing = asyncio.ensure_future(asyncio.wait(in_hand))
        hurry = asyncio.ensure_future(self._hurry.wait())
        await asyncio.wait({finishing, hurry}, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()

        # Cancelling a job's task gives the job back to the queue.
        for task in in_hand:
            task.cancel()
        await finishing
