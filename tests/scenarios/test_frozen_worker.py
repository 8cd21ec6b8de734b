"""A worker stands still past its lease and wakes up again: the job is another's by then, and nothing changes."""

from __future__ import annotations

import signal
from pathlib import Path

import asyncpg
import psutil
import pytest

from tests.scenarios.program import Start
from tests.scenarios.rows import insert, keys_of, skip_backoff, until_final


@pytest.mark.parametrize("engine_too", [True, False], ids=["with_its_engine", "alone"])
async def test_a_woken_worker_changes_nothing(
    engine_too: bool, start: Start, pool: asyncpg.Pool, tmp_path: Path
) -> None:
    sleeper = await start("worker")
    await sleeper.until("worker_ready")
    job_id = await insert(pool, "A phoenix rising [slow 0.05]")
    await sleeper.until("job_generating")
    frozen = [psutil.Process(sleeper.pid), *(sleeper.children() if engine_too else [])]
    for process in frozen:
        process.suspend()

    heir = await start("worker")
    await heir.until("job_rescued")
    await skip_backoff(pool)
    row = await until_final(pool, job_id)
    assert (row["status"], row["attempt"], row["lease_token"]) == ("completed", 2, 2)
    heir.process.send_signal(signal.SIGTERM)
    assert await heir.wait() == 0

    for process in frozen:
        process.resume()
    lost = await sleeper.until("job_lease_lost")
    assert lost["job_id"] == str(job_id)

    next_id = await insert(pool, "The woken worker goes on")
    next_row = await until_final(pool, next_id)
    assert (next_row["status"], next_row["attempt"]) == ("completed", 1)
    sleeper.process.send_signal(signal.SIGTERM)
    assert await sleeper.wait() == 0
    assert await until_final(pool, job_id) == row

    root = tmp_path / ".tenkaigen" / "files"
    assert {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} == keys_of(row, next_row)
