"""Migrations on the oldest and the newest PostgreSQL: new tables, adopted ones, the ledger, and two at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from tenkaigen_worker.config import DatabaseSettings
from tenkaigen_worker.database.connect import connect, open_pool
from tenkaigen_worker.database.migrate import Migration, check_schema, migrate, pending, shipped_migrations
from tenkaigen_worker.database.queue import PostgresQueue
from tenkaigen_worker.database.submissions import Submissions
from tenkaigen_worker.errors import DatabaseError, FieldProblem, InputError
from tenkaigen_worker.maintenance import rescue

KNOWN = shipped_migrations()
FIRST = Migration(1, "one", "CREATE TABLE one ()")
SECOND = Migration(2, "two", "CREATE TABLE two ()")

# As the shop's first 015 made it.
TEXT_SHOP = """
CREATE TABLE generation_jobs (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id uuid,
    status text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'processing', 'completed', 'failed')),
    prompt text NOT NULL,
    style text NOT NULL DEFAULT 'Standard',
    width integer NOT NULL DEFAULT 1024,
    height integer NOT NULL DEFAULT 1024,
    seed integer,
    result_url text,
    error_message text,
    processing_time_ms integer,
    image_data text,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT finished_has_url CHECK (status <> 'completed' OR result_url IS NOT NULL)
);
CREATE INDEX waiting ON generation_jobs (created_at) WHERE status = 'pending';
CREATE INDEX ON generation_jobs (created_at);
CREATE INDEX ON generation_jobs (user_id);
CREATE INDEX ON generation_jobs (status);
"""

# The same, by somebody who likes types.
TYPED_SHOP = """
CREATE TYPE job_status AS ENUM ('pending', 'running', 'done', 'error', 'parked');
CREATE TYPE job_style AS ENUM ('Anime', 'Line Art');
CREATE TABLE generation_jobs (
    id uuid PRIMARY KEY,
    user_id text,
    status job_status NOT NULL DEFAULT 'pending',
    prompt varchar(500) NOT NULL,
    style job_style,
    width smallint NOT NULL DEFAULT 1000,
    height smallint NOT NULL DEFAULT 1000,
    seed integer NOT NULL DEFAULT 0,
    result_url varchar(300),
    error_message varchar(100),
    processing_time_ms bigint,
    image_data bytea,
    metadata json,
    completed_at timestamp,
    created_at timestamp NOT NULL DEFAULT '2026-01-01'
);
CREATE INDEX waiting ON generation_jobs (created_at) WHERE status = 'pending';
CREATE INDEX by_status ON generation_jobs (status);
"""


DONE_URL = "https://shop.example/1.png"


class Shop:
    """Inserts rows into the shop's table; ``common`` columns are in each of them."""

    def __init__(self, connection: asyncpg.Connection[Any], **common: object) -> None:
        self._connection = connection
        self._common = common

    async def insert(self, prompt: str, status: str, **columns: object) -> None:
        row = {"id": uuid4(), "prompt": prompt, "status": status, **self._common, **columns}
        places = ", ".join(f"${number}" for number in range(1, len(row) + 1))
        await self._connection.execute(
            f"INSERT INTO generation_jobs ({', '.join(row)}) VALUES ({places})", *row.values()
        )


@pytest.fixture
async def empty(any_server: str, make_database: Callable[..., Awaitable[str]]) -> str:
    """DSN of an empty database on the newest and the oldest PostgreSQL."""
    return await make_database(any_server)


@pytest.fixture
async def connection(empty: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    connection = await connect(DatabaseSettings(), empty, "tests")
    yield connection
    await connection.close()


async def test_an_empty_database_gets_the_table_and_a_plain_insert_works(connection: asyncpg.Connection[Any]) -> None:
    with pytest.raises(DatabaseError, match=r"no job table yet; run: tenkaigen migrate"):
        await check_schema(connection)
    assert await migrate(connection, dry_run=True) == list(KNOWN)
    assert await connection.fetchval("SELECT to_regclass('tenkaigen_migrations')") is None

    assert await migrate(connection) == list(KNOWN)

    assert await migrate(connection) == []
    await check_schema(connection)
    await connection.execute("INSERT INTO generation_jobs (prompt, style) VALUES ('A phoenix rising', 'Anime')")
    assert await connection.fetchval("SELECT status FROM generation_jobs WHERE fair_at = run_at") == "queued"


async def test_everything_is_described_and_every_rule_is_valid(connection: asyncpg.Connection[Any]) -> None:
    await migrate(connection)

    undescribed = await connection.fetch(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'generation_jobs'::regclass AND attnum > 0 "
        "AND NOT attisdropped AND col_description(attrelid, attnum) IS NULL"
    )
    rules = await connection.fetch(
        "SELECT conname, convalidated, obj_description(oid, 'pg_constraint') AS words FROM pg_constraint "
        "WHERE conrelid = 'generation_jobs'::regclass AND contype = 'c'"
    )
    assert undescribed == []
    assert len(rules) > 30
    assert all(
        rule["convalidated"] and rule["words"] and rule["conname"].startswith("generation_jobs_") for rule in rules
    )


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        ("prompt", "' \n '", "prompt_not_blank"),
        ("prompt", "repeat('x', 4001)", "prompt_at_most_4000_characters"),
        ("width", "1000", "width_multiple_of_16"),
        ("height", "8192", "height_64_to_4096"),
        ("seed", "4294967296", "seed_0_to_4294967295"),
        ("steps", "0", "steps_1_to_100"),
        ("guidance_scale", "'NaN'", "guidance_scale_1_to_20"),
        ("count", "9", "count_1_to_8"),
        ("loras", "'{}'", "loras_is_list"),
        ("strength", "1.5", "strength_0_to_1"),
        ("more_references", "'{a,b,c}'", "more_references_at_most_2"),
        ("more_references", "'{a,null}'", "more_references_at_most_2"),
        ("more_references", "'{{a},{b}}'", "more_references_at_most_2"),
        ("more_references", "ARRAY[repeat('x', 20000)]", "more_references_at_most_2"),
        ("priority", "101", "priority_minus_100_to_100"),
        ("status", "'done'", "status_known"),
        ("metadata", "jsonb_build_object('note', repeat('x', 20000))", "metadata_at_most_16_kb"),
        ("webhook_url", "'http://example.com/'", "webhook_url_is_https"),
        ("created_at", "'30000-01-01'", "created_at_years_1_to_9999"),
        ("created_at", "'0044-03-15 BC'", "created_at_years_1_to_9999"),
        ("created_at", "'infinity'", "created_at_years_1_to_9999"),
    ],
)
async def test_a_wrong_value_is_refused_by_a_rule_that_says_what_is_wrong(
    pool: asyncpg.Pool[Any], column: str, value: str, rule: str
) -> None:
    given = {"prompt": "'A phoenix rising'", column: value}

    with pytest.raises(asyncpg.CheckViolationError) as refused:
        await pool.execute(f"INSERT INTO generation_jobs ({', '.join(given)}) VALUES ({', '.join(given.values())})")

    assert refused.value.constraint_name == f"generation_jobs_{rule}"


async def test_a_template_may_say_everything(pool: asyncpg.Pool[Any]) -> None:
    assert await pool.fetchval("INSERT INTO generation_jobs (template) VALUES ('Sticker') RETURNING prompt") == ""
    with pytest.raises(asyncpg.CheckViolationError, match="prompt_not_blank"):
        await pool.execute("INSERT INTO generation_jobs (template) VALUES (' ')")


async def test_a_table_of_the_shop_is_adopted_with_its_rows(
    empty: str, connection: asyncpg.Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    await connection.execute(TEXT_SHOP)
    await connection.execute("ALTER TABLE generation_jobs ADD COLUMN cart_id bigint")
    old = Shop(connection, created_at=datetime(2026, 1, 1, tzinfo=UTC))
    await old.insert("waits", "pending", cart_id=1)
    await old.insert("runs", "processing", cart_id=2)
    await old.insert(
        *("is done", "completed"),
        **{"cart_id": 3, "width": 1000, "result_url": DONE_URL, "processing_time_ms": 2500, "image_data": "aGVsbG8="},
    )
    await old.insert("has failed", "failed", cart_id=4)
    await old.insert("cannot run", "pending", cart_id=5, width=1000)

    await migrate(connection)

    rows = {row["prompt"]: row for row in await connection.fetch("SELECT * FROM generation_jobs")}
    assert {prompt: row["status"] for prompt, row in rows.items()} == {
        **{"waits": "queued", "runs": "processing", "is done": "completed", "has failed": "failed"},
        "cannot run": "failed",
    }
    assert [row["cart_id"] for row in rows.values()] == [1, 2, 3, 4, 5]
    done = rows["is done"]
    assert (done["result_url"], done["image_data"], done["width"]) == (DONE_URL, "aGVsbG8=", 1000)
    assert done["completed_at"] == done["created_at"] + timedelta(milliseconds=2500)
    assert rows["cannot run"]["error_message"] == "width must be a multiple of 16"
    assert "some old rows break the rule generation_jobs_width_multiple_of_16" in caplog.text
    await _works_like_a_new_one(empty, connection, waiting=rows["waits"], running=rows["runs"])


async def test_a_table_with_narrower_types_is_adopted_with_its_rows(
    empty: str, connection: asyncpg.Connection[Any]
) -> None:
    await connection.execute(TYPED_SHOP)
    old = Shop(connection, width=512, height=512)
    await old.insert("waits", "pending", style="Line Art", user_id=str(UUID(int=1)))
    await old.insert("runs", "running")
    await old.insert("is done", "done", width=1000, result_url=DONE_URL, image_data=b"\x01")
    await old.insert("has failed", "error")
    await old.insert("is odd", "parked")
    await old.insert("has a picture", "parked", result_url=DONE_URL)

    await migrate(connection)

    rows = {row["prompt"]: row for row in await connection.fetch("SELECT * FROM generation_jobs")}
    assert {prompt: row["status"] for prompt, row in rows.items()} == {
        **{"waits": "queued", "runs": "processing", "is done": "completed", "has failed": "failed"},
        **{"is odd": "failed", "has a picture": "completed"},
    }
    assert rows["waits"]["created_at"] == datetime(2026, 1, 1, tzinfo=UTC)
    assert (rows["waits"]["style"], str(rows["waits"]["user_id"])) == (
        "Line Art",
        "00000000-0000-0000-0000-000000000001",
    )
    assert rows["is done"]["image_data"] == b"\x01"
    assert rows["is odd"]["error_message"] == "The status was 'parked' when this table was adopted."
    assert await connection.fetchval("SELECT to_regclass('by_status') IS NOT NULL AND to_regclass('waiting') IS NULL")
    await _works_like_a_new_one(empty, connection, waiting=rows["waits"], running=rows["runs"])


async def _works_like_a_new_one(
    dsn: str, connection: asyncpg.Connection[Any], *, waiting: asyncpg.Record, running: asyncpg.Record
) -> None:
    """Old work is done first, new rows may leave everything to the model, and what the old worker held is rescued."""
    await check_schema(connection)
    await connection.execute("INSERT INTO generation_jobs (prompt, seed) VALUES ('is new', 4294967295)")
    with pytest.raises(asyncpg.CheckViolationError):
        await connection.execute("INSERT INTO generation_jobs (prompt, width) VALUES ('is wrong', 1000)")

    async with await open_pool(DatabaseSettings(), dsn, "tests") as pool:
        queue = PostgresQueue(pool, "worker", 60)
        first, second = await queue.claim(), await queue.claim()
        assert first is not None
        assert first.id == waiting["id"]
        assert second is not None
        assert (second.columns["prompt"], second.columns["width"], second.columns["style"]) == ("is new", None, None)
        assert await queue.claim() is None

        await rescue(pool, 60)
        assert await pool.fetchval("SELECT status FROM generation_jobs WHERE id = $1", running["id"]) == "queued"


async def test_old_rows_that_break_a_rule_can_still_be_changed(empty: str, connection: asyncpg.Connection[Any]) -> None:
    await connection.execute("CREATE SCHEMA auth; CREATE TABLE auth.users (id uuid PRIMARY KEY)")
    await connection.execute(TEXT_SHOP)
    user = await connection.fetchval("INSERT INTO auth.users VALUES (gen_random_uuid()) RETURNING id")
    await Shop(connection, user_id=user, width=1000).insert("is odd", "failed")

    await migrate(connection)

    await connection.execute("DELETE FROM auth.users")
    await connection.execute("UPDATE generation_jobs SET image_data = NULL")
    (odd,) = await connection.fetch("SELECT id, user_id, width FROM generation_jobs")
    assert (odd["user_id"], odd["width"]) == (None, 1000)
    with pytest.raises(asyncpg.CheckViolationError, match="generation_jobs_width_multiple_of_16"):
        await connection.execute("UPDATE generation_jobs SET status = 'queued'")
    async with await open_pool(DatabaseSettings(), empty, "tests") as pool:
        with pytest.raises(InputError) as refused:
            await Submissions(pool).retry(odd["id"])
    assert refused.value.problems == (FieldProblem("width", "must be a multiple of 16"),)


async def test_old_rows_without_words_stay_as_they_are(connection: asyncpg.Connection[Any]) -> None:
    await connection.execute(TEXT_SHOP)
    await Shop(connection).insert("  ", "failed")
    await migrate(connection)

    await connection.execute("UPDATE generation_jobs SET image_data = NULL")
    with pytest.raises(asyncpg.CheckViolationError, match="prompt_not_blank"):
        await connection.execute("UPDATE generation_jobs SET status = 'queued'")


async def test_the_shops_own_triggers_sleep_meanwhile(connection: asyncpg.Connection[Any]) -> None:
    await connection.execute(TEXT_SHOP)
    await Shop(connection).insert("waits", "pending", width=1000)
    await connection.execute("""
        CREATE FUNCTION send_mail() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'a mail to the customer'; END $$;
        CREATE TRIGGER mail AFTER UPDATE ON generation_jobs EXECUTE FUNCTION send_mail();
        CREATE TRIGGER mail_always AFTER UPDATE ON generation_jobs EXECUTE FUNCTION send_mail();
        CREATE TRIGGER mail_replica AFTER UPDATE ON generation_jobs EXECUTE FUNCTION send_mail();
        CREATE TRIGGER mail_never AFTER UPDATE ON generation_jobs EXECUTE FUNCTION send_mail();
        ALTER TABLE generation_jobs ENABLE ALWAYS TRIGGER mail_always, ENABLE REPLICA TRIGGER mail_replica,
            DISABLE TRIGGER mail_never;
    """)

    await migrate(connection)

    awake = await connection.fetch("SELECT tgname, tgenabled FROM pg_trigger WHERE tgname LIKE 'mail%'")
    assert dict(map(tuple, awake)) == {"mail": b"O", "mail_always": b"A", "mail_replica": b"R", "mail_never": b"D"}


async def test_constraints_that_wait_for_the_end_are_no_obstacle(connection: asyncpg.Connection[Any]) -> None:
    await connection.execute("CREATE TABLE carts (id bigint PRIMARY KEY)")
    await connection.execute(TEXT_SHOP)
    await connection.execute(
        "ALTER TABLE generation_jobs ADD cart_id bigint REFERENCES carts DEFERRABLE INITIALLY DEFERRED, "
        "ADD UNIQUE (created_at) DEFERRABLE INITIALLY DEFERRED"
    )
    await connection.execute("INSERT INTO carts VALUES (1)")
    await Shop(connection).insert("waits", "pending", cart_id=1)

    await migrate(connection)

    assert await connection.fetchval("SELECT status FROM generation_jobs") == "queued"


@pytest.mark.parametrize(
    ("dependent", "named"),
    [
        (
            "CREATE VIEW waiting_jobs AS SELECT id FROM generation_jobs WHERE status = 'pending'",
            r"status must be text \(rule _RETURN on view waiting_jobs\)",
        ),
        (
            "CREATE POLICY own_jobs ON generation_jobs USING (user_id = current_user)",
            r"user_id must be uuid \(policy own_jobs on table generation_jobs\)",
        ),
        (
            "CREATE TRIGGER mail AFTER UPDATE OF prompt ON generation_jobs "
            "EXECUTE FUNCTION suppress_redundant_updates_trigger()",
            r"prompt must be text \(trigger mail on table generation_jobs\)",
        ),
    ],
)
async def test_what_depends_on_a_type_that_must_change_is_named(
    connection: asyncpg.Connection[Any], dependent: str, named: str
) -> None:
    await connection.execute(TYPED_SHOP)
    await connection.execute(dependent)

    with pytest.raises(DatabaseError, match=rf"(?s)something depends on it: {named}\nDrop what depends on them"):
        await migrate(connection)

    assert await pending(connection) == list(KNOWN)


async def test_types_that_do_as_well_may_stay(connection: asyncpg.Connection[Any]) -> None:
    await connection.execute(TEXT_SHOP.replace("style text", "style varchar").replace("ms integer", "ms bigint"))
    await connection.execute("CREATE VIEW styles AS SELECT style, processing_time_ms FROM generation_jobs")

    await migrate(connection)

    await connection.execute("INSERT INTO generation_jobs (prompt, style) VALUES ('is new', 'Anime')")
    assert await connection.fetchval("SELECT style FROM styles") == "Anime"


async def test_columns_of_our_names_get_our_defaults(empty: str, connection: asyncpg.Connection[Any]) -> None:
    await connection.execute(TEXT_SHOP)
    await connection.execute(
        "ALTER TABLE generation_jobs ADD attempt integer, ADD max_attempts integer, ADD priority smallint, "
        "ADD metadata jsonb, ADD steps integer NOT NULL DEFAULT 30"
    )
    await Shop(connection, created_at=datetime(2026, 1, 1, tzinfo=UTC)).insert("waits", "pending", max_attempts=7)

    await migrate(connection)

    await connection.execute("INSERT INTO generation_jobs (prompt) VALUES ('is new')")
    rows = await connection.fetch("SELECT attempt, max_attempts, priority, steps FROM generation_jobs ORDER BY seq")
    assert [tuple(row) for row in rows] == [(0, 7, 0, 30), (0, 3, 0, None)]
    async with await open_pool(DatabaseSettings(), empty, "tests") as pool:
        queue = PostgresQueue(pool, "worker", 60)
        first, second = await queue.claim(), await queue.claim()
    assert first is not None
    assert second is not None
    assert [job.columns["prompt"] for job in (first, second)] == ["waits", "is new"]


async def test_columns_of_our_names_in_another_type_are_named(connection: asyncpg.Connection[Any]) -> None:
    await connection.execute(TEXT_SHOP)
    await connection.execute(
        "ALTER TABLE generation_jobs ADD worker_id uuid, ADD progress integer, ADD seq bigserial, "
        "ADD stage text GENERATED ALWAYS AS (upper(style)) STORED"
    )

    with pytest.raises(
        DatabaseError,
        match=r"(?s): seq is bigint and must be bigint GENERATED ALWAYS AS IDENTITY; worker_id is uuid and must be "
        r"text; progress is integer and must be real; stage is text GENERATED and must be text\nRename them",
    ):
        await migrate(connection)


async def test_a_table_without_a_status_is_adopted(connection: asyncpg.Connection[Any]) -> None:
    await connection.execute("CREATE TABLE generation_jobs (id uuid, prompt text, result_url text)")
    await connection.execute("INSERT INTO generation_jobs VALUES (gen_random_uuid(), 'old', NULL)")
    await connection.execute("INSERT INTO generation_jobs VALUES (gen_random_uuid(), 'old', '/1.png')")

    await migrate(connection)

    await connection.execute("INSERT INTO generation_jobs (prompt) VALUES ('new')")
    rows = await connection.fetch("SELECT status FROM generation_jobs ORDER BY seq")
    assert [row["status"] for row in rows] == ["failed", "completed", "queued"]


async def test_a_table_that_cannot_be_adopted_is_left_alone(connection: asyncpg.Connection[Any]) -> None:
    await connection.execute("CREATE TABLE generation_jobs (id bigint PRIMARY KEY)")

    with pytest.raises(DatabaseError, match=r"(?s)no column \"id\" of type uuid.*Rename that table"):
        await migrate(connection)

    assert (
        await connection.fetchval(
            "SELECT count(*) FROM pg_attribute WHERE attrelid = 'generation_jobs'::regclass AND attnum > 0"
        )
        == 1
    )
    assert await pending(connection) == list(KNOWN)


async def test_on_supabase_jobs_belong_to_users_and_are_closed_to_visitors(
    connection: asyncpg.Connection[Any],
) -> None:
    visitors = ("anon", "authenticated")
    for visitor in visitors:
        await connection.execute(f"CREATE ROLE {visitor}")
    try:
        await connection.execute("CREATE SCHEMA auth; CREATE TABLE auth.users (id uuid PRIMARY KEY)")
        await connection.execute("ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO anon, authenticated")

        await migrate(connection)

        closed = (
            "generation_jobs",
            "generation_settings",
            "generation_user_limits",
            "generation_workers",
            "tenkaigen_migrations",
        )
        for table in closed:
            for visitor in visitors:
                assert not await connection.fetchval("SELECT has_table_privilege($1, $2, 'SELECT')", visitor, table)
        with pytest.raises(asyncpg.ForeignKeyViolationError, match="generation_jobs_user_id_is_a_user"):
            await connection.execute("INSERT INTO generation_jobs (prompt, user_id) VALUES ('x', gen_random_uuid())")
        await connection.execute(
            "WITH new AS (INSERT INTO auth.users VALUES (gen_random_uuid()) RETURNING id) SELECT id FROM new"
        )
        await connection.execute("INSERT INTO generation_jobs (prompt, user_id) SELECT 'x', id FROM auth.users")
        await connection.execute("DELETE FROM auth.users")
        assert await connection.fetchval("SELECT user_id FROM generation_jobs") is None
    finally:
        await connection.execute("DROP OWNED BY anon, authenticated")
        await connection.execute("DROP ROLE anon, authenticated")


async def test_two_programs_at_once_apply_each_file_once(empty: str) -> None:
    connections = [await connect(DatabaseSettings(), empty, "tests") for _ in range(4)]

    applied = await asyncio.gather(*(migrate(connection) for connection in connections))

    assert sorted(str(migration) for part in applied for migration in part) == [str(migration) for migration in KNOWN]
    for connection in connections:
        await connection.close()


async def test_a_failing_file_leaves_nothing_behind(connection: asyncpg.Connection[Any]) -> None:
    broken = replace(SECOND, sql="CREATE TABLE two (); SELECT 1 / 0")

    with pytest.raises(DatabaseError, match=r"002_two\.sql failed and changed nothing: division by zero"):
        await migrate(connection, known=[FIRST, broken])

    assert await connection.fetchval("SELECT to_regclass('one') IS NOT NULL AND to_regclass('two') IS NULL")
    assert await pending(connection, known=[FIRST, SECOND]) == [SECOND]


async def test_a_connection_that_is_lost_meanwhile_is_a_database_error(connection: asyncpg.Connection[Any]) -> None:
    ended = replace(FIRST, sql="SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(DatabaseError, match=r"the connection was lost while 001_one\.sql was applied: .*migrate$"):
        await migrate(connection, known=[ended])


async def test_a_network_that_breaks_meanwhile_is_a_database_error(connection: asyncpg.Connection[Any]) -> None:
    connection.add_log_listener(lambda *_: connection.terminate())
    broken = replace(FIRST, sql="DO $$ BEGIN RAISE WARNING 'now'; PERFORM pg_sleep(60); END $$")

    with pytest.raises(DatabaseError, match=r"the connection was lost while 001_one\.sql was applied: .*migrate$"):
        await migrate(connection, known=[broken])


async def test_an_edited_file_is_refused(connection: asyncpg.Connection[Any]) -> None:
    await migrate(connection, known=[FIRST])

    with pytest.raises(DatabaseError, match=r"001_one\.sql was edited after it was applied"):
        await migrate(connection, known=[replace(FIRST, sql="CREATE TABLE other ()"), SECOND])

    assert await connection.fetchval("SELECT to_regclass('two') IS NULL")


async def test_a_newer_database_is_refused(connection: asyncpg.Connection[Any]) -> None:
    await migrate(connection, known=[FIRST, SECOND])

    with pytest.raises(DatabaseError, match=r"has seen 002_two\.sql, which this program .* does not know"):
        await migrate(connection, known=[FIRST])


async def test_an_older_schema_is_named(connection: asyncpg.Connection[Any]) -> None:
    await migrate(connection, known=KNOWN[:1])

    with pytest.raises(DatabaseError, match=rf"older than this program \({KNOWN[1]}, .*run: tenkaigen migrate"):
        await check_schema(connection)


def test_a_file_with_another_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "15_create.sql").touch()

    with pytest.raises(DatabaseError, match=r"15_create\.sql: a migration is called NNN_name\.sql"):
        shipped_migrations(tmp_path)


def test_two_files_with_the_same_number_are_refused(tmp_path: Path) -> None:
    (tmp_path / "015_one.sql").touch()
    (tmp_path / "015_two.sql").touch()

    with pytest.raises(DatabaseError, match="two migrations have the same number"):
        shipped_migrations(tmp_path)
