"""Listening on the address that the settings name."""

from __future__ import annotations

import errno
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from tenkaigen_worker.api.hosts import refuse_open_door
from tenkaigen_worker.config_api import ApiSettings
from tenkaigen_worker.errors import ConfigError

log = logging.getLogger("tenkaigen.api")

_LONGEST_HEADER_BYTES = 16_384  # as much as Node takes: sessions with tokens of other services in them are long
_FINISH_SECONDS = 5  # a request takes milliseconds; only a slow download of a file may be cut


@asynccontextmanager
async def serving(app: web.Application, settings: ApiSettings) -> AsyncIterator[str]:
    """Serve ``app`` on ``api.host`` and ``api.port`` while the block runs; yields the URL.

    Afterwards no connection is taken any more, and requests under way are finished. Raises ``ConfigError`` when the
    address may not be used, or is used by somebody else.
    """
    refuse_open_door(settings)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_FINISH_SECONDS, max_field_size=_LONGEST_HEADER_BYTES)
    await runner.setup()
    try:
        await _listen(runner, settings)
        host, port, *_ = runner.addresses[0]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        log.info("The API listens on %s", url, extra={"action": "api_started", "url": url})
        yield url
        log.info("The API stops", extra={"action": "api_stopped"})
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, settings: ApiSettings) -> None:
    try:
        await web.TCPSite(runner, settings.host, settings.port).start()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            why = "something listens there already; stop it, or choose another port with api.port"
        elif error.errno == errno.EACCES:
            why = "this user may not listen there; choose a port above 1023 with api.port"
        else:
            why = f"{error.strerror or error}; choose another address with api.host"
        raise ConfigError(f"cannot listen on {settings.host}:{settings.port}: {why}") from error
