"""Connections: where the database is, how to reach it, and in words why that failed."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_delay, wait_random_exponential

from tenkaigen_worker.config import DatabaseSettings
from tenkaigen_worker.database.address import LISTEN_URL, URL, Address, malformed, parse_address
from tenkaigen_worker.database.faults import FAULTS, explain, is_full
from tenkaigen_worker.database.pooler import Pooler, find_pooler
from tenkaigen_worker.database.tls import check_way, tls_options, why_not_trusted
from tenkaigen_worker.errors import DatabaseError

T = TypeVar("T")

log = logging.getLogger("tenkaigen.database")

EMBEDDED = "embedded"
LONGEST_LOCK_WAIT_SECONDS = 10.0

_KEEPALIVE_IDLE_SECONDS = 30
_KEEPALIVE_INTERVAL_SECONDS = 10
_KEEPALIVE_PROBES = 3
_UNACKNOWLEDGED_MS = 30_000


@asynccontextmanager
async def resolve_dsn(settings: DatabaseSettings, state_dir: Path) -> AsyncIterator[str]:
    """Yield the DSN of the configured database; ``embedded`` runs a server in ``state_dir`` as long as this is open.

    Raises :class:`~tenkaigen_worker.errors.DatabaseError` when a URL is malformed or may lead over a network in
    plaintext, or when the server does not start.
    """
    if settings.listen_url is not None:
        _check_way(settings, parse_address(settings.listen_url.get_secret_value(), LISTEN_URL))
    url = settings.url.get_secret_value()
    if url != EMBEDDED:
        _check_way(settings, parse_address(url))
        yield url
        return

    from tenkaigen_worker.database.embedded import start_embedded

    starting = asyncio.ensure_future(asyncio.to_thread(start_embedded, state_dir))
    try:
        server = await asyncio.shield(starting)
    except asyncio.CancelledError:
        # The thread cannot be stopped; what it started must not outlive us.
        await asyncio.to_thread((await starting).close)
        raise
    try:
        yield server.dsn
    finally:
        await asyncio.to_thread(server.close)


def _check_way(settings: DatabaseSettings, address: Address) -> None:
    if doubt := check_way(address, allow_plaintext=settings.allow_plaintext):
        log.warning(doubt, extra={"action": "tls_unverified"})


async def open_pool(settings: DatabaseSettings, dsn: str, application_name: str) -> asyncpg.Pool:
    """Open a pool of at most ``settings.pool_size`` connections, one of them at once.

    While the database, or a pooler before it, has no room for one more client, each waits for that, for at most
    ``settings.connect_timeout_seconds``. Before all that it looks what is in between, and does without prepared
    statements behind a pooler in transaction mode. jsonb arrives as Python values. Raises
    :class:`~tenkaigen_worker.errors.DatabaseError` when the database cannot be reached or refuses us; its text names
    host, port, database and user, never the password.
    """
    address = parse_address(dsn)
    pooler = await _patiently(settings, look_for_pooler, settings, dsn)
    if pooler is not Pooler.NONE:
        log.info("The database is behind %s", pooler.value, extra={"action": "pooler_found", "mode": pooler.name})
    lent = pooler is Pooler.TRANSACTION
    try:
        # Once for room to connect, and once for connecting.
        async with asyncio.timeout(2 * settings.connect_timeout_seconds):
            pool = await asyncpg.create_pool(
                dsn,
                connect=partial(_patiently, settings, asyncpg.connect),
                min_size=0,  # with a floor, the pool logs tracebacks of its own while the database is away
                max_size=settings.pool_size,
                init=_prepare if lent else partial(_prepare_session, settings),
                reset=_leave_as_is,
                **_options(settings, address, application_name, lent=lent),
            )
            async with pool.acquire():
                return pool
    except (*FAULTS, ValueError) as fault:
        raise _refusal(fault, address, settings) from None


async def connect(
    settings: DatabaseSettings, dsn: str, application_name: str, *, setting: str = URL
) -> asyncpg.Connection:
    """Open one connection outside any pool, that gets through every pooler; raises as :func:`open_pool` does.

    ``setting`` is the one ``dsn`` comes from, for words about what is wrong with it.
    """
    address = parse_address(dsn, setting)
    try:
        async with asyncio.timeout(settings.connect_timeout_seconds):
            options = _options(settings, address, application_name, lent=True)
            connection: asyncpg.Connection = await asyncpg.connect(dsn, **options)
            try:
                await _prepare(connection)
            except BaseException:
                connection.terminate()
                raise
            return connection
    except (*FAULTS, ValueError) as fault:
        raise _refusal(fault, address, settings) from None


async def look_for_pooler(settings: DatabaseSettings, dsn: str) -> Pooler:
    """Answer what is between us and the server; raises as :func:`open_pool` does."""
    return await find_pooler(lambda: connect(settings, dsn, "tenkaigen probe"))


async def _patiently(
    settings: DatabaseSettings, connecting: Callable[..., Awaitable[T]], *arguments: Any, **options: Any
) -> T:
    """Try again while there is no room for one more client: others come and go, a deployment has twice as many."""
    attempts = AsyncRetrying(
        retry=retry_if_exception(lambda fault: isinstance(fault, _NoRoomError) or is_full(fault)),
        wait=wait_random_exponential(multiplier=0.1, max=2),
        stop=stop_after_delay(settings.connect_timeout_seconds),
        before_sleep=_tell_no_room,
        reraise=True,
    )
    return await attempts(connecting, *arguments, **options)


def _tell_no_room(state: RetryCallState) -> None:
    log.warning(
        "the database has no room for one more connection, next try in %.1f s: %s",
        state.upcoming_sleep,
        state.outcome and explain(state.outcome.exception() or TimeoutError()),
        extra={"action": "no_room"},
    )


class _NoRoomError(DatabaseError):
    """The server, or a pooler before it, has as many clients as it takes."""


def _refusal(fault: Exception, where: Address, settings: DatabaseSettings) -> DatabaseError:
    kind = _NoRoomError if is_full(fault) else DatabaseError
    return kind(_why(fault, where, settings.connect_timeout_seconds))


def keep_alive(connection: Any) -> None:
    """Have the kernel notice a peer that is gone: asyncpg sets no TCP keepalive, and a dead listener is just silent."""
    link = connection._transport.get_extra_info("socket")
    if link is None or link.family == socket.AF_UNIX:
        return
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _KEEPALIVE_IDLE_SECONDS),
        ("TCP_KEEPINTVL", _KEEPALIVE_INTERVAL_SECONDS),
        ("TCP_KEEPCNT", _KEEPALIVE_PROBES),
        ("TCP_USER_TIMEOUT", _UNACKNOWLEDGED_MS),
    ):
        if hasattr(socket, name):  # not every system has every one
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _options(settings: DatabaseSettings, address: Address, application_name: str, *, lent: bool) -> dict[str, Any]:
    options: dict[str, Any] = {
        "timeout": settings.connect_timeout_seconds,
        "command_timeout": settings.command_timeout_seconds,
        "server_settings": {"application_name": application_name},
        **tls_options(address),
    }
    # A statement that was prepared in one session is unknown in the next.
    return options | {"statement_cache_size": 0} if lent else options


async def _prepare(connection: asyncpg.Connection) -> None:
    keep_alive(connection)
    await connection.set_type_codec("jsonb", schema="pg_catalog", encoder=_to_json, decoder=json.loads)


async def _prepare_session(settings: DatabaseSettings, connection: asyncpg.Connection) -> None:
    """Have the server itself end what we gave up, and let nobody's lock hold us for long.

    By statement, because poolers refuse such settings when one connects. Behind a pooler in transaction mode they would
    stay in a session that is somebody else's next.
    """
    await _prepare(connection)
    given_up = settings.command_timeout_seconds
    await connection.execute(
        f"SET statement_timeout = {round(given_up * 1000) + 1000}; "  # ours is the first to speak
        f"SET lock_timeout = {round(min(given_up, LONGEST_LOCK_WAIT_SECONDS) * 1000)}"
    )


async def _leave_as_is(_: asyncpg.Connection) -> None:
    """Save the round trip of asyncpg's own reset: no statement here changes the session."""


def _to_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _why(fault: Exception, where: Address, timeout_seconds: float) -> str:
    """What happened and what to do; the fault's own text only where it cannot hold a piece of the password."""
    match fault:
        case asyncpg.InvalidPasswordError():
            return f"the database refused the password ({where}): check database.{where.setting}"
        case asyncpg.InvalidAuthorizationSpecificationError():
            return f"the database does not let us in ({where}): {explain(fault)}"
        case asyncpg.InvalidCatalogNameError():
            return f"there is no such database ({where}): create it, or correct the end of database.{where.setting}"
        case _ if is_full(fault):
            return (
                f"the database has no free connection ({where}): {explain(fault)}; lower database.pool_size, raise its "
                "limit, or go through a pooler in transaction mode"
            )
        case ssl.SSLCertVerificationError():
            return why_not_trusted(fault, where)
        case ssl.SSLError():
            return f"TLS failed ({where}): {explain(fault)}; check sslmode and sslrootcert in database.{where.setting}"
        case ConnectionError() if "rejected SSL" in str(fault):
            return f"the server speaks no TLS ({where}), but sslmode in database.{where.setting} asks for it"
        case asyncpg.ClientConfigurationError() if "certificate" in str(fault) or "ssl" in str(fault):
            return f"TLS cannot be set up ({where}): {explain(fault)}"
        case TimeoutError():
            return f"no answer within {timeout_seconds:g} s ({where}): is the host right, and does a firewall drop us?"
        case socket.gaierror():
            return f"there is no host of that name ({where}): correct it in database.{where.setting}"
        case FileNotFoundError() if not where.host.startswith("/"):
            return f"TLS cannot be set up ({where}): a file that sslrootcert, sslcert or sslkey names does not exist"
        case PermissionError() if not where.host.startswith("/"):
            return f"TLS cannot be set up ({where}): a file that sslrootcert, sslcert or sslkey names may not be read"
        case OSError():
            return f"the database cannot be reached ({where}): {explain(fault)}; is it running?"
        case asyncpg.PostgresError():
            return f"the database answered ({where}): {explain(fault)}"
        case _:
            return f"{malformed(where.setting)} ({where})"
