"""One job, from its claimed row to its outcome: prepare, generate, publish, complete."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from time import monotonic

from tenkaigen_worker.errors import Code, InputError, JobError
from tenkaigen_worker.jobs import Completion, Failure, Output
from tenkaigen_worker.request import read_request
from tenkaigen_worker.worker import outcomes
from tenkaigen_worker.worker.elsewhere import has_a_place
from tenkaigen_worker.worker.in_hand import CancelRequested, JobInHand, LeaseLost
from tenkaigen_worker.worker.prepare import Prepared, prepared
from tenkaigen_worker.worker.publish import publish
from tenkaigen_worker.worker.tools import Tools
from tenkaigen_worker.worker.turns import EngineBusy, EngineTurns
from tenkaigen_worker.worker.waiting import unless

log = logging.getLogger("tenkaigen.worker")


async def run_job(hand: JobInHand, turns: EngineTurns, tools: Tools) -> None:
    """Take one claimed job to its outcome. Whatever goes wrong with the job ends in its row, not here."""
    job = hand.job
    try:
        completion = await unless(hand.stop, make(hand, turns, tools))
        if completion is None:
            raise hand.reason()
    except LeaseLost:
        return await outcomes.lost(job, tools)
    except CancelRequested:
        return await outcomes.cancel(job, tools)
    except EngineBusy:
        return await outcomes.give_back(job, tools)
    except JobError as error:
        if await has_a_place(job, error, tools):
            return await outcomes.leave_to_others(job, error, tools)
        return await outcomes.fail(job, Failure(error.code, str(error)), tools)
    except asyncio.CancelledError:
        await outcomes.give_back(job, tools)
        raise
    except Exception:
        log.exception("Job %s met an error nobody foresaw", job.id, extra={"action": "job_crashed", "job_id": job.id})
        message = "An internal error occurred; the worker's log has the details."
        return await outcomes.fail(job, Failure(Code.INTERNAL, message), tools)

    # Outside of the above: from here on the row may name the files, and nothing that goes wrong may remove them.
    return await outcomes.complete(job, completion, tools)


async def make(hand: JobInHand, turns: EngineTurns, tools: Tools) -> Completion:
    """Prepare, generate and publish one job; answers all that its row will say of it."""
    watch = StageWatch()
    uploads: list[asyncio.Task[Output]] = []
    try:
        async with _prepared(hand, tools) as job:
            watch.lap("prepare")
            hand.enter("waiting")
            async with turns.at_engine(hand):
                watch.lap("wait")
                await _generate(hand, job, uploads, watch, tools)
        watch.lap("generate")

        hand.enter("publishing")
        outputs = await asyncio.gather(*uploads)
        watch.lap("publish")
    finally:
        for upload in uploads:
            upload.cancel()
        await asyncio.gather(*uploads, return_exceptions=True)

    return Completion(tuple(outputs), job.recipe.to_json(), watch.ms, hand.elapsed_ms())


@asynccontextmanager
async def _prepared(hand: JobInHand, tools: Tools) -> AsyncIterator[Prepared]:
    """Read the row and settle everything; the files that the engine needs are held while the block runs."""
    try:
        request = read_request(hand.job.columns, tools.sources.names)
    except InputError:
        # What it names may have been dropped in this very second.
        tools.sources.plugins.refresh(at_once=True)
        request = read_request(hand.job.columns, tools.sources.names)
    engine = await tools.engine.start()
    async with prepared(request, tools.sources, engine, user_id=hand.job.user_id) as job:
        yield job


async def _generate(
    hand: JobInHand, job: Prepared, uploads: list[asyncio.Task[Output]], watch: StageWatch, tools: Tools
) -> None:
    recipe = job.recipe
    log.info(
        "Job %s is at the engine: %s, %d x %d, %d steps",
        hand.job.id,
        recipe.style,
        recipe.width,
        recipe.height,
        recipe.steps,
        extra={"action": "job_generating", "job_id": hand.job.id},
    )
    hand.enter("generating")
    pictures = tools.engine.generate(recipe, job.inputs, on_step=lambda step: hand.step(step, len(recipe.seeds)))
    async with aclosing(pictures):
        async for picture in pictures:
            # Storing a picture goes on beside the making of the next one, and beside the next job.
            uploads.append(asyncio.create_task(publish(picture, recipe, hand.job, tools)))
            watch.add(picture.timings_ms)
            tools.pace.note(recipe.mode, picture.timings_ms)


class StageWatch:
    """Measures how long each stage of a job took, in milliseconds."""

    def __init__(self) -> None:
        self.ms: dict[str, int] = {}
        self._since = monotonic()

    def lap(self, stage: str) -> None:
        """End a stage; the next one begins now."""
        now = monotonic()
        self.ms[stage] = round((now - self._since) * 1000)
        self._since = now

    def add(self, phases: dict[str, int]) -> None:
        """Add what the engine measured inside its own phases."""
        for phase, ms in phases.items():
            self.ms[phase] = self.ms.get(phase, 0) + ms
