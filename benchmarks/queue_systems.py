"""The queues that ``queue_speed.py`` compares: ours, two others, and a bare loop, all seen through the same methods.

Each is used as its documentation says: its own schema with all of its triggers and indexes, its own worker, its own
claim. The bare loop is the least that is still a queue: one table, one index, one trigger, one statement.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import timedelta
from functools import wraps
from importlib.util import find_spec
from typing import Any, ClassVar
from uuid import uuid4

import asyncpg

from tenkaigen_worker.config import DatabaseSettings
from tenkaigen_worker.database.connect import connect, open_pool
from tenkaigen_worker.database.migrate import migrate
from tenkaigen_worker.database.queue import PostgresQueue
from tenkaigen_worker.database.wakeups import Wakeups
from tenkaigen_worker.jobs import Lease, Progress

LEASE_SECONDS = 600.0
TASK = "picture"

Claimed = Callable[[], None]


class Session(ABC):
    """An open connection of one system, as its worker has it."""

    @abstractmethod
    async def claim(self) -> bool:
        """Claim one job; answers whether there was one."""

    @abstractmethod
    async def heartbeat(self) -> None:
        """Tell the database that all jobs claimed here are alive."""


class System(ABC):
    """One queue. ``waiting`` and ``finished`` insert $1 rows of $2 users; every third waiting row is for later.

    Both are run without triggers, and write themselves what those would have written into the row.
    """

    name: ClassVar[str]
    package: ClassVar[str | None] = None
    insert: ClassVar[str]
    waiting: ClassVar[str]
    finished: ClassVar[str]
    #: Makes room for other waiting rows.
    clear: ClassVar[str]

    @property
    def installed(self) -> bool:
        return self.package is None or find_spec(self.package) is not None

    @abstractmethod
    async def create(self, dsn: str) -> None:
        """Make the schema in an empty database."""

    @abstractmethod
    def session(self, dsn: str, *, pooled: bool = False) -> AbstractAsyncContextManager[Session]:
        """Connect as a worker does; ``pooled`` is through a transaction pooler, which keeps no prepared statements."""

    @abstractmethod
    def worker(self, dsn: str, claimed: Claimed) -> AbstractAsyncContextManager[None]:
        """Run a worker that does nothing with its jobs; ``claimed`` is called when a claim has returned one."""


class Ours(System):
    """The worker's own queue and the worker's own LISTEN."""

    name = "tenkaigen"
    insert = "INSERT INTO generation_jobs (prompt, style) VALUES ('A phoenix rising', 'Anime')"
    waiting = """
        INSERT INTO generation_jobs (user_id, prompt, style, run_at, fair_at)
        SELECT lpad(to_hex(n % $2::int), 32, '0')::uuid, 'A phoenix rising', 'Anime', due,
            due + n / $2::int * interval '5 minutes'
        FROM generate_series(1, $1::int) AS n,
            LATERAL (SELECT now() + CASE WHEN n % 3 = 0 THEN interval '1 day' ELSE interval '0' END) AS run (due)
    """
    finished = """
        INSERT INTO generation_jobs (
            user_id, prompt, style, status, attempt, lease_token, progress,
            created_at, run_at, fair_at, started_at, completed_at
        )
        SELECT lpad(to_hex(n % $2::int), 32, '0')::uuid, 'A phoenix rising', 'Anime', 'completed', 1, 1, 1, at, at, at,
            at, at
        FROM generate_series(1, $1::int) AS n, LATERAL (SELECT now() - ($1 - n) * interval '1 second') AS past (at)
    """
    clear = "DELETE FROM generation_jobs WHERE status IN ('queued', 'processing')"

    async def create(self, dsn: str) -> None:
        connection = await connect(DatabaseSettings(), dsn, "tenkaigen benchmark")
        try:
            await migrate(connection)
        finally:
            await connection.close()

    @asynccontextmanager
    async def session(self, dsn: str, *, pooled: bool = False) -> AsyncIterator[Session]:
        async with await open_pool(DatabaseSettings(), dsn, "tenkaigen benchmark") as pool:
            yield OurSession(PostgresQueue(pool, "benchmark", LEASE_SECONDS))

    @asynccontextmanager
    async def worker(self, dsn: str, claimed: Claimed) -> AsyncIterator[None]:
        jobs = asyncio.Event()
        async with await open_pool(DatabaseSettings(), dsn, "tenkaigen benchmark") as pool:
            queue = PostgresQueue(pool, "benchmark", LEASE_SECONDS)
            async with (
                Wakeups(DatabaseSettings(), dsn, pool, on_jobs=jobs.set, on_cancel=lambda _: None) as wakeups,
                running(claim_when_told(jobs, queue.claim, claimed)),
            ):
                await wakeups.wait_proven()
                yield


class OurSession(Session):
    """A queue and the leases that it gave."""

    def __init__(self, queue: PostgresQueue) -> None:
        self._queue = queue
        self._held: dict[Lease, Progress] = {}

    async def claim(self) -> bool:
        job = await self._queue.claim()
        if job is not None:
            self._held[job.lease] = Progress("denoise", 0.5)
        return job is not None

    async def heartbeat(self) -> None:
        await self._queue.heartbeat(self._held)


class Bare(System):
    """asyncpg, one statement, one trigger."""

    name = "bare asyncpg"
    insert = "INSERT INTO bare_jobs (prompt) VALUES ('A phoenix rising')"
    waiting = """
        INSERT INTO bare_jobs (user_id, prompt, run_at)
        SELECT n % $2::int, 'A phoenix rising', now() + CASE WHEN n % 3 = 0 THEN interval '1 day' ELSE interval '0' END
        FROM generate_series(1, $1::int) AS n
    """
    finished = """
        INSERT INTO bare_jobs (user_id, prompt, status)
        SELECT n % $2::int, 'A phoenix rising', 'completed' FROM generate_series(1, $1::int) AS n
    """
    clear = "DELETE FROM bare_jobs WHERE status <> 'completed'"

    SCHEMA = """
        CREATE TABLE bare_jobs (
            id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
            user_id integer,
            prompt text NOT NULL,
            status text NOT NULL DEFAULT 'queued',
            run_at timestamptz NOT NULL DEFAULT now(),
            lease_expires_at timestamptz
        );
        CREATE INDEX ON bare_jobs (id) WHERE status = 'queued';
        CREATE FUNCTION bare_jobs_notify() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_notify('bare_jobs', '');
            RETURN NULL;
        END
        $$;
        CREATE TRIGGER bare_jobs_notify AFTER INSERT ON bare_jobs
            FOR EACH STATEMENT EXECUTE FUNCTION bare_jobs_notify();
    """

    async def create(self, dsn: str) -> None:
        async with asyncpg_connection(dsn) as connection:
            await connection.execute(self.SCHEMA)

    @asynccontextmanager
    async def session(self, dsn: str, *, pooled: bool = False) -> AsyncIterator[Session]:
        async with asyncpg_connection(dsn, pooled=pooled) as connection:
            yield BareSession(connection)

    @asynccontextmanager
    async def worker(self, dsn: str, claimed: Claimed) -> AsyncIterator[None]:
        jobs = asyncio.Event()
        async with asyncpg_connection(dsn) as listener, self.session(dsn) as session:
            await listener.add_listener("bare_jobs", lambda *_: jobs.set())
            async with running(claim_when_told(jobs, session.claim, claimed)):
                yield


class BareSession(Session):
    """A connection and the ids of what was claimed."""

    CLAIM = """
        UPDATE bare_jobs SET status = 'processing', lease_expires_at = now() + interval '1 minute'
        WHERE id = (
            SELECT id FROM bare_jobs WHERE status = 'queued' AND run_at <= now()
            ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED
        )
        RETURNING id, prompt
    """
    HEARTBEAT = "UPDATE bare_jobs SET lease_expires_at = now() + interval '1 minute' WHERE id = ANY ($1)"

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._held: list[int] = []

    async def claim(self) -> bool:
        row = await self._connection.fetchrow(self.CLAIM)
        if row is not None:
            self._held.append(row["id"])
        return row is not None

    async def heartbeat(self) -> None:
        await self._connection.execute(self.HEARTBEAT, self._held)


class Procrastinate(System):
    """Its heartbeat is one row for the whole worker, whatever that has in hand."""

    name = "procrastinate"
    package = "procrastinate"
    insert = f"INSERT INTO procrastinate_jobs (queue_name, task_name) VALUES ('default', '{TASK}')"
    waiting = f"""
        INSERT INTO procrastinate_jobs (queue_name, task_name, args, scheduled_at)
        SELECT 'default', '{TASK}', jsonb_build_object('user', n % $2::int),
            CASE WHEN n % 3 = 0 THEN now() + interval '1 day' END
        FROM generate_series(1, $1::int) AS n
    """
    finished = f"""
        INSERT INTO procrastinate_jobs (queue_name, task_name, args, status, attempts)
        SELECT 'default', '{TASK}', jsonb_build_object('user', n % $2::int), 'succeeded', 1
        FROM generate_series(1, $1::int) AS n
    """
    clear = "DELETE FROM procrastinate_jobs WHERE status <> 'succeeded'"

    async def create(self, dsn: str) -> None:
        async with self._app(dsn) as app:
            await app.schema_manager.apply_schema_async()

    @asynccontextmanager
    async def session(self, dsn: str, *, pooled: bool = False) -> AsyncIterator[Session]:
        async with self._app(dsn, pooled=pooled) as app:
            yield ProcrastinateSession(app.job_manager, await app.job_manager.register_worker())

    @asynccontextmanager
    async def worker(self, dsn: str, claimed: Claimed) -> AsyncIterator[None]:
        async with self._app(dsn) as app:
            app.task(name=TASK)(nothing_to_do)
            app.job_manager.fetch_job = tell_after(app.job_manager.fetch_job, claimed)
            async with running(app.run_worker_async(install_signal_handlers=False)):
                yield

    @asynccontextmanager
    async def _app(self, dsn: str, *, pooled: bool = False) -> AsyncIterator[Any]:
        from procrastinate import App, PsycopgConnector

        options = {"prepare_threshold": None} if pooled else {}
        async with App(connector=PsycopgConnector(conninfo=dsn, kwargs=options)).open_async() as app:
            yield app


class ProcrastinateSession(Session):
    """Its job manager, registered as a worker."""

    def __init__(self, manager: Any, worker_id: int) -> None:
        self._manager = manager
        self._worker_id = worker_id

    async def claim(self) -> bool:
        return await self._manager.fetch_job(queues=None, worker_id=self._worker_id) is not None

    async def heartbeat(self) -> None:
        await self._manager.update_heartbeat(self._worker_id)


class PgQueuer(System):
    """It moves finished jobs to a table of their own, so that is where they are here."""

    name = "pgqueuer"
    package = "pgqueuer"
    insert = f"INSERT INTO pgqueuer (priority, status, entrypoint) VALUES (0, 'queued', '{TASK}')"
    waiting = f"""
        INSERT INTO pgqueuer (priority, status, entrypoint, payload, execute_after)
        SELECT 0, 'queued', '{TASK}', convert_to((n % $2::int)::text, 'UTF8'),
            now() + CASE WHEN n % 3 = 0 THEN interval '1 day' ELSE interval '0' END
        FROM generate_series(1, $1::int) AS n
    """
    finished = f"""
        INSERT INTO pgqueuer_log (job_id, status, priority, entrypoint, aggregated)
        SELECT n, 'successful', 0, '{TASK}', true FROM generate_series(1, $1::int) AS n WHERE $2::int > 0
    """
    clear = "DELETE FROM pgqueuer"

    async def create(self, dsn: str) -> None:
        from pgqueuer.queries import Queries

        async with asyncpg_connection(dsn) as connection:
            await Queries.from_asyncpg_connection(connection).install()

    @asynccontextmanager
    async def session(self, dsn: str, *, pooled: bool = False) -> AsyncIterator[Session]:
        from pgqueuer.queries import Queries

        async with asyncpg_connection(dsn, pooled=pooled) as connection:
            yield PgQueuerSession(Queries.from_asyncpg_connection(connection))

    @asynccontextmanager
    async def worker(self, dsn: str, claimed: Claimed) -> AsyncIterator[None]:
        from pgqueuer import PgQueuer as Application

        async with asyncpg_connection(dsn) as connection:
            application = Application.from_asyncpg_connection(connection)
            application.entrypoint(TASK)(nothing_to_do)
            manager = application.qm
            manager.queries.dequeue = tell_after(manager.queries.dequeue, claimed)
            work = asyncio.create_task(manager.run())
            try:
                yield
            finally:
                manager.shutdown.set()
                await work


class PgQueuerSession(Session):
    """Its queries, as one of its workers calls them."""

    def __init__(self, queries: Any) -> None:
        from pgqueuer.ports.repository import EntrypointExecutionParameter

        self._queries = queries
        self._entrypoints = {TASK: EntrypointExecutionParameter(concurrency_limit=0)}
        self._worker_id = uuid4()
        self._held: list[Any] = []

    async def claim(self) -> bool:
        jobs = await self._queries.dequeue(
            batch_size=1,
            entrypoints=self._entrypoints,
            queue_manager_id=self._worker_id,
            global_concurrency_limit=None,
            heartbeat_timeout=timedelta(seconds=LEASE_SECONDS),
        )
        self._held += [job.id for job in jobs]
        return bool(jobs)

    async def heartbeat(self) -> None:
        await self._queries.update_heartbeat(self._held)


async def nothing_to_do(*_: object) -> None:
    """A job's work."""


OURS = Ours()
SYSTEMS: tuple[System, ...] = (OURS, Procrastinate(), PgQueuer(), Bare())


@asynccontextmanager
async def asyncpg_connection(dsn: str, *, pooled: bool = False) -> AsyncIterator[asyncpg.Connection]:
    """A connection that is closed at the end; ``pooled`` as for a session."""
    connection = await asyncpg.connect(dsn, statement_cache_size=0 if pooled else 100)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def running(work: Coroutine[Any, Any, object]) -> AsyncIterator[None]:
    """Run something beside the block, and cancel it afterwards; what it raised is raised."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def claim_when_told(jobs: asyncio.Event, claim: Callable[[], Awaitable[object]], claimed: Claimed) -> None:
    """The claiming half of a worker: sleep until told, then claim until there is nothing left."""
    while True:
        await jobs.wait()
        jobs.clear()
        while await claim():
            claimed()


def tell_after(claim: Callable[..., Awaitable[Any]], claimed: Claimed) -> Callable[..., Awaitable[Any]]:
    """The same claim, but it calls ``claimed`` as soon as it has brought something."""

    @wraps(claim)
    async def told(*arguments: Any, **named: Any) -> Any:
        found = await claim(*arguments, **named)
        if found:
            claimed()
        return found

    return told
