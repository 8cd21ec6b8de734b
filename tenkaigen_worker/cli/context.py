"""What the commands share: the settings, the opened job table, and an orderly end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tenkaigen_worker.cli.signals import cancel_on_stop

if TYPE_CHECKING:
    import asyncpg

    from tenkaigen_worker.config import Loaded, Settings

T = TypeVar("T")


def load_settings(ctx: click.Context) -> Loaded:
    """Read the configuration named by ``--config``, or the one in this folder, or the defaults."""
    from tenkaigen_worker.config import load

    return load(ctx.find_root().obj)


def run(main: Coroutine[Any, Any, T], *, if_stopped: str = "Stopped.") -> T:
    """Run a command to its end. Told to stop, it closes what it opened, such as an embedded server, and exits with 130.

    ``if_stopped`` is what it says then.
    """

    async def stoppable() -> T:
        cancel_on_stop()
        return await main

    try:
        return asyncio.run(stoppable())
    except asyncio.CancelledError:
        click.echo(if_stopped, err=True)
        raise click.exceptions.Exit(130) from None


@asynccontextmanager
async def opened(settings: Settings, application_name: str) -> AsyncIterator[asyncpg.Pool]:
    """Yield connections to the configured database, whose job table is the one that this program needs.

    Raises :class:`~tenkaigen_worker.errors.DatabaseError` when it cannot be reached, or has another table or none.
    """
    from tenkaigen_worker.database.connect import EMBEDDED, open_pool, resolve_dsn
    from tenkaigen_worker.database.migrate import check_schema, pending
    from tenkaigen_worker.errors import DatabaseError

    embedded = settings.database.url.get_secret_value() == EMBEDDED
    async with (
        resolve_dsn(settings.database, settings.state_dir) as dsn,
        await open_pool(settings.database, dsn, application_name) as pool,
    ):
        if embedded and await pending(pool):
            raise DatabaseError(
                f"the embedded database in {settings.state_dir} has no job table yet, or an older one; run: "
                "tenkaigen up, which makes it and starts everything, or only: tenkaigen migrate"
            )
        await check_schema(pool)
        yield pool
