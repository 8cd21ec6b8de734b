"""``tenkaigen up``: database, API and worker together, supervised."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tenkaigen_worker.cli.context import load_settings
from tenkaigen_worker.cli.processes import Supervised
from tenkaigen_worker.cli.signals import cancel_on_stop

if TYPE_CHECKING:
    from tenkaigen_worker.config import Loaded

INSERT = "INSERT INTO generation_jobs (prompt, style) VALUES ('A dragon', 'Anime') RETURNING id;"
# A stop waits for the worker's own grace time, and then a little.
MARGIN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Stack:
    """A running set of processes: where the API and the database are; ``watch`` fails when they cannot go on."""

    url: str
    dsn: str
    watch: asyncio.Future[list[None]]


@click.command()
@click.pass_context
def up(ctx: click.Context) -> None:
    """Run everything here until Ctrl-C: PostgreSQL, the HTTP API and a worker.

    Without a worker.yaml it uses a database of its own in ./.tenkaigen and the demonstration model.

    \b
    Example:
      tenkaigen up
      tenkaigen psql -c "INSERT INTO generation_jobs (prompt, style) VALUES ('A dragon', 'Anime')"
    """
    from tenkaigen_worker.logs import configure_logging

    loaded = load_settings(ctx)
    configure_logging(loaded.settings.log)
    with suppress(asyncio.CancelledError):
        asyncio.run(_up(loaded))


async def _up(loaded: Loaded) -> None:
    cancel_on_stop()
    click.echo("Starting; the first time takes a little longer ...", err=True)
    async with running_stack(loaded, os.environ) as stack:
        click.echo(f"API       {stack.url}")
        click.echo(f"Database  {stack.dsn}")
        click.echo(f'Try       tenkaigen psql -c "{INSERT}"')
        await stack.watch


@asynccontextmanager
async def running_stack(
    loaded: Loaded, environ: Mapping[str, str], log_dir: Path | None = None
) -> AsyncIterator[Stack]:
    """Run database, migrations, API and worker while the block runs; it begins once both processes are ready.

    ``environ`` is what the configuration was loaded with: the processes get the same. Their output goes to files in
    ``log_dir``, or where ours goes. Raises
    :class:`~tenkaigen_worker.errors.TenkaigenError` when one of them cannot start.
    """
    from tenkaigen_worker.database.connect import connect, resolve_dsn
    from tenkaigen_worker.database.migrate import migrate

    settings = loaded.settings
    async with resolve_dsn(settings.database, settings.state_dir) as dsn:
        connection = await connect(settings.database, dsn, "tenkaigen up")
        try:
            await migrate(connection)
        finally:
            await connection.close()
        processes = _processes(loaded, {**environ, "TENKAIGEN_DATABASE__URL": dsn}, log_dir)
        running = [asyncio.create_task(process.keep_running(), name=process.name) for process in processes]
        watch = asyncio.gather(*running)
        try:
            url, _ = await _until_ready(watch, processes)
            yield Stack(url, dsn, watch)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, watch, return_exceptions=True)


def _processes(loaded: Loaded, environ: dict[str, str], log_dir: Path | None) -> list[Supervised]:
    settings = loaded.settings
    common = ["--config", str(loaded.file)] if loaded.file else []
    if loaded.file is None and loaded.origins["engine.backend"] == "default":
        environ["TENKAIGEN_ENGINE__BACKEND"] = "tiny"
    if log_dir is not None:
        log_dir.mkdir(parents=True, exist_ok=True)
    return [
        Supervised(
            name,
            [*common, name, "--until-stdin-closes"],
            environ=environ,
            grace_seconds=settings.worker.grace_seconds + MARGIN_SECONDS,
            log_file=log_dir / f"{name}.log" if log_dir else None,
        )
        for name in ("api", "worker")
    ]


async def _until_ready(watch: asyncio.Future[list[None]], processes: Sequence[Supervised]) -> list[str]:
    """Wait for all processes and answer what each one says of itself; raises when one ends before."""
    for process in processes:
        either: set[asyncio.Future[Any]] = {process.ready, watch}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if watch.done():
            await watch
    return [process.ready.result() for process in processes]
