"""Somebody changes a row, or locks the table, while a worker is at it: a clear line, no file left, and it goes on."""

from __future__ import annotations

import signal
from pathlib import Path

import asyncpg
import pytest

from tests.scenarios.program import Program, Start
from tests.scenarios.rows import insert, keys_of, skip_backoff, until_final

DELETED = "DELETE FROM generation_jobs WHERE id = $1"
FAILED = "UPDATE generation_jobs SET status = 'failed', error_message = 'by hand' WHERE id = $1"
TOKEN_RAISED = "UPDATE generation_jobs SET lease_token = lease_token + 1 WHERE id = $1"

# With these the worker looks at the row only when it has its picture.
LOOKS_LATE = {
    "TENKAIGEN_WORKER__LEASE_SECONDS": "600",
    "TENKAIGEN_WORKER__HEARTBEAT_SECONDS": "250",
    "TENKAIGEN_WORKER__PROGRESS_SECONDS": "250",
}


async def goes_on(worker: Program, pool: asyncpg.Pool) -> asyncpg.Record:
    """Have another job made, and end the worker in order: whatever it removes is removed by then."""
    row = await until_final(pool, await insert(pool, "The worker goes on"))
    assert (row["status"], row["attempt"]) == ("completed", 1)
    worker.process.send_signal(signal.SIGTERM)
    assert await worker.wait() == 0
    return row


def files_of(folder: Path) -> set[str]:
    root = folder / ".tenkaigen" / "files"
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("change", [DELETED, FAILED], ids=["deleted", "failed_by_hand"])
@pytest.mark.parametrize(
    ("prompt", "environ"),
    [("A phoenix [slow 60]", {}), ("A phoenix [slow 0.2]", LOOKS_LATE)],
    ids=["seen_by_heartbeat", "seen_when_writing"],
)
async def test_a_row_that_is_over(
    change: str, prompt: str, environ: dict[str, str], start: Start, pool: asyncpg.Pool, tmp_path: Path
) -> None:
    worker = await start("worker", **environ)
    await worker.until("worker_ready")
    job_id = await insert(pool, prompt)
    await worker.until("job_generating")

    await pool.execute(change, job_id)
    lost = await worker.until("job_lease_lost")
    assert (lost["job_id"], lost["level"]) == (str(job_id), "WARNING")
    assert "no longer ours" in lost["message"]

    other = await goes_on(worker, pool)
    assert files_of(tmp_path) == keys_of(other)
    row = await pool.fetchrow("SELECT * FROM generation_jobs WHERE id = $1", job_id)
    assert row is None or (row["status"], row["error_message"], row["outputs"]) == ("failed", "by hand", [])


async def test_a_raised_token_is_another_lease(start: Start, pool: asyncpg.Pool, tmp_path: Path) -> None:
    worker = await start("worker")
    await worker.until("worker_ready")
    job_id = await insert(pool, "A phoenix [slow 0.2]")
    await worker.until("job_generating")

    await pool.execute(TOKEN_RAISED, job_id)
    await worker.until("job_lease_lost")
    await worker.until("job_rescued")
    await skip_backoff(pool)
    row = await until_final(pool, job_id)
    assert (row["status"], row["attempt"], row["lease_token"]) == ("completed", 2, 3)
    other = await goes_on(worker, pool)
    assert files_of(tmp_path) == keys_of(row, other)


async def test_a_locked_table_only_takes_time(start: Start, pool: asyncpg.Pool, tmp_path: Path) -> None:
    environ = {
        "TENKAIGEN_WORKER__LEASE_SECONDS": "600",
        "TENKAIGEN_DATABASE__COMMAND_TIMEOUT_SECONDS": "0.5",
        "TENKAIGEN_WORKER__POLL_SECONDS_LISTENING": "0.5",
    }
    worker = await start("worker", **environ)
    await worker.until("worker_ready")
    job_id = await insert(pool, "A phoenix [slow 0.1]")
    await worker.until("job_generating")

    async with pool.acquire() as migration, migration.transaction():
        await migration.execute("LOCK TABLE generation_jobs IN ACCESS EXCLUSIVE MODE")
        waits = await worker.until("write_waits")
        assert "did not answer in time" in waits["message"]
        await worker.until("maintenance_failed")

    row = await until_final(pool, job_id)
    assert (row["status"], row["attempt"], row["lease_token"]) == ("completed", 1, 1)
    other = await goes_on(worker, pool)
    assert files_of(tmp_path) == keys_of(row, other)
