"""A style that only one of two workers has: whoever claims the job, that one makes it."""

from __future__ import annotations

import json
from pathlib import Path

import asyncpg
import psutil

from tests.scenarios.program import Start
from tests.scenarios.rows import skip_backoff, until_final

INSERT = "INSERT INTO generation_jobs (prompt, style) VALUES ('A phoenix rising', 'ukiyo-e') RETURNING id"


async def test_the_worker_without_it_leaves_the_job_to_the_other(
    start: Start, pool: asyncpg.Pool, tmp_path: Path
) -> None:
    folder = tmp_path / "of_one_worker"
    folder.mkdir()
    rich = await start("worker", TENKAIGEN_PLUGINS__PATHS=json.dumps([str(folder)]))
    poor = await start("worker")
    await rich.until("worker_announced")
    await poor.until("worker_announced")
    # Dropped in while it runs: it says so without being asked.
    (folder / "ukiyo_e.yaml").write_text("name: Ukiyo-e\n")
    announced = await rich.until("worker_announced", times=2)

    # While the one that has it stands still, the other one must be first.
    sleeper = psutil.Process(rich.pid)
    sleeper.suspend()
    job_id = await pool.fetchval(INSERT)
    await poor.until("job_elsewhere")
    poor.process.terminate()
    assert await poor.wait() == 0

    sleeper.resume()
    await skip_backoff(pool)
    row = await until_final(pool, job_id)
    assert (row["status"], row["attempt"], row["lease_token"]) == ("completed", 1, 2)
    assert row["worker_id"] == announced["worker_id"]
    assert row["recipe"]["style"] == "Ukiyo-e"

    # Who ends in order is not announced any more; who is alone with a style that nobody has fails its job.
    assert [row["id"] for row in await pool.fetch("SELECT id FROM generation_workers")] == [announced["worker_id"]]
    (folder / "ukiyo_e.yaml").unlink()
    await rich.until("worker_announced", times=3)
    row = await until_final(pool, await pool.fetchval(INSERT))
    assert (row["status"], row["error_code"]) == ("failed", "invalid_request")
