"""Migrations on what Supabase projects may hold already: grants, policies, roles; and nothing of it elsewhere."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING
from uuid import UUID

import asyncpg
import pytest

from tenkaigen_worker.config import DatabaseSettings
from tenkaigen_worker.database.connect import connect, open_pool
from tenkaigen_worker.database.migrate import migrate
from tenkaigen_worker.database.row_security import users_are_apart

from ..conftest import MIGRATED_SUPABASE, NEW_SUPABASE, SUPABASE, as_role

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

MIA, NOAH = UUID(int=1), UUID(int=2)

# As the shop's first 015 made it, and what its front end needed.
SHOP = """
CREATE TABLE generation_jobs (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id uuid REFERENCES auth.users (id),
    status text NOT NULL DEFAULT 'pending',
    prompt text NOT NULL,
    result_url text,
    created_at timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE generation_jobs ENABLE ROW LEVEL SECURITY;
CREATE POLICY "Everybody sees everything" ON generation_jobs FOR SELECT USING (true);
CREATE POLICY "Users change their own" ON generation_jobs FOR ALL TO anon, authenticated
    USING (auth.uid() = user_id) WITH CHECK (auth.uid() = user_id);
CREATE POLICY "Staff sees everything" ON generation_jobs FOR SELECT TO staff USING (true);
CREATE POLICY "Nobody sees secrets" ON generation_jobs AS RESTRICTIVE FOR SELECT USING (prompt <> 'secret');
"""

STATE = """
WITH tables AS (
    SELECT * FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'S')
)
SELECT relname AS name, relrowsecurity::text AS says, acl::text FROM tables, aclexplode(relacl) AS acl
UNION ALL
SELECT relname, attname, acl::text FROM tables JOIN pg_attribute ON attrelid = tables.oid, aclexplode(attacl) AS acl
UNION ALL
SELECT proname, '', acl::text FROM pg_proc, aclexplode(coalesce(proacl, acldefault('f', proowner))) AS acl
WHERE pronamespace = 'public'::regnamespace
UNION ALL
SELECT tablename, policyname, concat_ws(' ', permissive, roles::text, cmd, qual, with_check) FROM pg_policies
WHERE schemaname = 'public'
ORDER BY 1, 2, 3
"""


@pytest.fixture
async def staff(supabase_server: str) -> AsyncIterator[str]:
    """A role of the shop's own. Asked for before a database, because it can be dropped only after that."""
    connection = await asyncpg.connect(supabase_server)
    await connection.execute("CREATE ROLE staff")
    yield "staff"
    await connection.execute("DROP ROLE staff")
    await connection.close()


@pytest.fixture
async def owner(supabase_server: str, make_database: Callable[..., Awaitable[str]]) -> AsyncIterator[Connection]:
    """A connection of the role that migrates, to a project that has none of our tables yet."""
    connection = await connect(DatabaseSettings(), await make_database(supabase_server, SUPABASE), "tests")
    yield connection
    await connection.close()


async def test_the_end_is_the_same_whatever_a_project_grants(
    any_supabase_server: str, make_database: Callable[..., Awaitable[str]]
) -> None:
    """Roles and their numbers are one server's, so grants can be compared as they are."""
    states = []
    for template in (MIGRATED_SUPABASE, NEW_SUPABASE):
        connection = await connect(DatabaseSettings(), await make_database(any_supabase_server, template), "tests")
        await migrate(connection)
        states.append(await connection.fetch(STATE))
        await connection.close()

    assert states[0] == states[1]
    assert len(states[0]) > 50


async def test_policies_that_would_widen_ours_are_dropped_with_their_words(
    staff: str, owner: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    await owner.execute(SHOP)
    await owner.execute(f"GRANT SELECT ON generation_jobs TO {staff}")
    await owner.executemany("INSERT INTO auth.users (id) VALUES ($1)", [(MIA,), (NOAH,)])
    await owner.executemany(
        "INSERT INTO generation_jobs (user_id, prompt) VALUES ($1, $2)",
        [(MIA, "a fox"), (MIA, "secret"), (NOAH, "a bear"), (None, "a crow")],
    )

    await migrate(owner)

    assert warnings(caplog) == [
        "dropping a policy that would widen what users may see: "
        'CREATE POLICY "Everybody sees everything" ON public.generation_jobs FOR SELECT TO public USING (true)',
        "dropping a policy that would widen what users may see: "
        'CREATE POLICY "Users change their own" ON public.generation_jobs FOR ALL TO anon, authenticated '
        "USING ((auth.uid() = user_id)) WITH CHECK ((auth.uid() = user_id))",
    ]
    policies = await owner.fetch(
        "SELECT policyname FROM pg_policies WHERE tablename = 'generation_jobs' AND policyname LIKE '% %' ORDER BY 1"
    )
    assert [row["policyname"] for row in policies] == ["Nobody sees secrets", "Staff sees everything"]
    async with owner.transaction():
        await owner.execute("SELECT set_config('request.jwt.claims', $1, true)", f'{{"sub": "{MIA}"}}')
        await owner.execute("SET LOCAL ROLE authenticated")
        assert [row["prompt"] for row in await owner.fetch("SELECT * FROM generation_jobs")] == ["a fox"]


async def test_roles_that_see_nothing_any_more_are_named(
    staff: str, owner: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    await owner.execute("CREATE TABLE generation_jobs (id uuid PRIMARY KEY, prompt text)")
    await owner.execute(f"GRANT SELECT ON generation_jobs TO {staff}")

    await migrate(owner)

    (warning,) = warnings(caplog)
    assert warning.startswith("row-level security now hides all jobs from staff, which must have a policy of its own")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


async def test_jobs_are_published_once_where_that_is_allowed(
    owner: Connection,
    supabase_server: str,
    make_database: Callable[..., Awaitable[str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    published = "SELECT tablename FROM pg_publication_tables WHERE pubname = 'supabase_realtime'"
    await owner.execute("CREATE TABLE generation_jobs (id uuid PRIMARY KEY, prompt text)")
    await owner.execute("ALTER PUBLICATION supabase_realtime ADD TABLE generation_jobs")
    await migrate(owner)
    assert [row["tablename"] for row in await owner.fetch(published)] == ["generation_jobs"]
    assert await owner.fetchval("SELECT relreplident FROM pg_class WHERE relname = 'generation_jobs'") == b"d"
    assert not warnings(caplog)

    dsn = await make_database(supabase_server, SUPABASE)
    admin = await connect(DatabaseSettings(), as_role(dsn, "supabase_admin"), "tests")
    await admin.execute("ALTER PUBLICATION supabase_realtime OWNER TO supabase_admin")
    other = await connect(DatabaseSettings(), dsn, "tests")
    await migrate(other)
    assert not await other.fetch(published)
    (warning,) = warnings(caplog)
    assert warning.endswith("turn it on for generation_jobs in the dashboard")
    await admin.close()
    await other.close()


async def test_a_database_that_became_one_of_supabase_later_is_found_and_closed(
    supabase_server: str, make_database: Callable[..., Awaitable[str]]
) -> None:
    dsn = await make_database(supabase_server, SUPABASE)
    admin = await connect(DatabaseSettings(), as_role(dsn, "supabase_admin"), "tests")
    await admin.execute("ALTER FUNCTION auth.uid() RENAME TO not_there_yet")
    owner = await connect(DatabaseSettings(), dsn, "tests")
    await migrate(owner)
    async with await open_pool(DatabaseSettings(), dsn, "tests") as pool:
        assert await users_are_apart(pool) is None
        await admin.execute("ALTER FUNCTION auth.not_there_yet() RENAME TO uid")
        assert await users_are_apart(pool) is False
        # What a dump brings, and what new tables of older projects are granted.
        await owner.execute("ALTER TABLE generation_api_keys DISABLE ROW LEVEL SECURITY")
        await owner.execute("GRANT ALL ON generation_api_keys TO anon")

        await owner.execute("DELETE FROM tenkaigen_migrations WHERE version IN (25, 26, 28)")
        await migrate(owner)
        assert await users_are_apart(pool) is True
        keys = "SELECT has_table_privilege($1, 'generation_api_keys', 'INSERT')"
        assert [await owner.fetchval(keys, role) for role in ("anon", "tenkaigen_worker")] == [False, True]

        await owner.execute("ALTER TABLE generation_api_keys DISABLE ROW LEVEL SECURITY")
        assert await users_are_apart(pool) is False
    await admin.close()
    await owner.close()


async def test_elsewhere_nothing_changes(database: str) -> None:
    connection = await connect(DatabaseSettings(), database, "tests")
    secured = await connection.fetch(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relrowsecurity"
    )
    assert not secured
    assert not await connection.fetch("SELECT FROM pg_policies")
    assert await connection.fetchval("SELECT to_regrole('tenkaigen_worker') IS NULL")
    assert await connection.fetchval("SELECT to_regproc('public.cancel_generation_job') IS NULL")
    await connection.close()
