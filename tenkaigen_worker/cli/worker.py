"""``tenkaigen worker``: everything a worker needs, put together."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import click

from tenkaigen_worker.cli.context import load_settings
from tenkaigen_worker.cli.signals import on_stdin_closed, on_stop_signals

if TYPE_CHECKING:
    from tenkaigen_worker.config import Settings

log = logging.getLogger("tenkaigen.worker")


@click.command()
@click.option("--drain", is_flag=True, help="End when the queue is empty.")
@click.option("--until-stdin-closes", is_flag=True, hidden=True, help="End with the process that started us.")
@click.pass_context
def worker(ctx: click.Context, drain: bool, until_stdin_closes: bool) -> None:
    r"""Take jobs from the queue and make their pictures, until SIGTERM or Ctrl-C.

    The first signal lets the jobs in hand finish within worker.grace_seconds; a second one gives them back at once.

    \b
    Example:
      tenkaigen worker
      tenkaigen worker --drain
      tenkaigen -c config/a10g.yaml worker
    """
    from tenkaigen_worker.telemetry import configure_logging

    settings = load_settings(ctx).settings
    configure_logging(settings.log)
    asyncio.run(_run(settings, drain=drain, until_stdin_closes=until_stdin_closes))


async def _run(settings: Settings, *, drain: bool, until_stdin_closes: bool) -> None:
    from tenkaigen_worker.database.connect import open_pool, resolve_dsn
    from tenkaigen_worker.database.migrate import check_schema
    from tenkaigen_worker.database.queue import PostgresQueue
    from tenkaigen_worker.database.wakeups import Wakeups
    from tenkaigen_worker.engine.host import EngineProcess
    from tenkaigen_worker.maintenance import Maintenance
    from tenkaigen_worker.plugin.manager import Plugins
    from tenkaigen_worker.storage.factory import make_storage
    from tenkaigen_worker.telemetry import Metrics
    from tenkaigen_worker.worker.health import health_endpoint
    from tenkaigen_worker.worker.tools import Tools
    from tenkaigen_worker.worker.worker import Worker

    worker_id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    async with AsyncExitStack() as stack:
        ...
