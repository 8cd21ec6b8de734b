"""Listening, until told to stop."""

from __future__ import annotations

import asyncio
import errno
import logging

from aiohttp import web

from tenkaigen_worker.api.hosts import refuse_open_door
from tenkaigen_worker.config import ApiSettings
from tenkaigen_worker.errors import ConfigError

log = logging.getLogger("tenkaigen.api")

_FINISH_SECONDS = 5  # a request takes milliseconds; only a slow download of a file may be cut


async def serve(app: web.Application, settings: ApiSettings, stop: asyncio.Event) -> None:
    """Serve ``app`` on ``api.host`` and ``api.port`` until ``stop`` is set, then end what is under way.

    Raises ``ConfigError`` when the address may not be used or is in use.
    """
    refuse_open_door(settings)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_FINISH_SECONDS)
    await runner.setup()
    try:
        await _listen(runner, settings)
        for host, port, *_ in runner.addresses:
            url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            log.info("The API listens on %s", url, extra={"action": "api_started", "url": url})
        await stop.wait()
        log.info("The API stops", extra={"action": "api_stopped"})
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, settings: ApiSettings) -> None:
    address = f"{settings.host}:{settings.port}"
    try:
        await web.TCPSite(runner, settings.host, settings.port).start()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            why = "something listens there already: stop it, or choose another port with api.port or --port"
        elif error.errno == errno.EACCES:
            why = "this user may not listen there: choose a port above 1023 with api.port or --port"
        else:
            why = f"{error.strerror or error}: choose another address with api.host or --host"
        raise ConfigError(f"cannot listen on {address}: {why}") from error
