"""LISTEN: hears at once of new jobs and of requests to cancel, and knows whether it would."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self
from uuid import UUID, uuid4

import asyncpg
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from tenkaigen_worker.config import DatabaseSettings
from tenkaigen_worker.database.address import LISTEN_URL, URL
from tenkaigen_worker.database.connect import connect
from tenkaigen_worker.database.faults import FAULTS, database_faults
from tenkaigen_worker.errors import DatabaseError

log = logging.getLogger("tenkaigen.database")

CHANNEL = "generation_jobs"
PROBE_SECONDS = 15.0
ANSWER_SECONDS = 5.0
CLOSE_SECONDS = 2.0


class Wakeups:
    """Listens on a connection of its own while it is open, to ``settings.listen_url`` or else ``dsn``, and calls back.

    ``on_jobs`` is called when jobs can be claimed, and once after every (re)connect: what was notified meanwhile is
    lost. ``on_cancel`` gets the id of a running job that somebody wants canceled. Both must return at once.

    Notifications are a help, never the only way: behind some poolers LISTEN succeeds and delivers nothing. ``proven``
    says whether the last probe came back; poll seldom while it does, often while it does not. The probe is sent through
    ``pool``, because a connection always hears itself.
    """

    def __init__(
        self,
        settings: DatabaseSettings,
        dsn: str,
        pool: asyncpg.Pool,
        *,
        on_jobs: Callable[[], None],
        on_cancel: Callable[[UUID], None],
        probe_seconds: float = PROBE_SECONDS,
    ) -> None:
        self._settings = settings
        direct = settings.listen_url
        self._dsn, self._setting = (dsn, URL) if direct is None else (direct.get_secret_value(), LISTEN_URL)
        self._pool = pool
        self._on_jobs = on_jobs
        self._on_cancel = on_cancel
        self._probe_seconds = probe_seconds

        self._probe_channel = f"{CHANNEL}_probe_{uuid4().hex}"
        self._answered = asyncio.Event()
        self._proven = asyncio.Event()

    @property
    def proven(self) -> bool:
        """Whether notifications were seen to arrive a short while ago."""
        return self._proven.is_set()

    async def wait_proven(self) -> None:
        """Wait until notifications are seen to arrive."""
        await self._proven.wait()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="wakeups")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        """Listen for ever: each session lasts until its connection is lost, then the next one begins."""
        while True:
            connection = await self._connect()
            try:
                await self._listen(connection)
            except (*FAULTS, DatabaseError) as error:
                log.warning("the listening connection was lost: %s", error, extra={"action": "listener_lost"})
            finally:
                self._proven.clear()
                with suppress(*FAULTS):
                    await connection.close(timeout=CLOSE_SECONDS)

    async def _connect(self) -> asyncpg.Connection:
        attempts = AsyncRetrying(
            retry=retry_if_exception_type(DatabaseError),
            wait=wait_random_exponential(multiplier=0.5, max=30),
            before_sleep=_tell_failure,
        )
        return await attempts(connect, self._settings, self._dsn, "tenkaigen listener", setting=self._setting)

    async def _listen(self, connection: asyncpg.Connection) -> None:
        """Call back until the connection is lost, which always raises."""
        lost = asyncio.Event()

        def end(_: object) -> None:
            lost.set()
            self._answered.set()

        connection.add_termination_listener(end)
        await connection.add_listener(CHANNEL, self._hear)
        await connection.add_listener(self._probe_channel, lambda *_: self._answered.set())
        self._on_jobs()

        silent_before = False
        while not lost.is_set():
            answered = await self._probe()
            if self.proven and not answered:
                raise DatabaseError("it went silent")
            if answered:
                self._proven.set()
            elif not silent_before:
                silent_before = True
                log.warning(
                    "LISTEN delivers nothing here, as behind a transaction pooler; polling goes on without it, and "
                    "database.listen_url can name a direct way",
                    extra={"action": "listen_unproven"},
                )
            with suppress(TimeoutError):
                async with asyncio.timeout(self._probe_seconds):
                    await lost.wait()
        raise DatabaseError("the server closed it")

    async def _probe(self) -> bool:
        """Notify ourselves the long way round, and answer whether that arrived."""
        self._answered.clear()
        with database_faults("cannot probe the listening connection"):
            await self._pool.execute("SELECT pg_notify($1, '')", self._probe_channel)
        # Not wait_for: on Python 3.11 it swallows a cancel that comes together with the answer.
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._answered.wait()
        return self._answered.is_set()

    def _hear(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        word, _, job_id = str(payload).partition(" ")
        if word == "queued":
            self._on_jobs()
        elif word == "cancel":
            with suppress(ValueError):  # anyone may notify
                self._on_cancel(UUID(job_id))


def _tell_failure(state: RetryCallState) -> None:
    log.warning(
        "cannot listen, next try in %.1f s: %s",
        state.upcoming_sleep,
        state.outcome and state.outcome.exception(),
        extra={"action": "listener_failed"},
    )
