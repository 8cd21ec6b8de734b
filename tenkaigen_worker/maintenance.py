"""What keeps the queue healthy: it runs in every worker and in the API, and they share the work."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tenkaigen_worker.database.upkeep import (
    FinalJob,
    expire_late,
    files_removed,
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
            if keys := set(await _files_of(job, storage)) - job.named:
                await storage.delete([*keys])
        except StorageError as error:
            log.warning(
                "the files of job %s could not be removed, and will be tried again: %s",
                *(job.lease.job_id, error),
                extra={"action": "files_left", "job_id": str(job.lease.job_id)},
            )
        else:
            cleared.append(job.lease)
    if cleared:
        await files_removed(pool, cleared)


async def _files_of(job: FinalJob, storage: Storage) -> Sequence[str]:
    """What the job's leases have stored, but for those that somebody's hand may have let begin meanwhile."""
    keys = await storage.list(job_folder(job.user_id, job.lease.job_id))
    return [key for key in keys if made_until(key, job.lease)]


async def maintain(pool: asyncpg.Pool, storage: Storage, settings: WorkerSettings) -> None:
    """Keep the queue healthy until cancelled. Storage may be slow or hang, and lost jobs must not wait for it."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_watch(pool, settings), name="rescue")
        tasks.create_task(_clean(pool, storage, settings), name="clean")


async def _watch(pool: asyncpg.Pool, settings: WorkerSettings) -> None:
    """Rescue and expire every ``rescue_seconds``.

    At first and after an outage of the database it waits for one heartbeat period: workers that could not renew their
    leases meanwhile get the chance to.
    """
    pause = settings.heartbeat_seconds
    while True:
        await asyncio.sleep(pause)
        try:
            await rescue(pool, settings.lease_seconds)
            await expire(pool)
            pause = settings.rescue_seconds
        except DatabaseError as error:
            log.warning("maintenance waits: %s", error, extra={"action": "maintenance_failed"})
            pause = max(settings.heartbeat_seconds, settings.rescue_seconds)


async def _clean(pool: asyncpg.Pool, storage: Storage, settings: WorkerSettings) -> None:
    """Remove what nobody needs any more, every ``rescue_seconds``."""
    while True:
        await asyncio.sleep(settings.rescue_seconds)
        try:
            await remove_files(pool, storage)
        except DatabaseError as error:
            log.warning("files are not removed now: %s", error, extra={"action": "cleaning_failed"})
