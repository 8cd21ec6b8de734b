"""Workers are killed where a file is already there: a later attempt removes it, or maintenance where there is none."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest

from tests.scenarios.program import PATIENCE_SECONDS, Start
from tests.scenarios.rows import insert, keys_of, skip_backoff, until_final, until_none_marked

# Completing waits at its commit until nobody else holds the lock.
WAIT_AT_COMMIT = """
CREATE FUNCTION wait_at_commit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(1);
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER wait_at_commit AFTER UPDATE OF status ON generation_jobs DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW WHEN (NEW.status = 'completed') EXECUTE FUNCTION wait_at_commit();
"""
SOMEBODY_WAITS = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)"


async def until(pool: asyncpg.Pool, question: str) -> None:
    """Wait until the database answers a question with yes."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            if await pool.fetchval(question):
                return
            await asyncio.sleep(0.02)


async def a_killed_attempt(start: Start, pool: asyncpg.Pool, root: Path, left: str) -> tuple[UUID, Path]:
    """Have a worker killed in its first attempt at a job, as if just then it was at the file named ``left``."""
    doomed = await start("worker")
    await doomed.until("worker_ready")
    job_id = await insert(pool, "A phoenix rising [slow 0.05]")
    await doomed.until("job_generating")
    doomed.kill()
    await doomed.wait()
    folder = root / ".tenkaigen" / "files" / "anonymous" / str(job_id)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / left).write_bytes(b"\x89PNG")
    return job_id, folder


@pytest.mark.parametrize(
    "left",
    [
        pytest.param("1-0-d885c0da9268.png", id="stored"),
        pytest.param(".1-0-d885c0da9268.png.966801b0.tmp", id="half_written"),
    ],
)
async def test_a_later_attempt_removes_it(left: str, start: Start, pool: asyncpg.Pool, tmp_path: Path) -> None:
    job_id, folder = await a_killed_attempt(start, pool, tmp_path, left)
    heir = await start("worker")
    await heir.until("job_rescued")
    await skip_backoff(pool)
    row = await until_final(pool, job_id)
    heir.process.send_signal(signal.SIGTERM)
    assert await heir.wait() == 0
    assert {path.name for path in folder.iterdir()} == {Path(key).name for key in keys_of(row)}


async def test_nobody_tries_again_and_another_worker_removes_it(
    start: Start, pool: asyncpg.Pool, tmp_path: Path
) -> None:
    _, folder = await a_killed_attempt(start, pool, tmp_path, "1-0-d885c0da9268.png")
    await pool.execute("UPDATE generation_jobs SET max_attempts = 1")
    heir = await start("worker")
    await heir.until("job_rescued")
    await until_none_marked(pool)
    assert not folder.exists()


async def test_killed_between_the_outcome_and_the_removal(start: Start, pool: asyncpg.Pool, tmp_path: Path) -> None:
    job_id, folder = await a_killed_attempt(start, pool, tmp_path, "1-0-d885c0da9268.png")
    await pool.execute(WAIT_AT_COMMIT)
    heir = await start("worker")
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(1)")
        await heir.until("job_rescued")
        await skip_backoff(pool)
        await until(pool, SOMEBODY_WAITS)
        heir.kill()
        await heir.wait()

    row = await until_final(pool, job_id)
    assert (row["status"], row["attempt"]) == ("completed", 2)
    assert {path.name for path in folder.iterdir()} == {Path(key).name for key in keys_of(row)}
