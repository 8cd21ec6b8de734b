"""Storage goes away in the middle: finished pictures wait for it, and none is made a second time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg
import pytest

from tests.scenarios.program import PATIENCE_SECONDS, Program, Start
from tests.scenarios.rows import POLL_SECONDS, insert, until_final, until_none_open
from tests.supabase_storage import Fault, StandIn


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Where pictures go. A file stands in the way of the folder: permissions would not stop root."""
    folder = tmp_path / "files"
    folder.write_text("in the way")
    return folder


async def start_worker(start: Start, files: Path, **environ: str) -> Program:
    worker = await start("worker", TENKAIGEN_STORAGE__LOCAL__PATH=str(files), **environ)
    await worker.until("worker_ready")
    return worker


def repair(files: Path) -> None:
    files.unlink()
    files.mkdir()


def names(files: Path) -> list[str]:
    return sorted(str(path.relative_to(files)) for path in files.rglob("*.png"))


def said(worker: Program, action: str) -> int:
    return sum(line.get("action") == action for line in worker.lines)


async def until(pool: asyncpg.Pool, condition: str) -> None:
    """Wait until a condition holds for the whole table."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            if await pool.fetchval(f"SELECT {condition} FROM generation_jobs"):
                return
            await asyncio.sleep(POLL_SECONDS)


async def test_pictures_wait_for_storage_and_are_made_once(start: Start, pool: asyncpg.Pool, files: Path) -> None:
    worker = await start_worker(start, files)
    for number in range(2):
        await insert(pool, f"A phoenix, take {number}")
    await until(pool, "count(*) FILTER (WHERE stage = 'publishing') = 2")
    await worker.until("upload_waits", times=4)

    # With two jobs that wait for storage it claims no third, however long it takes, and keeps the two.
    for number in range(2):
        await insert(pool, f"A unicorn, take {number}")
    held_until = await pool.fetchval("SELECT max(lease_expires_at) FROM generation_jobs")
    await until(pool, f"now() > '{held_until}' AND min(lease_expires_at) > '{held_until}'")
    assert said(worker, "job_claimed") == said(worker, "job_generating") == 2

    repair(files)
    await until_none_open(pool)
    rows = await pool.fetch("SELECT status, attempt, lease_token, outputs FROM generation_jobs")
    assert {(row["status"], row["attempt"], row["lease_token"]) for row in rows} == {("completed", 1, 1)}
    assert said(worker, "job_generating") == 4
    assert names(files) == sorted(output["key"] for row in rows for output in row["outputs"])


async def test_supabase_is_away_for_ten_minutes_under_load(start: Start, pool: asyncpg.Pool) -> None:
    """Ten leases long: with the default lease of a minute, ten minutes. Jobs keep coming meanwhile."""
    async with StandIn().serving() as server:
        worker = await start("worker", **server.environ, TENKAIGEN_WORKER__LEASE_SECONDS="1.2")
        await worker.until("worker_ready")
        await insert(pool, "A phoenix, before")
        await worker.until("job_completed")

        server.down = Fault.PAGE_503
        began = await pool.fetchval("SELECT now()")
        for number in range(20):
            await insert(pool, f"A unicorn, take {number}")
        await worker.until("upload_waits", times=2)
        await until(pool, f"now() > '{began}'::timestamptz + interval '12 seconds'")
        # Two jobs wait for storage, and the engine has stopped. A third may have been claimed ahead, and is given back.
        assert said(worker, "job_generating") == 3
        assert said(worker, "job_claimed") - said(worker, "job_released") == 3
        assert await pool.fetchval("SELECT count(*) FROM generation_jobs WHERE stage = 'publishing'") == 2

        server.down = None
        await until_none_open(pool)
        rows = await pool.fetch("SELECT status, attempt, outputs FROM generation_jobs")
        assert {(row["status"], row["attempt"]) for row in rows} == {("completed", 1)}
        assert said(worker, "job_generating") == len(rows) == 21
        outputs = [output for row in rows for output in row["outputs"]]
        named = {output[kind] for output in outputs for kind in ("key", "thumbnail_key")}
        assert {f"generated-designs/{key}" for key in named} == {name for name, _ in server.objects()}
        assert set(server.written.values()) == {1}


async def test_a_job_is_canceled_while_it_waits_for_storage(start: Start, pool: asyncpg.Pool, files: Path) -> None:
    worker = await start_worker(start, files)
    job_id = await insert(pool, "A phoenix rising")
    await worker.until("upload_waits", times=2)
    await pool.execute("UPDATE generation_jobs SET cancel_requested_at = now() WHERE id = $1", job_id)
    await worker.until("job_canceled")
    assert (await until_final(pool, job_id))["status"] == "canceled"

    repair(files)
    await insert(pool, "The worker is usable at once")
    await worker.until("job_completed")
    assert len(names(files)) == 1


async def test_patience_with_storage_ends_with_a_reason_in_the_row(
    start: Start, pool: asyncpg.Pool, files: Path
) -> None:
    worker = await start_worker(start, files, TENKAIGEN_WORKER__PUBLISH_SECONDS="0.5")
    job_id = await insert(pool, "A phoenix rising")
    await pool.execute("UPDATE generation_jobs SET max_attempts = 1 WHERE id = $1", job_id)
    await worker.until("job_failed")
    row = await until_final(pool, job_id)
    assert (row["status"], row["error_code"]) == ("failed", "upload_failed")
    assert str(files) in row["error_message"]
    assert "storage.local.path" in row["error_message"]


async def test_a_spool_that_cannot_be_used_is_said_at_start(start: Start, tmp_path: Path) -> None:
    (tmp_path / ".tenkaigen").mkdir()
    (tmp_path / ".tenkaigen" / "spool").write_text("in the way")
    worker = await start("worker")
    assert await worker.wait() == 1
    await worker.close()
    assert "spool" in "".join(worker.raw)
    assert "set state_dir" in "".join(worker.raw)
    assert "Traceback" not in "".join(worker.raw)
