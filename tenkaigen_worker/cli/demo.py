"""``tenkaigen demo``: three rows inserted by plain SQL, three pictures."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tenkaigen_worker.cli.signals import cancel_on_stop
from tenkaigen_worker.errors import TenkaigenError

if TYPE_CHECKING:
    from tenkaigen_worker.config import Settings
    from tenkaigen_worker.jobs import JobView

INSERTS = (
    "INSERT INTO generation_jobs (prompt, style) VALUES ('A cyberpunk samurai', 'Anime')",
    "INSERT INTO generation_jobs (prompt, style) VALUES ('A phoenix rising', 'Watercolor')",
    "INSERT INTO generation_jobs (prompt, style) VALUES ('A lighthouse in a storm', 'Line Art')",
)

FAREWELL = (
    "The pictures are noise, and should be: this is the real Qwen-Image pipeline, but a demonstration model with tiny, "
    "untrained weights. For real pictures, on a machine with a GPU, set engine.backend to diffusers and engine.model "
    "to Qwen/Qwen-Image: docs/setup.md."
)


@click.command()
@click.pass_context
def demo(ctx: click.Context) -> None:
    """Make three pictures: start everything, insert three rows by plain SQL, follow them, end everything.

    Whatever the configuration says, it uses a database of its own and the untrained demonstration model. All that it
    leaves is in ./.tenkaigen.

    \b
    Example:
      tenkaigen demo
    """
    try:
        asyncio.run(_demo())
    except asyncio.CancelledError:
        click.echo("Stopped; everything is shut down.", err=True)
        ctx.exit(130)


async def _demo() -> None:
    from tenkaigen_worker.cli.stack import running_stack
    from tenkaigen_worker.config import load

    cancel_on_stop()
    # Nothing of what is configured here may lead a demonstration to somebody's real database.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TENKAIGEN_")}
    loaded = load(_configuration(), environ)
    logs = loaded.settings.state_dir / "logs"
    click.echo(f"Starting PostgreSQL, the API and a worker; their logs are in {logs}")
    async with running_stack(loaded, environ, log_dir=logs) as stack:
        jobs = await _insert_and_follow(stack.dsn)
    click.echo()
    for job in jobs:
        await _show(job, loaded.settings)
    click.echo(f"\n{FAREWELL}")


def _configuration() -> Path:
    """Write the demonstration's configuration: the defaults, the demonstration model, and ports that nobody uses."""
    from tenkaigen_worker.config import Settings

    api_port, health_port = _free_ports(2)
    file = Settings().state_dir / "demo.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(
        f"engine:\n  backend: tiny\napi:\n  port: {api_port}\nworker:\n  health_port: {health_port}\n",
        encoding="utf-8",
    )
    return file


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


async def _insert_and_follow(dsn: str) -> list[JobView]:
    from rich.console import Console

    from tenkaigen_worker.cli.follow import follow
    from tenkaigen_worker.config import DatabaseSettings
    from tenkaigen_worker.database.connect import open_pool
    from tenkaigen_worker.database.submissions import Submissions

    async with await open_pool(DatabaseSettings(), dsn, "tenkaigen demo") as pool:
        submissions = Submissions(pool)
        jobs = []
        for statement in INSERTS:
            click.echo(f"  {statement};")
            job = await submissions.get(await pool.fetchval(f"{statement} RETURNING id"))
            assert job is not None  # noqa: S101 - it was inserted a moment ago
            jobs.append(job)
        finished = []
        async for job in follow(jobs, submissions.get, Console()):
            click.echo(f"  {job.prompt}, {job.style}: {job.status}")
            finished.append(job)
        return finished


async def _show(job: JobView, settings: Settings) -> None:
    from tenkaigen_worker.images import read_recipe
    from tenkaigen_worker.jobs import Status
    from tenkaigen_worker.storage.factory import make_storage

    if job.status is not Status.COMPLETED:
        raise TenkaigenError(f"Job {job.id} {job.status}: {job.error_message}")
    path = await make_storage(settings).find(job.outputs[0].key)
    if path is None:
        raise TenkaigenError(f"The picture of job {job.id} is not where it was stored: {job.outputs[0].url}")
    made = read_recipe(path)
    click.echo(path)
    click.echo(f"  {made.recipe.style}, seed {made.seed}, {made.recipe.steps} steps: {made.recipe.prompt}")
