"""The worker's own small endpoint: alive, ready, and numbers for Prometheus."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from aiohttp import web

from tenkaigen_worker.engine.base import Engine
from tenkaigen_worker.errors import ConfigError, DatabaseError
from tenkaigen_worker.jobs import QueueDepth
from tenkaigen_worker.metrics import Metrics


@asynccontextmanager
async def health_endpoint(
    host: str,
    port: int,
    *,
    problems: Callable[[], list[str]],
    engine: Engine,
    metrics: Metrics,
    ping: Callable[[], Awaitable[None]],
    depth: Callable[[], Awaitable[QueueDepth]],
) -> AsyncIterator[str]:
    """Serve ``/healthz``, ``/readyz`` and ``/metrics`` while the block runs; yields the base URL.

    ``/readyz`` is 503 with the reasons while ``problems`` names any, or while ``ping`` does not reach the database;
    ``/metrics`` shows the queue's ``depth``. Raises
    :class:`~tenkaigen_worker.errors.ConfigError` when the port is taken.
    """

    async def healthz(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def readyz(_: web.Request) -> web.Response:
        reasons = problems()
        try:
            await ping()
        except DatabaseError as error:
            reasons.append(str(error))
        body = {"status": "not ready" if reasons else "ready", "problems": reasons, "engine": _describe(engine)}
        return web.json_response(body, status=503 if reasons else 200)

    async def numbers(_: web.Request) -> web.Response:
        metrics.engine_up(engine.info is not None)
        with suppress(DatabaseError):
            metrics.queue_depth(await depth())
        return web.Response(body=metrics.render(), headers={"Content-Type": metrics.content_type})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", numbers)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise ConfigError(
                f"The worker's health endpoint cannot listen on {host}:{port} ({os.strerror(error.errno or 0)}). "
                "Set worker.health_port to a free port, to 0 for any, or to null for none."
            ) from error
        yield f"http://{host}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def _describe(engine: Engine) -> dict[str, object] | None:
    info = engine.info
    if info is None:
        return None
    return {
        "backend": info.model.backend,
        "model": info.model.name,
        "device": info.device,
        "dtype": info.dtype,
        "demo": info.model.demo,
        "load_ms": info.load_ms,
        "stages_ms": dict(info.stages_ms),
    }
