"""The worker's side of the job table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import timedelta
from uuid import UUID

import asyncpg

from tenkaigen_worker.database.faults import database_faults
from tenkaigen_worker.database.queries import load_queries
from tenkaigen_worker.jobs import Completion, Failure, Heartbeat, Job, Lease, Made, Output, Progress, Status

QUERIES = load_queries("queue.sql")

# What the claim brings besides the user's own columns.
_NOT_ASKED_FOR = frozenset({"id", "lease_token", "user_id", "attempt", "max_attempts"})
_LONGEST_MESSAGE = 4000


class PostgresQueue:
    """The job table as a :class:`~tenkaigen_worker.jobs.Queue`, for one worker; a lease lasts ``lease_seconds``."""

    def __init__(self, pool: asyncpg.Pool, worker_id: str, lease_seconds: float) -> None:
        self._pool = pool
        self._worker_id = worker_id
        self._lease_seconds = lease_seconds

    async def claim(self) -> Job | None:
        """Take the next due job, or ``None`` when there is none."""
        with database_faults("cannot claim a job"):
            row = await self._pool.fetchrow(QUERIES["claim"], self._worker_id, self._lease_seconds)
        if row is None:
            return None
        return Job(
            lease=Lease(row["id"], row["lease_token"]),
            user_id=row["user_id"],
            attempt=row["attempt"],
            max_attempts=row["max_attempts"],
            columns={name: value for name, value in row.items() if name not in _NOT_ASKED_FOR},
        )

    async def due_within(self, delay: timedelta) -> bool:
        """Whether any queued job is due now or after at most ``delay``."""
        with database_faults("cannot look at the queue"):
            return bool(await self._pool.fetchval(QUERIES["due_within"], delay))

    async def heartbeat(self, held: Mapping[Lease, Progress]) -> Mapping[Lease, Heartbeat]:
        """Extend all leases, write progress, and bring back which are lost or to be canceled: one statement."""
        if not held:
            return {}
        with database_faults("cannot renew leases"):
            rows = await self._pool.fetch(
                QUERIES["heartbeat"],
                [lease.job_id for lease in held],
                [lease.token for lease in held],
                [progress.stage for progress in held.values()],
                [progress.fraction for progress in held.values()],
                self._lease_seconds,
            )
        ours = {Lease(row["id"], row["lease_token"]): row["cancel_requested"] for row in rows}
        return {lease: Heartbeat(lease in ours, ours.get(lease, False)) for lease in held}

    async def complete(self, lease: Lease, completion: Completion) -> bool:
        """Write the outcome. A reply lost on the way is recognised by re-reading: same token, completed."""
        recipe, outputs = completion.recipe, completion.outputs
        with database_faults(f"cannot complete job {lease.job_id}"):
            written = await self._pool.fetchval(
                QUERIES["complete"],
                lease.job_id,
                lease.token,
                [asdict(output) for output in outputs],
                outputs[0].url if outputs else None,
                dict(recipe),
                dict(completion.timings_ms),
                completion.processing_time_ms,
                recipe.get("width"),
                recipe.get("height"),
                outputs[0].seed if outputs else None,
            )
            if written is not None:
                return True
            return bool(await self._pool.fetchval(QUERIES["completed_by"], lease.job_id, lease.token))

    async def fail(self, lease: Lease, failure: Failure) -> Status | None:
        """End this attempt: back to queued while attempts are left and it may be retried, else failed.

        A job that somebody wants canceled is not tried again. Answers the status the job has now, or ``None`` when the
        lease was lost.
        """
        with database_faults(f"cannot write why job {lease.job_id} failed"):
            status = await self._pool.fetchval(
                QUERIES["fail"],
                lease.job_id,
                lease.token,
                failure.code.value,
                _storable(failure.message),
                failure.code.retryable,
            )
        return None if status is None else Status(status)

    async def release(self, lease: Lease, *, delay: timedelta = timedelta(0)) -> bool:
        """Give the job back with its attempt, due again after ``delay``."""
        with database_faults(f"cannot give job {lease.job_id} back"):
            return await self._pool.fetchval(QUERIES["release"], lease.job_id, lease.token, delay) is not None

    async def cancel(self, lease: Lease) -> bool:
        """End the job as canceled."""
        with database_faults(f"cannot cancel job {lease.job_id}"):
            return await self._pool.fetchval(QUERIES["cancel"], lease.job_id, lease.token) is not None

    async def made(self, job_id: UUID, *, user_id: UUID | None) -> Made | None:
        """What a job has made so far, or ``None`` when it is not this user's; ``None`` has jobs, too: nobody's."""
        with database_faults(f"cannot read what job {job_id} made"):
            row = await self._pool.fetchrow(QUERIES["made"], job_id, user_id)
        return Made(Status(row["status"]), tuple(Output(**output) for output in row["outputs"])) if row else None


def _storable(message: str) -> str:
    """A message as text that PostgreSQL takes: a crashed process may have said anything."""
    text = message.encode("utf-8", "replace").decode("utf-8").replace("\0", "")
    return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 1] + "…"
