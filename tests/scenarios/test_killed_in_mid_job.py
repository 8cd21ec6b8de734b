"""A worker, or its engine, is killed in the middle of a job: another attempt completes it, and nothing is left over."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg
import psutil
import pytest

from tests.scenarios.program import PATIENCE_SECONDS, Start

SLOW = "A phoenix rising [slow 0.05]"


async def until_final(pool: asyncpg.Pool, job_id: object) -> asyncpg.Record:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            row = await pool.fetchrow("SELECT * FROM generation_jobs WHERE id = $1", job_id)
            if row["status"] in ("completed", "failed", "canceled"):
                return row
            await asyncio.sleep(0.05)


async def insert(pool: asyncpg.Pool, prompt: str) -> object:
    return await pool.fetchval("INSERT INTO generation_jobs (prompt, style) VALUES ($1, 'Anime') RETURNING id", prompt)


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / ".tenkaigen" / "files").rglob("*.png"))


@pytest.mark.parametrize(("backend", "prompt"), [("blank", SLOW), ("tiny", "A phoenix rising")])
async def test_killed_worker(backend: str, prompt: str, start: Start, pool: asyncpg.Pool, tmp_path: Path) -> None:
    doomed = await start("worker", TENKAIGEN_ENGINE__BACKEND=backend)
    await doomed.until("worker_ready")
    job_id = await insert(pool, prompt)
    await doomed.until("job_generating")
    engines = doomed.children()
    assert engines

    doomed.kill()
    await doomed.wait()
    psutil.wait_procs(engines, timeout=PATIENCE_SECONDS)
    assert not [engine for engine in engines if engine.is_running()], "the engine outlived its worker"

    await start("worker", TENKAIGEN_ENGINE__BACKEND=backend)
    row = await until_final(pool, job_id)
    assert (row["status"], row["attempt"], row["lease_token"]) == ("completed", 2, 2)
    assert len(files_of(tmp_path)) == 1
    assert row["result_url"].endswith(files_of(tmp_path)[0])


@pytest.mark.parametrize(("backend", "prompt"), [("blank", SLOW), ("tiny", "A phoenix rising")])
async def test_killed_engine(backend: str, prompt: str, start: Start, pool: asyncpg.Pool, tmp_path: Path) -> None:
    worker = await start("worker", TENKAIGEN_ENGINE__BACKEND=backend)
    await worker.until("worker_ready")
    job_id = await insert(pool, prompt)
    await worker.until("job_generating")

    (engine,) = worker.children()
    engine.kill()
    await worker.until("job_retried")
    await pool.execute("UPDATE generation_jobs SET run_at = now() WHERE id = $1", job_id)  # do not wait out the backoff

    row = await until_final(pool, job_id)
    assert (row["status"], row["attempt"]) == ("completed", 2)
    assert len(files_of(tmp_path)) == 1
    assert worker.process.returncode is None
    assert len(worker.children()) == 1
