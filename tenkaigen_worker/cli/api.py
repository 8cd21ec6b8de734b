"""``tenkaigen api``: the front door, put together."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import click

from tenkaigen_worker.cli.context import load_settings, opened
from tenkaigen_worker.cli.ready import say_ready
from tenkaigen_worker.cli.signals import on_stop

if TYPE_CHECKING:
    from tenkaigen_worker.config import Settings


@click.command()
@click.option("--until-stdin-closes", is_flag=True, hidden=True, help="End with the process that started us.")
@click.pass_context
def api(ctx: click.Context, until_stdin_closes: bool) -> None:
    """Serve the HTTP API, and the pictures of local storage, until SIGTERM or Ctrl-C.

    It listens on api.host and api.port. Workers need the same settings: the pictures' URLs are built from them, or from
    storage.local.public_url.

    \b
    Example:
      tenkaigen api
      TENKAIGEN_API__PORT=9000 tenkaigen api
    """
    from tenkaigen_worker.logs import configure_logging

    settings = load_settings(ctx).settings
    configure_logging(settings.log)
    asyncio.run(_run(settings, until_stdin_closes=until_stdin_closes))


async def _run(settings: Settings, *, until_stdin_closes: bool) -> None:
    from tenkaigen_worker.api.app import make_app
    from tenkaigen_worker.api.offers import Offers
    from tenkaigen_worker.api.parts import Parts
    from tenkaigen_worker.api.serve import serving
    from tenkaigen_worker.database.api_keys import ApiKeys
    from tenkaigen_worker.database.migrate import check_schema
    from tenkaigen_worker.database.submissions import Submissions
    from tenkaigen_worker.database.workers import PostgresWorkers
    from tenkaigen_worker.maintenance import maintain
    from tenkaigen_worker.plugin.manager import Plugins
    from tenkaigen_worker.references.uploads import Uploads, keep_uploads_young
    from tenkaigen_worker.storage.factory import open_storage

    stop = asyncio.Event()
    on_stop(stop.set, stdin_too=until_stdin_closes)

    plugins = Plugins.load(settings.plugins)
    async with opened(settings, "tenkaigen api") as pool, open_storage(settings) as storage:
        check = partial(check_schema, pool)
        uploads = Uploads(storage, settings.references)
        offers = Offers(PostgresWorkers(pool), plugins, settings.generation)
        parts = Parts(Submissions(pool), storage, uploads, plugins, offers, check, ApiKeys(pool))
        async with serving(make_app(parts, settings.api), settings.api) as url, asyncio.TaskGroup() as tasks:
            upkeep = [
                tasks.create_task(maintain(pool, storage, settings.worker)),
                tasks.create_task(keep_uploads_young(storage, settings.references)),
            ]
            say_ready(url)
            await stop.wait()
            for task in upkeep:
                task.cancel()
