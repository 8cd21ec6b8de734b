"""A worker, or its engine, is killed in the middle of a job: another attempt completes it, and nothing is left over."""

from __future__ import annotations

from pathlib import Path

import asyncpg
import psutil
import pytest

from tests.scenarios.program import PATIENCE_SECONDS, Start
from tests.scenarios.rows import insert, skip_backoff, until_final

# Tests run side by side, one per core: more torch threads than that wait for each other.
ONE_THREAD = {"TENKAIGEN_ENGINE__THREADS": "1"}
SLOW = "A phoenix rising [slow 0.05]"


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / ".tenkaigen" / "files").rglob("*.png"))


@pytest.mark.parametrize(("backend", "prompt"), [("blank", SLOW), ("tiny", "A phoenix rising")])
async def test_killed_worker(backend: str, prompt: str, start: Start, pool: asyncpg.Pool, tmp_path: Path) -> None:
    doomed = await start("worker", TENKAIGEN_ENGINE__BACKEND=backend, **ONE_THREAD)
    await doomed.until("worker_ready")
    job_id = await insert(pool, prompt)
    await doomed.until("job_generating")
    engines = doomed.children()
    assert engines

    doomed.kill()
    await doomed.wait()
    psutil.wait_procs(engines, timeout=PATIENCE_SECONDS)
    assert not [engine for engine in engines if engine.is_running()], "the engine outlived its worker"

    heir = await start("worker", TENKAIGEN_ENGINE__BACKEND=backend, **ONE_THREAD)
    await heir.until("job_rescued")
    await skip_backoff(pool)
    row = await until_final(pool, job_id)
    assert (row["status"], row["attempt"], row["lease_token"]) == ("completed", 2, 2)
    assert len(files_of(tmp_path)) == 1
    assert row["result_url"].endswith(files_of(tmp_path)[0])


@pytest.mark.parametrize(("backend", "prompt"), [("blank", SLOW), ("tiny", "A phoenix rising")])
async def test_killed_engine(backend: str, prompt: str, start: Start, pool: asyncpg.Pool, tmp_path: Path) -> None:
    worker = await start("worker", TENKAIGEN_ENGINE__BACKEND=backend, **ONE_THREAD)
    await worker.until("worker_ready")
    job_id = await insert(pool, prompt)
    await worker.until("job_generating")

    (engine,) = worker.children()
    engine.kill()
    await worker.until("job_retried")
    await skip_backoff(pool)
    row = await until_final(pool, job_id)
    assert (row["status"], row["attempt"]) == ("completed", 2)
    assert len(files_of(tmp_path)) == 1
    assert worker.process.returncode is None
    assert len(worker.children()) == 1
