"""The migration that makes buckets: on a database with the schema of Supabase Storage, and with less than it needs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from tenkaigen_worker.config import DatabaseSettings
from tenkaigen_worker.database.connect import connect
from tenkaigen_worker.database.migrate import migrate

ME, ANOTHER = UUID(int=1), UUID(int=2)
FILES = [
    ("generated-designs", f"{ME}/{UUID(int=8)}/1-0-a.png"),
    ("generated-designs", f"{ANOTHER}/{UUID(int=8)}/1-0-a.png"),
    ("generated-designs", f"anonymous/{ME}/1-0-a.png"),
    ("generation-uploads", f"{ME}/{UUID(int=8)}/1-0-a.png"),
    ("somebody-elses", f"{ME}/{UUID(int=8)}/1-0-a.png"),
]

# The parts of Supabase's own migrations that matter here.
ROLES = "CREATE ROLE authenticated NOLOGIN"
AUTH = """
CREATE SCHEMA auth;
CREATE TABLE auth.users (id uuid PRIMARY KEY);
CREATE FUNCTION auth.uid() RETURNS uuid LANGUAGE sql STABLE AS $$
    SELECT (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid
$$;
GRANT USAGE ON SCHEMA auth TO authenticated;
"""
STORAGE = """
CREATE SCHEMA storage;
CREATE TABLE storage.buckets (
    id text PRIMARY KEY,
    name text NOT NULL UNIQUE,
    owner uuid,
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now(),
    public boolean DEFAULT false,
    file_size_limit bigint,
    allowed_mime_types text[]
);
CREATE TABLE storage.objects (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    bucket_id text REFERENCES storage.buckets (id),
    name text,
    metadata jsonb,
    UNIQUE (bucket_id, name)
);
ALTER TABLE storage.buckets ENABLE ROW LEVEL SECURITY;
ALTER TABLE storage.objects ENABLE ROW LEVEL SECURITY;
GRANT USAGE ON SCHEMA storage TO authenticated;
GRANT ALL ON ALL TABLES IN SCHEMA storage TO authenticated;
"""


@pytest.fixture
async def connection(any_server: str, make_database: Callable[..., Awaitable[str]]) -> AsyncIterator[Any]:
    connection = await connect(DatabaseSettings(), await make_database(any_server), "tests")
    await connection.execute(ROLES)
    yield connection
    await connection.execute("RESET ROLE; RESET SESSION AUTHORIZATION")
    await connection.execute("DROP OWNED BY authenticated; DROP ROLE authenticated")
    await connection.close()


async def buckets(connection: asyncpg.Connection[Any]) -> dict[str, bool]:
    return {row["id"]: row["public"] for row in await connection.fetch("SELECT id, public FROM storage.buckets")}


async def seen(connection: asyncpg.Connection[Any], user: UUID) -> list[tuple[str, str]]:
    """The files that a user sees in the table of Supabase Storage."""
    async with connection.transaction():
        await connection.execute("SELECT set_config('request.jwt.claims', $1, true)", json.dumps({"sub": str(user)}))
        await connection.execute("SET LOCAL ROLE authenticated")
        return [tuple(row) for row in await connection.fetch("SELECT bucket_id, name FROM storage.objects")]


async def test_buckets_and_what_users_see_in_them(connection: asyncpg.Connection[Any]) -> None:
    await connection.execute(AUTH + STORAGE)
    await migrate(connection)

    assert await buckets(connection) == {"generated-designs": True, "generation-uploads": False}
    await connection.execute("INSERT INTO storage.buckets (id, name) VALUES ('somebody-elses', 'somebody-elses')")
    await connection.executemany("INSERT INTO storage.objects (bucket_id, name) VALUES ($1, $2)", FILES)
    assert await seen(connection, ME) == FILES[:1]
    assert await seen(connection, ANOTHER) == FILES[1:2]
    assert await seen(connection, UUID(int=3)) == []

    await connection.execute("SELECT set_config('request.jwt.claims', $1, false)", json.dumps({"sub": str(ME)}))
    await connection.execute("SET ROLE authenticated")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.execute(
            "INSERT INTO storage.objects (bucket_id, name) VALUES ($1, $2)", FILES[0][0], f"{ME}/x"
        )
    assert await connection.execute("DELETE FROM storage.objects") == "DELETE 0"
    assert await connection.execute("UPDATE storage.objects SET name = 'x'") == "UPDATE 0"


async def test_a_bucket_of_the_shop_stays_as_it_is(connection: asyncpg.Connection[Any]) -> None:
    await connection.execute(AUTH + STORAGE)
    await connection.execute("INSERT INTO storage.buckets VALUES ('generated-designs', 'generated-designs')")
    await migrate(connection)

    assert await buckets(connection) == {"generated-designs": False, "generation-uploads": False}


async def test_without_users_there_are_buckets_alone(connection: asyncpg.Connection[Any]) -> None:
    await connection.execute(STORAGE)
    await migrate(connection)

    assert len(await buckets(connection)) == 2
    assert await connection.fetchval("SELECT count(*) FROM pg_policy") == 0


async def test_who_may_not_is_told(connection: asyncpg.Connection[Any]) -> None:
    await connection.execute(AUTH + STORAGE)
    warnings: list[str] = []
    connection.add_log_listener(lambda _, message: warnings.append(message.message))
    await connection.execute(
        "CREATE ROLE plain; GRANT ALL ON SCHEMA public TO plain; GRANT USAGE ON SCHEMA storage TO plain"
    )
    try:
        await connection.execute(
            "GRANT plain TO CURRENT_USER; GRANT CREATE ON SCHEMA public TO plain; GRANT USAGE ON SCHEMA auth TO plain; "
            "GRANT REFERENCES ON auth.users TO plain; GRANT INSERT ON storage.buckets TO plain; SET ROLE plain"
        )
        await migrate(connection)
        await connection.execute("RESET ROLE")
        assert await buckets(connection) == {}
        assert len([text for text in warnings if text.startswith("this role may not make")]) == 2
    finally:
        await connection.execute("RESET ROLE; DROP OWNED BY plain CASCADE; DROP ROLE plain")
