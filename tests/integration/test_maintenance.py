"""Maintenance: jobs of lost workers come back or end, and jobs that waited too long end."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from tenkaigen_worker import maintenance
from tenkaigen_worker.config import WorkerSettings
from tenkaigen_worker.database.queue import PostgresQueue
from tenkaigen_worker.database.submissions import Submissions
from tenkaigen_worker.errors import DatabaseError
from tenkaigen_worker.jobs import Completion, Status
from tenkaigen_worker.maintenance import Rescued, expire, maintain, rescue

LOSE_ALL = "UPDATE generation_jobs SET lease_expires_at = now() - interval '1 second' WHERE status = 'processing'"
MAKE_DUE = "UPDATE generation_jobs SET run_at = now()"


@pytest.fixture
def submissions(pool: asyncpg.Pool[Any]) -> Submissions:
    return Submissions(pool)


@pytest.fixture
def queue(pool: asyncpg.Pool[Any]) -> PostgresQueue:
    return PostgresQueue(pool, "worker-1", 60)


async def test_a_lost_job_comes_back_until_no_attempt_is_left(
    pool: asyncpg.Pool[Any], submissions: Submissions, queue: PostgresQueue
) -> None:
    job = await submissions.submit({"prompt": "A phoenix", "max_attempts": 2})
    await queue.claim()
    assert await rescue(pool, 60) == Rescued()  # the lease still holds

    await pool.execute(LOSE_ALL)
    assert await rescue(pool, 60) == Rescued(queued=1)

    waiting = await submissions.get(job.id)
    assert waiting is not None
    assert (waiting.status, waiting.attempt, waiting.error_code) == (Status.QUEUED, 1, "worker_lost")
    assert (
        timedelta(seconds=3) < await pool.fetchval("SELECT run_at - now() FROM generation_jobs") < timedelta(seconds=7)
    )
    assert await rescue(pool, 60) == Rescued()

    await pool.execute(MAKE_DUE)
    await queue.claim()
    await pool.execute(LOSE_ALL)
    assert await rescue(pool, 60) == Rescued(failed=1)

    lost = await submissions.get(job.id)
    assert lost is not None
    assert (lost.status, lost.attempt, lost.error_code) == (Status.FAILED, 2, "worker_lost")
    assert lost.completed_at is not None


async def test_a_lost_job_that_shall_be_canceled_ends(
    pool: asyncpg.Pool[Any], submissions: Submissions, queue: PostgresQueue
) -> None:
    job = await submissions.submit({"prompt": "A phoenix"})
    await queue.claim()
    await submissions.cancel(job.id)
    await pool.execute(LOSE_ALL)

    assert await rescue(pool, 60) == Rescued(canceled=1)


async def test_a_row_without_a_lease_is_rescued_a_lease_after_its_start(
    pool: asyncpg.Pool[Any], submissions: Submissions
) -> None:
    await pool.execute(
        "INSERT INTO generation_jobs (prompt, status, created_at) VALUES "
        "('just now', 'processing', now()), ('long ago', 'processing', now() - interval '61 seconds')"
    )

    assert await rescue(pool, 60) == Rescued(queued=1)

    assert await pool.fetchval("SELECT prompt FROM generation_jobs WHERE status = 'queued'") == "long ago"


async def test_maintainers_share_the_work(pool: asyncpg.Pool[Any], queue: PostgresQueue) -> None:
    await pool.execute("INSERT INTO generation_jobs (prompt) SELECT 'x' FROM generate_series(1, 50)")
    while await queue.claim():
        pass
    await pool.execute(LOSE_ALL)

    rescued = await asyncio.gather(*(rescue(pool, 60) for _ in range(5)))

    assert sum(part.queued for part in rescued) == 50
    assert await pool.fetchval("SELECT count(*) FROM generation_jobs WHERE status = 'queued'") == 50


async def test_a_row_that_its_worker_is_just_writing_is_left_alone(
    pool: asyncpg.Pool[Any], submissions: Submissions, queue: PostgresQueue
) -> None:
    await submissions.submit({"prompt": "A phoenix"})
    job = await queue.claim()
    assert job is not None
    await pool.execute(LOSE_ALL)

    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("UPDATE generation_jobs SET progress = 1")
        assert await rescue(pool, 60) == Rescued()

    assert await queue.complete(job.lease, Completion((), {}, {}, 1))


async def test_pauses_grow_and_jobs_that_failed_together_come_back_apart(pool: asyncpg.Pool[Any]) -> None:
    pauses = [
        [await pool.fetchval("SELECT generation_jobs_backoff($1)", attempt) for _ in range(20)]
        for attempt in (1, 2, 3, 4, 20)
    ]

    for seconds, group in zip((5, 20, 80, 300, 300), pauses, strict=True):
        assert min(group) >= timedelta(seconds=0.75 * seconds)
        assert max(group) <= timedelta(seconds=1.25 * seconds)
        assert len(set(group)) > 10


async def test_queued_jobs_past_their_time_end(
    pool: asyncpg.Pool[Any], submissions: Submissions, queue: PostgresQueue
) -> None:
    now = await pool.fetchval("SELECT now()")
    late = await submissions.submit({"prompt": "late", "expires_at": now - timedelta(seconds=1)})
    await submissions.submit({"prompt": "in time", "expires_at": now + timedelta(hours=1)})
    await submissions.submit({"prompt": "whenever"})

    assert await expire(pool) == 1
    assert await expire(pool) == 0

    ended = await submissions.get(late.id)
    assert ended is not None
    assert (ended.status, ended.error_code) == (Status.FAILED, "expired")
    assert (await submissions.depth()).queued == 2


async def test_it_goes_on_after_an_outage_but_lets_workers_renew_first(
    pool: asyncpg.Pool[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    outcomes = iter([Rescued(), DatabaseError("away"), Rescued()])

    async def next_outcome(*_: object) -> Rescued:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def note(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 4:
            raise asyncio.CancelledError

    monkeypatch.setattr(maintenance, "rescue", next_outcome)
    monkeypatch.setattr(maintenance.asyncio, "sleep", note)

    with pytest.raises(asyncio.CancelledError):
        await maintain(pool, WorkerSettings(heartbeat_seconds=20, rescue_seconds=10))

    assert pauses == [20, 10, 20, 10]
