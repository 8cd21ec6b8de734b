"""``tenkaigen worker``: everything a worker needs, put together."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

import click

from tenkaigen_worker.cli.context import load_settings
from tenkaigen_worker.cli.ready import say_ready
from tenkaigen_worker.cli.signals import cancel_on_stop, on_stop

if TYPE_CHECKING:
    from tenkaigen_worker.config import Settings

log = logging.getLogger("tenkaigen.worker")


@click.command()
@click.option("--drain", is_flag=True, help="End when the queue is empty.")
@click.option("--until-stdin-closes", is_flag=True, hidden=True, help="End with the process that started us.")
@click.pass_context
def worker(ctx: click.Context, drain: bool, until_stdin_closes: bool) -> None:
    """Take jobs from the queue and make their pictures, until SIGTERM or Ctrl-C.

    The first signal lets the jobs in hand finish within worker.grace_seconds; a second one gives them back at once.

    \b
    Example:
      tenkaigen worker
      tenkaigen worker --drain
      tenkaigen -c config/a10g.yaml worker
    """
    from tenkaigen_worker.logs import configure_logging

    settings = load_settings(ctx).settings
    configure_logging(settings.log)
    # While the model is loading a stop cancels everything; from then on the worker ends in order.
    with suppress(asyncio.CancelledError):
        asyncio.run(_run(settings, drain=drain, until_stdin_closes=until_stdin_closes))


async def _run(settings: Settings, *, drain: bool, until_stdin_closes: bool) -> None:
    from tenkaigen_worker.database.connect import open_pool, resolve_dsn
    from tenkaigen_worker.database.migrate import check_schema
    from tenkaigen_worker.database.queue import PostgresQueue
    from tenkaigen_worker.database.submissions import Submissions
    from tenkaigen_worker.database.wakeups import Wakeups
    from tenkaigen_worker.database.workers import PostgresWorkers
    from tenkaigen_worker.engine.host import EngineProcess
    from tenkaigen_worker.maintenance import maintain
    from tenkaigen_worker.metrics import Metrics
    from tenkaigen_worker.plugin.manager import Plugins
    from tenkaigen_worker.storage.factory import open_storage
    from tenkaigen_worker.worker.announce import Announcer
    from tenkaigen_worker.worker.health import health_endpoint
    from tenkaigen_worker.worker.prepare import Sources
    from tenkaigen_worker.worker.spool import Spool
    from tenkaigen_worker.worker.tools import Tools
    from tenkaigen_worker.worker.worker import Worker

    cancel_on_stop(stdin_too=until_stdin_closes)
    worker_id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    plugins = Plugins.load(settings.plugins)
    async with AsyncExitStack() as stack:
        dsn = await stack.enter_async_context(resolve_dsn(settings.database, settings.state_dir))
        pool = await stack.enter_async_context(await open_pool(settings.database, dsn, "tenkaigen worker"))
        await check_schema(pool)

        storage = await stack.enter_async_context(open_storage(settings))
        spool = Spool(settings.state_dir / "spool", storage, settings.worker.publish_seconds)
        spool.check()
        engine = EngineProcess(settings.engine)
        stack.push_async_callback(engine.stop)
        queue = PostgresQueue(pool, worker_id, settings.worker.lease_seconds)
        sources = Sources.of(settings, plugins, storage, queue)
        stack.push_async_callback(sources.lora_files.close)
        sources.references.sweep()
        tools = Tools(queue, engine, storage, spool, sources, Metrics(), PostgresWorkers(pool))

        worker = Worker(tools, settings.worker, drain=drain)

        submissions = Submissions(pool)
        port = settings.worker.health_port
        if port is not None:
            endpoint = health_endpoint(
                settings.worker.health_host,
                port,
                problems=worker.problems,
                engine=engine,
                metrics=tools.metrics,
                ping=submissions.ping,
                depth=submissions.depth,
            )
            await stack.enter_async_context(endpoint)
        loaded = await engine.start()
        sources.check_modes(loaded.model)
        announcer = Announcer(worker_id, loaded, tools, worker.problems)

        wakeups = Wakeups(settings.database, dsn, pool, on_jobs=worker.work_may_wait, on_cancel=worker.cancel_may_wait)
        await stack.enter_async_context(wakeups)
        on_stop(worker.stop, stdin_too=until_stdin_closes)
        log.info("Worker %s takes jobs", worker_id, extra={"action": "worker_ready", "worker_id": worker_id})
        say_ready(f"worker {worker_id} takes jobs")
        async with asyncio.TaskGroup() as tasks:
            upkeep = tasks.create_task(maintain(pool, storage, settings.worker), name="maintenance")
            announcing = tasks.create_task(announcer.run(), name="announce")
            await worker.run(listening=lambda: wakeups.proven)
            announcing.cancel()
            upkeep.cancel()
    log.info("Worker %s has ended", worker_id, extra={"action": "worker_ended", "worker_id": worker_id})
