"""Fixtures for all tests: a PostgreSQL of their own, and a fresh migrated database for each test."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tenkaigen_worker.config import DatabaseSettings
from tenkaigen_worker.database.cluster import Cluster
from tenkaigen_worker.database.connect import connect, open_pool
from tenkaigen_worker.database.embedded import embedded_binaries
from tenkaigen_worker.database.migrate import migrate
from tenkaigen_worker.plugin import manager

# The oldest version we promise; Debian's package is postgresql-15.
OLDEST = Path("/usr/lib/postgresql/15/bin")

TEMPLATE = "tenkaigen_template"

# A database of Supabase, before and after our migrations. A project made since 30 May 2026 grants new tables to nobody.
SUPABASE = "supabase"
NEW_SUPABASE = "supabase_new"
MIGRATED_SUPABASE = "supabase_migrated"

_GRANT_NOTHING = """
ALTER DEFAULT PRIVILEGES FOR ROLE postgres IN SCHEMA public
    REVOKE SELECT, INSERT, UPDATE, DELETE ON TABLES FROM anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES FOR ROLE postgres IN SCHEMA public
    REVOKE USAGE, SELECT ON SEQUENCES FROM anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES FOR ROLE postgres IN SCHEMA public
    REVOKE EXECUTE ON FUNCTIONS FROM anon, authenticated, service_role;
"""

SUPABASE_SQL = Path(__file__).with_name("supabase.sql")

_numbers = count(1)


@pytest.fixture(autouse=True)
def _files_are_looked_at_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests change files more quickly than people do."""
    monkeypatch.setattr(manager, "LOOK_AGAIN_SECONDS", 0)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Commands that run in our own process set it up for themselves: the next test would not hear its warnings."""
    root, ours = logging.getLogger(), logging.getLogger("tenkaigen")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """An empty folder with a short path: a Unix socket's must be."""
    folder = Path(tempfile.mkdtemp(prefix="tenkaigen-test-"))
    yield folder
    shutil.rmtree(folder)


@contextmanager
def running(binaries: Path) -> Iterator[str]:
    """Run a server of its own, and yield its DSN. Its data is not worth waiting for a disk."""
    folder = Path(tempfile.mkdtemp(prefix="tenkaigen-test-"))
    cluster = Cluster(binaries, folder / "postgres")
    try:
        dsn = cluster.ensure_running()
        asyncio.run(_without_fsync(dsn))
        yield dsn
    finally:
        cluster.stop()
        shutil.rmtree(folder)


async def _without_fsync(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute("ALTER SYSTEM SET fsync = off")
    await connection.execute("SELECT pg_reload_conf()")
    await connection.close()


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """DSN of a PostgreSQL 18 that lives as long as the tests, with a migrated template in it."""
    with running(embedded_binaries()) as dsn:
        asyncio.run(_make_template(dsn))
        yield dsn


async def _make_template(dsn: str) -> None:
    await _execute(dsn, f"CREATE DATABASE {TEMPLATE}")
    await _migrate(dsn_of(dsn, TEMPLATE))


async def _migrate(dsn: str) -> None:
    connection = await connect(DatabaseSettings(), dsn, "template")
    await migrate(connection)
    await connection.close()


@pytest.fixture(scope="session")
def supabase_server() -> Iterator[str]:
    """DSN of a PostgreSQL 18 that looks like Supabase's, for its role ``postgres``, which is no superuser there."""
    with running(embedded_binaries()) as dsn:
        asyncio.run(_make_supabase(dsn))
        yield dsn


@pytest.fixture(scope="session")
def oldest_supabase_server() -> Iterator[str]:
    """The same as a PostgreSQL 15, as far as the machine has one."""
    with running(oldest_binaries()) as dsn:
        asyncio.run(_make_supabase(dsn))
        yield dsn


@pytest.fixture(params=["supabase_server", "oldest_supabase_server"])
def any_supabase_server(request: pytest.FixtureRequest) -> str:
    """DSN of the newest and the oldest that looks like Supabase's, in turn."""
    dsn: str = request.getfixturevalue(request.param)
    return dsn


async def _make_supabase(dsn: str) -> None:
    """Give the server's own superuser its name there, and make the templates."""
    admin = as_role(dsn, "supabase_admin")
    await _execute(dsn, "CREATE ROLE installer LOGIN SUPERUSER")
    await _execute(as_role(dsn, "installer"), "ALTER ROLE postgres RENAME TO supabase_admin")
    await _execute(admin, "DROP ROLE installer")
    for name in (SUPABASE, NEW_SUPABASE, MIGRATED_SUPABASE):
        await _execute(admin, f"CREATE DATABASE {name}")
        await _execute(dsn_of(admin, name), SUPABASE_SQL.read_text(encoding="utf-8"))
        await _execute(admin, f"ALTER DATABASE {name} OWNER TO postgres")
    await _execute(dsn_of(admin, NEW_SUPABASE), _GRANT_NOTHING)
    await _migrate(dsn_of(dsn, MIGRATED_SUPABASE))


@pytest.fixture(scope="session")
def oldest_server() -> Iterator[str]:
    """DSN of a PostgreSQL 15, where the machine has one; a CI machine must."""
    with running(oldest_binaries()) as dsn:
        yield dsn


def oldest_binaries() -> Path:
    """The programs of a PostgreSQL 15, where the machine has one; a CI machine must."""
    if not OLDEST.is_dir():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("install the package postgresql-15")
    return OLDEST


@pytest.fixture(params=["server", "oldest_server"])
def any_server(request: pytest.FixtureRequest) -> str:
    """DSN of the newest and the oldest PostgreSQL, in turn."""
    dsn: str = request.getfixturevalue(request.param)
    return dsn


def dsn_of(server: str, database: str) -> str:
    """The DSN of another database on the same server."""
    return server.replace("/postgres?", f"/{database}?")


def as_role(dsn: str, role: str) -> str:
    """The same DSN for another role."""
    return dsn.replace("//postgres@", f"//{role}@")


@pytest.fixture
async def make_database() -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """What makes databases that end with the test: given a server's DSN and a template, it answers a new one's DSN."""
    made: list[tuple[str, str]] = []

    async def make(server: str, template: str = "template0") -> str:
        name = f"test_{next(_numbers)}"
        await _execute(server, f"CREATE DATABASE {name} TEMPLATE {template}")
        made.append((server, name))
        return dsn_of(server, name)

    yield make
    for server, name in made:
        await _execute(server, f"DROP DATABASE {name} WITH (FORCE)")


async def _execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture
async def database(server: str, make_database: Callable[..., Awaitable[str]]) -> str:
    """DSN of a fresh migrated database."""
    return await make_database(server, TEMPLATE)


@pytest.fixture
async def supabase(supabase_server: str, make_database: Callable[..., Awaitable[str]]) -> str:
    """DSN of a fresh migrated database that looks like Supabase's, for its role ``postgres``."""
    return await make_database(supabase_server, MIGRATED_SUPABASE)


@pytest.fixture
async def pool(database: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    """A pool on the fresh migrated database, made as the program makes its own."""
    pool = await open_pool(DatabaseSettings(pool_size=10), database, "tests")
    yield pool
    await pool.close()
