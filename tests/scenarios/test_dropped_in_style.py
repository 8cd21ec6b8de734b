"""A style is dropped into the folder of a worker that runs: the next job may use it. A broken one disturbs nobody."""

from __future__ import annotations

from pathlib import Path

import asyncpg

from tests.scenarios.program import Start


async def test_a_dropped_in_style_is_usable_at_once(start: Start, pool: asyncpg.Pool, tmp_path: Path) -> None:
    folder = tmp_path / "plugins" / "styles"
    folder.mkdir(parents=True)
    worker = await start("worker")
    await worker.until("worker_ready")

    (folder / "broken.yaml").write_text('name: Broken\nprompt: "no place for the words"\n')
    (folder / "neon.yaml").write_text('name: Neon\nprompt: "{prompt}, neon sign"\n')
    await pool.execute("INSERT INTO generation_jobs (prompt, style) VALUES ('A fox', 'neon'), ('A cat', 'Anime')")
    await worker.until("job_completed", times=2)

    assert (
        await pool.fetchval("SELECT recipe->>'prompt' FROM generation_jobs WHERE style = 'neon'") == "A fox, neon sign"
    )
    problem = await worker.until("plugin_problem")
    assert "plugins/styles/broken.yaml:2: prompt: the template needs {prompt}" in problem["message"]
