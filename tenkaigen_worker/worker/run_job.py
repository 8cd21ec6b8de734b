"""One job, from its claimed row to its outcome: prepare, generate, publish, complete."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import aclosing
from time import monotonic

from tenkaigen_worker.errors import Code, JobError
from tenkaigen_worker.jobs import Completion, Failure, Output
from tenkaigen_worker.recipe import Recipe
from tenkaigen_worker.worker import outcomes
from tenkaigen_worker.worker.in_hand import CancelRequested, JobInHand, LeaseLost
from tenkaigen_worker.worker.prepare import prepare
from tenkaigen_worker.worker.publish import publish
from tenkaigen_worker.worker.tools import Tools
from tenkaigen_worker.worker.turns import EngineTurns

log = logging.getLogger("tenkaigen.worker")


async def run_job(hand: JobInHand, turns: EngineTurns, tools: Tools) -> None:
    """Take one claimed job to its outcome. Whatever goes wrong with the job ends in its row, not here."""
    job = hand.job
    try:
        completion = await _unless_stopped(hand, make(hand, turns, tools))
        await outcomes.complete(job, completion, tools)
    except LeaseLost:
        await outcomes.lost(job, tools)
    except CancelRequested:
        await outcomes.cancel(job, tools)
    except JobError as error:
        await outcomes.fail(job, Failure(error.code, str(error)), tools)
    except asyncio.CancelledError:
        await outcomes.give_back(job, tools)
        raise
    except Exception:
        log.exception("Job %s met an error nobody foresaw", job.id, extra={"action": "job_crashed", "job_id": job.id})
        message = "An internal error occurred; the worker's log has the details."
        await outcomes.fail(job, Failure(Code.INTERNAL, message), tools)


async def make(hand: JobInHand, turns: EngineTurns, tools: Tools) -> Completion:
    """Prepare, generate and publish one job; answers all that its row will say of it."""
    watch = StageWatch()
    recipe = await _prepare(hand, tools)
    watch.lap("prepare")

    uploads: list[asyncio.Task[Output]] = []
    try:
        hand.enter("waiting")
        async with turns.at_engine(hand):
            watch.lap("wait")
            await _generate(hand, recipe, uploads, watch, tools)
        watch.lap("generate")

        hand.enter("publishing")
        outputs = await asyncio.gather(*uploads)
        watch.lap("publish")
    finally:
        for upload in uploads:
            upload.cancel()
        await asyncio.gather(*uploads, return_exceptions=True)

    return Completion(tuple(outputs), recipe.to_json(), watch.ms, hand.elapsed_ms())


async def _prepare(hand: JobInHand, tools: Tools) -> Recipe:
    engine = await tools.engine.start()
    return await prepare(hand.job.columns, plugins=tools.plugins, generation=tools.generation, model=engine.model)


async def _generate(
    hand: JobInHand, recipe: Recipe, uploads: list[asyncio.Task[Output]], watch: StageWatch, tools: Tools
) -> None:
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
    pictures = tools.engine.generate(recipe, on_step=lambda step: hand.step(step, len(recipe.seeds)))
    async with aclosing(pictures):
        async for picture in pictures:
            # Storing a picture goes on beside the making of the next one, and beside the next job.
            uploads.append(asyncio.create_task(publish(picture, recipe, hand.job, tools)))
            watch.add(picture.timings_ms)


async def _unless_stopped(hand: JobInHand, making: Coroutine[None, None, Completion]) -> Completion:
    """Await ``making``, or end it wherever it is as soon as the job is canceled or its lease lost."""
    work = asyncio.ensure_future(making)
    stop = asyncio.ensure_future(hand.stop.wait())
    try:
        await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stop.cancel()
        if not work.done():
            work.cancel()
            await asyncio.wait({work})
    hand.check()
    return work.result()


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
