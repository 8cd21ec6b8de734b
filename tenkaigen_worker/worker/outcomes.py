"""How a job ends: completed, failed, canceled, given back or lost. Every ending is fenced by the lease's token."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from tenkaigen_worker.errors import Code, DatabaseError, StorageError
from tenkaigen_worker.jobs import Completion, Failure, Job, Lease, Status
from tenkaigen_worker.plugin.types import FinishedJob
from tenkaigen_worker.storage.keys import attempt_prefix, job_folder, made_until
from tenkaigen_worker.worker.tools import Tools

log = logging.getLogger("tenkaigen.worker")

T = TypeVar("T")

# Between two tries to write an outcome, in seconds.
BETWEEN_WRITES = wait_random_exponential(multiplier=0.5, max=15)
# For so long a job that another worker can make is kept from this one.
FOR_OTHERS = timedelta(seconds=5)


async def complete(job: Job, completion: Completion, tools: Tools) -> None:
    """Remove what earlier attempts left in storage, then write success.

    In this order, because nobody looks at the files of a completed job again.
    """
    if job.lease.token > 1:
        earlier = Lease(job.id, job.lease.token - 1)
        await drop_files(job_folder(job.user_id, job.id), tools, of=lambda key: made_until(key, earlier))
    try:
        ours = await persist(job, lambda: tools.queue.complete(job.lease, completion))
    except DatabaseError as error:
        log.error("The outcome of job %s was refused: %s", job.id, error, extra=_extra(job, "write_refused"))
        refusal = Failure(Code.INTERNAL, f"The finished job could not be written: {error}")
        return await fail(job, refusal, tools)
    if not ours:
        return await lost(job, tools)

    url = completion.outputs[0].url
    seconds = completion.processing_time_ms / 1000
    log.info("Job %s is completed after %.2f s: %s", job.id, seconds, url, extra=_extra(job, "job_completed"))
    tools.metrics.job_finished(Status.COMPLETED, None, completion.timings_ms, pictures=len(completion.outputs))
    finished = FinishedJob(
        id=str(job.id),
        user_id=_user_id(job),
        status=Status.COMPLETED,
        style=completion.recipe["style"],
        urls=tuple(output.url for output in completion.outputs),
        processing_time_ms=completion.processing_time_ms,
    )
    await tools.plugins.job_finished(finished)


async def fail(job: Job, failure: Failure, tools: Tools) -> None:
    """Write why this attempt ended: the job is queued again while it has attempts left, otherwise failed."""
    status = await persist(job, lambda: tools.queue.fail(job.lease, failure))
    if status is None:
        return await lost(job, tools)

    if status is Status.QUEUED:
        log.warning("Job %s will be tried again: %s", job.id, failure.message, extra=_extra(job, "job_retried"))
        return None
    action = "job_failed" if status is Status.FAILED else "job_canceled"
    log.warning("Job %s is %s: %s", job.id, status, failure.message, extra=_extra(job, action))
    return await _tell(job, status, failure.code if status is Status.FAILED else None, tools)


async def cancel(job: Job, tools: Tools) -> None:
    """End the job as canceled, as somebody asked."""
    if not await persist(job, lambda: tools.queue.cancel(job.lease)):
        return await lost(job, tools)

    log.info("Job %s is canceled", job.id, extra=_extra(job, "job_canceled"))
    return await _tell(job, Status.CANCELED, None, tools)


async def give_back(job: Job, tools: Tools) -> None:
    """Return the job to the queue with its attempt. Tried once: without it the lease runs out."""
    try:
        await tools.queue.release(job.lease)
    except DatabaseError as error:
        log.warning("Job %s could not be given back: %s", job.id, error, extra=_extra(job, "job_release_failed"))
    else:
        log.info("Job %s is given back to the queue", job.id, extra=_extra(job, "job_released"))
    await drop_files(attempt_prefix(job.user_id, job.lease), tools)


async def leave_to_others(job: Job, missing: Exception, tools: Tools) -> None:
    """Return the job to the queue with its attempt, for a worker that has what this one is ``missing``."""
    if not await persist(job, lambda: tools.queue.release(job.lease, delay=FOR_OTHERS)):
        return await lost(job, tools)
    log.info("Job %s is left to another worker: %s", job.id, missing, extra=_extra(job, "job_elsewhere"))


async def lost(job: Job, tools: Tools) -> None:
    """Drop the work of a lease that is no longer ours; the row belongs to somebody else now."""
    log.warning("Job %s is no longer ours; its files are dropped", job.id, extra=_extra(job, "job_lease_lost"))
    await drop_files(attempt_prefix(job.user_id, job.lease), tools)


async def drop_files(prefix: str, tools: Tools, *, of: Callable[[str], bool] = lambda key: True) -> None:
    """Remove stored files that no row will name. A storage that refuses is only logged: no outcome waits for it."""
    try:
        keys = [key for key in await tools.storage.list(prefix) if of(key)]
        if keys:
            await tools.storage.delete(keys)
    except StorageError as error:
        log.warning("Files under %s could not be removed: %s", prefix, error, extra={"action": "files_left"})


async def persist(job: Job, write: Callable[[], Awaitable[T]]) -> T:
    """Write an outcome, for as long as it takes: while the database is away the work in hand is kept.

    Writing twice is harmless, since every write carries the lease's token. Raises ``DatabaseError`` only when the
    database refuses for good what it was given.
    """

    def say(state: RetryCallState) -> None:
        cause = state.outcome.exception() if state.outcome else None
        log.warning("The outcome of job %s waits for the database: %s", job.id, cause, extra=_extra(job, "write_waits"))

    may_help = retry_if_exception(lambda error: isinstance(error, DatabaseError) and not error.permanent)
    async for attempt in AsyncRetrying(retry=may_help, wait=BETWEEN_WRITES, before_sleep=say, reraise=True):
        with attempt:
            return await write()
    raise AssertionError("unreachable: retrying has no end")


async def _tell(job: Job, status: Status, code: Code | None, tools: Tools) -> None:
    """Count an outcome without pictures, and tell the plugins."""
    tools.metrics.job_finished(status, code, {}, pictures=0)
    finished = FinishedJob(str(job.id), _user_id(job), status, job.columns["style"], error_code=code)
    await tools.plugins.job_finished(finished)


def _user_id(job: Job) -> str | None:
    return str(job.user_id) if job.user_id else None


def _extra(job: Job, action: str) -> dict[str, Any]:
    return {"action": action, "job_id": job.id, "attempt": job.attempt}
