"""What keeps the queue healthy: it runs in every worker and in the API, and they share the work."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from tenkaigen_worker.database.upkeep import expire_late, rescue_lost
from tenkaigen_worker.errors import DatabaseError

if TYPE_CHECKING:
    import asyncpg

    from tenkaigen_worker.config import WorkerSettings

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


async def maintain(pool: asyncpg.Pool, settings: WorkerSettings) -> None:
    """Rescue and expire every ``rescue_seconds`` until cancelled.

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
