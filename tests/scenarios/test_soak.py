"""Workers are killed again and again at random moments: every job is completed once, and nothing is left over."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import asyncpg
import pytest

from tests.scenarios.program import Start
from tests.scenarios.rows import skip_backoff, until_none_open

JOBS = 200
KILLS = 40


@pytest.mark.soak
async def test_forty_kills(start: Start, pool: asyncpg.Pool, tmp_path: Path) -> None:
    await pool.executemany(
        "INSERT INTO generation_jobs (prompt, style, max_attempts) VALUES ($1, 'Anime', 20)",
        [(f"A phoenix, take {number} [slow 0.02]",) for number in range(JOBS)],
    )
    workers = [await start("worker") for _ in range(2)]
    moments = random.Random(20)
    for number in range(KILLS):
        doomed = workers[number % 2]
        await doomed.until("job_generating")
        await asyncio.sleep(moments.uniform(0, 0.3))
        doomed.kill()
        await doomed.wait()
        workers[number % 2] = await start("worker")

    for worker in workers:
        await worker.until("worker_ready")
    await skip_backoff(pool)
    await until_none_open(pool)

    rows = await pool.fetch("SELECT status, attempt, lease_token, outputs FROM generation_jobs")
    assert {row["status"] for row in rows} == {"completed"}
    assert all(row["attempt"] == row["lease_token"] for row in rows), (
        "nobody gave a job back: each claim was an attempt"
    )
    named = {output["key"] for row in rows for output in row["outputs"]}
    root = tmp_path / ".tenkaigen" / "files"
    assert {str(path.relative_to(root)) for path in root.rglob("*.png")} == named
    print(f"{JOBS} jobs, {KILLS} kills, {sum(row['attempt'] for row in rows) - JOBS} attempts lost")
