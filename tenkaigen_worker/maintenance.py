"""What keeps the queue healthy: it runs in every worker and in the API, and they share the work."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from tenkaigen_worker.database.upkeep import (
    OLDEST,
    FinalJob,
    Place,
    expire_late,
    files_removed,
    ping,
    prunable,
    pruning,
    rescue_lost,
    with_files_to_remove,
)
from tenkaigen_worker.errors import DatabaseError, StorageError
from tenkaigen_worker.storage.keys import job_folder, made_until

if TYPE_CHECKING:
    import asyncpg

    from tenkaigen_worker.config import WorkerSettings
    from tenkaigen_worker.storage.base import Storage

log = logging.getLogger("tenkaigen.maintenance")

# How many jobs are pruned before the next pause, and how long that is when none was left, in seconds.
PRUNED_AT_ONCE = 100
PRUNE_PAUSE = 3600.0

# How long storage may take over the files of one job.
STORAGE_SECONDS = 30.0


async def rescue(pool: asyncpg.Pool, lease_seconds: float) -> None:
    """Take jobs from lost workers: back to the queue with a pause, or ended when no attempt is left."""
    for job in await rescue_lost(pool, lease_seconds):
        log.warning(
            "job %s was lost by worker %s in attempt %s of %s; it is %s now",
            *(job.id, job.worker_id, job.attempt, job.max_attempts, job.status),
            extra={"action": "job_rescued", "job_id": str(job.id), "status": job.status.value},
        )


async def expire(pool: asyncpg.Pool) -> None:
    """Fail the queued jobs that are past their ``expires_at``."""
    for job_id in await expire_late(pool):
        log.info("job %s expired before it started", job_id, extra={"action": "job_expired", "job_id": str(job_id)})


async def remove_files(pool: asyncpg.Pool, storage: Storage) -> None:
    """Remove the files of jobs that ended without a picture, then note that they are gone.

    In this order: whoever is killed between the two leaves only a note that there is something to remove.
    """
    cleared = []
    for job in await with_files_to_remove(pool):
        try:
            await _drop_files(job, storage, named_too=False)
        except StorageError as error:
            log.warning(
                "files of job %s could not be removed, which will be tried again: %s",
                *(job.lease.job_id, error),
                extra={"action": "files_left", "job_id": str(job.lease.job_id)},
            )
        else:
            cleared.append(job.lease)
    if cleared:
        await files_removed(pool, cleared)


async def prune(pool: asyncpg.Pool, storage: Storage, days: int, behind: Place) -> Place | None:
    """Remove some jobs that ended more than ``days`` ago, with their files, beginning behind a place.

    Answers the place to go on from, or ``None`` when there are no more. A job stays with its files where the table
    refuses, because another one refers to it; where storage refuses, the row stays.
    """
    batch = await prunable(pool, days, behind, limit=PRUNED_AT_ONCE)
    pruned, refusals = 0, []
    for place in batch:
        try:
            async with pruning(pool, place.id, days) as job:
                if job is not None:
                    await _drop_files(job, storage, named_too=True)
                    pruned += 1
        except (StorageError, DatabaseError) as error:
            if isinstance(error, DatabaseError) and not error.permanent:
                raise
            refusals.append(error)
    if pruned:
        log.info(
            "removed %d of the jobs that ended more than %d days ago",
            *(pruned, days),
            extra={"action": "jobs_pruned", "count": pruned},
        )
    if refusals:
        log.warning(
            "of the old jobs %d stay for now, the first because: %s",
            *(len(refusals), refusals[0]),
            extra={"action": "jobs_kept", "count": len(refusals)},
        )
    return batch[-1] if len(batch) == PRUNED_AT_ONCE else None


async def _drop_files(job: FinalJob, storage: Storage, *, named_too: bool) -> None:
    """Remove what the leases of a job have made from storage, or only what its row does not name.

    Never more: with somebody's hand in the row, a later lease may have begun, and the row may name anything. Raises
    ``StorageError``.
    """
    try:
        async with asyncio.timeout(STORAGE_SECONDS):
            stored = {*await storage.list(job_folder(job.user_id, job.lease.job_id))}
            # When a user is deleted the row forgets whose folder it was, but not the keys.
            unwanted = stored | job.named if named_too else stored - job.named
            if keys := [key for key in unwanted if made_until(key, job.lease)]:
                await storage.delete(keys)
    except TimeoutError:
        raise StorageError(f"storage did not answer within {STORAGE_SECONDS:g} s") from None


async def maintain(pool: asyncpg.Pool, storage: Storage, settings: WorkerSettings) -> None:
    """Keep the queue healthy until cancelled. Storage may be slow, and lost jobs must not wait for it."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_keep_queue(pool, settings), name="rescue")
        tasks.create_task(_keep_files(pool, storage, settings), name="files")
        if settings.prune_after_days is not None:
            tasks.create_task(_keep_pruned(pool, storage, settings, settings.prune_after_days), name="prune")


async def _keep_queue(pool: asyncpg.Pool, settings: WorkerSettings) -> None:
    """Rescue and expire every ``rescue_seconds``.

    At first, and once the database is back after an outage, it waits for one heartbeat period: workers that could not
    renew their leases meanwhile get the chance to.
    """
    was_away = True
    while True:
        try:
            if was_away:
                await ping(pool)
                await asyncio.sleep(settings.heartbeat_seconds)
                was_away = False
            await rescue(pool, settings.lease_seconds)
            await expire(pool)
        except DatabaseError as error:
            log.warning("maintenance waits: %s", error, extra={"action": "maintenance_failed"})
            was_away = True
        await asyncio.sleep(settings.rescue_seconds)


async def _keep_files(pool: asyncpg.Pool, storage: Storage, settings: WorkerSettings) -> None:
    """Remove files that no row names, every ``rescue_seconds``."""
    while True:
        await asyncio.sleep(settings.rescue_seconds)
        try:
            await remove_files(pool, storage)
        except DatabaseError as error:
            log.warning("removing files waits: %s", error, extra={"action": "maintenance_failed"})


async def _keep_pruned(pool: asyncpg.Pool, storage: Storage, settings: WorkerSettings, days: int) -> None:
    """Prune every ``rescue_seconds`` while there are old jobs, else once an hour."""
    pause, behind = settings.rescue_seconds, OLDEST
    while True:
        await asyncio.sleep(pause)
        try:
            further = await prune(pool, storage, days, behind)
        except DatabaseError as error:
            log.warning("pruning waits: %s", error, extra={"action": "maintenance_failed"})
            pause = settings.rescue_seconds
        else:
            pause, behind = (settings.rescue_seconds, further) if further else (PRUNE_PAUSE, OLDEST)
