"""A worker is asked to end, or to end when the queue is empty: nothing is lost, no attempt is taken away."""

from __future__ import annotations

import asyncio
import signal

import asyncpg

from tests.scenarios.program import PATIENCE_SECONDS, Start

INSERT = "INSERT INTO generation_jobs (prompt, style) VALUES ($1, 'Anime') RETURNING id"


async def test_sigterm_finishes_the_job_in_hand(start: Start, pool: asyncpg.Pool) -> None:
    worker = await start("worker")
    await worker.until("worker_ready")
    job_id = await pool.fetchval(INSERT, "A phoenix rising [slow 0.02]")
    await worker.until("job_generating")

    worker.process.send_signal(signal.SIGTERM)
    assert await worker.wait() == 0
    row = await pool.fetchrow("SELECT status, attempt FROM generation_jobs WHERE id = $1", job_id)
    assert (row["status"], row["attempt"]) == ("completed", 1)


async def test_a_second_signal_gives_the_job_back_with_its_attempt(start: Start, pool: asyncpg.Pool) -> None:
    worker = await start("worker")
    await worker.until("worker_ready")
    job_id = await pool.fetchval(INSERT, "A phoenix rising [slow 60]")
    await worker.until("job_generating")

    worker.process.send_signal(signal.SIGINT)
    await worker.until("finishing")
    worker.process.send_signal(signal.SIGINT)
    assert await worker.wait() == 0
    row = await pool.fetchrow("SELECT * FROM generation_jobs WHERE id = $1", job_id)
    assert (row["status"], row["attempt"], row["lease_token"]) == ("queued", 0, 1)


async def test_grace_that_runs_out_gives_the_job_back(start: Start, pool: asyncpg.Pool) -> None:
    worker = await start("worker", TENKAIGEN_WORKER__GRACE_SECONDS="0.1")
    await worker.until("worker_ready")
    job_id = await pool.fetchval(INSERT, "A phoenix rising [slow 60]")
    await worker.until("job_generating")

    worker.process.send_signal(signal.SIGTERM)
    assert await worker.wait() == 0
    row = await pool.fetchrow("SELECT status, attempt FROM generation_jobs WHERE id = $1", job_id)
    assert (row["status"], row["attempt"]) == ("queued", 0)


async def test_drain_ends_when_the_queue_is_empty(start: Start, pool: asyncpg.Pool) -> None:
    await pool.executemany(INSERT, [(f"A phoenix, take {number}",) for number in range(12)])
    worker = await start("worker", "--drain")
    assert await worker.wait() == 0
    statuses = await pool.fetch("SELECT DISTINCT status, attempt FROM generation_jobs")
    assert [(row["status"], row["attempt"]) for row in statuses] == [("completed", 1)]


async def test_drain_waits_for_what_is_tried_again(start: Start, pool: asyncpg.Pool) -> None:
    job_id = await pool.fetchval(INSERT, "A phoenix rising [fail]")
    worker = await start("worker", "--drain", TENKAIGEN_WORKER__POLL_SECONDS="0.1")
    await worker.until("job_retried")
    await pool.execute("UPDATE generation_jobs SET prompt = 'A phoenix rising', run_at = now() WHERE id = $1", job_id)
    assert await worker.wait() == 0
    row = await pool.fetchrow("SELECT status, attempt FROM generation_jobs WHERE id = $1", job_id)
    assert (row["status"], row["attempt"]) == ("completed", 2)


async def test_a_running_job_is_canceled_at_its_next_step(start: Start, pool: asyncpg.Pool) -> None:
    worker = await start("worker", TENKAIGEN_WORKER__HEARTBEAT_SECONDS="0.9")
    await worker.until("worker_ready")
    job_id = await pool.fetchval(INSERT, "A phoenix rising [slow 60]")
    await worker.until("job_generating")

    await pool.execute("UPDATE generation_jobs SET cancel_requested_at = now() WHERE id = $1", job_id)
    await worker.until("job_canceled")
    assert await pool.fetchval("SELECT status FROM generation_jobs WHERE id = $1", job_id) == "canceled"

    await pool.execute(INSERT, "The engine is usable at once")
    await worker.until("job_completed")


async def test_two_workers_share_the_queue_and_no_job_runs_twice(start: Start, pool: asyncpg.Pool) -> None:
    await pool.executemany(INSERT, [(f"A phoenix, take {number} [slow 0.01]",) for number in range(20)])
    workers = [await start("worker", "--drain") for _ in range(2)]
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert [await worker.wait() for worker in workers] == [0, 0]

    rows = await pool.fetch("SELECT status, attempt, lease_token, worker_id FROM generation_jobs")
    assert {(row["status"], row["attempt"], row["lease_token"]) for row in rows} == {("completed", 1, 1)}
    assert len({row["worker_id"] for row in rows}) == 2
