"""Who may do what on Supabase: every role, table, column and function is tried, and the documentation is held to it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import asyncpg
import pytest

from tenkaigen_worker.config import DatabaseSettings
from tenkaigen_worker.database.connect import connect, open_pool
from tenkaigen_worker.database.migrate import check_schema
from tenkaigen_worker.database.queue import PostgresQueue
from tenkaigen_worker.database.submissions import QUERIES, Submissions
from tenkaigen_worker.maintenance import rescue

from ..conftest import MIGRATED_SUPABASE, as_role

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Connection = asyncpg.Connection[asyncpg.Record]

API_DOC = Path(__file__).parents[2] / "docs" / "api.md"

MIA, NOAH = UUID(int=1), UUID(int=2)

# A waiting and a failed job of each, and of nobody in particular.
WAITING: Mapping[UUID | None, UUID] = {MIA: UUID(int=11), NOAH: UUID(int=12), None: UUID(int=13)}
FAILED: Mapping[UUID | None, UUID] = {MIA: UUID(int=21), NOAH: UUID(int=22), None: UUID(int=23)}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as PostgREST has it: a role, and the claims of a token."""

    role: str
    user: UUID | None = None

    @property
    def claims(self) -> str:
        return json.dumps({"role": self.role} | ({"sub": str(self.user)} if self.user else {}))


USER, ANOTHER = Caller("authenticated", MIA), Caller("authenticated", NOAH)
ANON, SERVICE, WORKER = Caller("anon"), Caller("service_role"), Caller("tenkaigen_worker")


@pytest.fixture
async def admin(supabase: str) -> AsyncIterator[Connection]:
    """A connection that may become anybody, on a database with jobs of several users."""
    async with _admin(supabase) as connection:
        yield connection


@pytest.fixture
async def any_admin(
    any_supabase_server: str, make_database: Callable[..., Awaitable[str]]
) -> AsyncIterator[Connection]:
    """The same on the newest and the oldest PostgreSQL."""
    async with _admin(await make_database(any_supabase_server, MIGRATED_SUPABASE)) as connection:
        yield connection


@asynccontextmanager
async def _admin(dsn: str) -> AsyncIterator[Connection]:
    connection = await connect(DatabaseSettings(), as_role(dsn, "supabase_admin"), "tests")
    await connection.execute("INSERT INTO auth.users (id) SELECT unnest($1::uuid[])", [MIA, NOAH])
    for jobs, status in ((WAITING, "queued"), (FAILED, "failed")):
        await connection.executemany(
            "INSERT INTO generation_jobs (id, user_id, prompt, status, priority) VALUES ($1, $2, 'a fox', $3, 5)",
            [(job, user, status) for user, job in jobs.items()],
        )
    await connection.execute("INSERT INTO generation_user_limits (user_id) VALUES ($1)", MIA)
    await connection.execute(
        "INSERT INTO generation_workers (id, host, version, backend, model, demo, state, styles, modes) "
        "VALUES ('w', 'h', '1', 'blank', 'm', false, 'ready', '{}', '{}')"
    )
    await connection.execute(
        "INSERT INTO generation_api_keys (name, sha256, scopes) VALUES ('k', sha256('k'), ARRAY['read'])"
    )
    yield connection
    await connection.close()


@asynccontextmanager
async def acting(connection: Connection, caller: Caller, *, keep: bool = False) -> AsyncIterator[None]:
    """Be ``caller`` for a transaction, as PostgREST is for a request; what is done is taken back, unless kept."""
    transaction = connection.transaction()
    await transaction.start()
    done = False
    try:
        await connection.execute("SELECT set_config('request.jwt.claims', $1, true)", caller.claims)
        await connection.execute(f"SET LOCAL ROLE {caller.role}")
        yield
        done = keep
    finally:
        await (transaction.commit() if done else transaction.rollback())


# The matrix: tables and functions by caller --------------------------------------------------------------------------

CALLERS = {"`anon`": ANON, "a user": USER, "`service_role`": SERVICE, "`tenkaigen_worker`": WORKER}

# What may be tried on jobs; each answers whose they are.
ON_JOBS: Mapping[str, tuple[str, Collection[object]]] = {
    "`SELECT`": ("SELECT user_id FROM generation_jobs", ()),
    "`INSERT`": (
        "INSERT INTO generation_jobs (prompt, user_id) VALUES ('a fox', $1) RETURNING user_id",
        WAITING.keys(),
    ),
    "`UPDATE`": ("UPDATE generation_jobs SET cancel_requested_at = now() RETURNING user_id", ()),
    "`DELETE`": ("DELETE FROM generation_jobs RETURNING user_id", ()),
    "`cancel_generation_job(job_id)`": ("SELECT user_id FROM cancel_generation_job($1)", WAITING.values()),
    "`retry_generation_job(job_id)`": ("SELECT user_id FROM retry_generation_job($1)", FAILED.values()),
}

OTHER_TABLES = (
    "generation_settings",
    "generation_user_limits",
    "generation_workers",
    "tenkaigen_migrations",
    "generation_api_keys",
)
ON_OTHERS = {
    "SELECT": "SELECT 1 FROM {}",
    "INSERT": "INSERT INTO {} DEFAULT VALUES RETURNING 1",
    "UPDATE": "WITH it AS (UPDATE {} SET {} = DEFAULT RETURNING 1) SELECT * FROM it",
    "DELETE": "DELETE FROM {} RETURNING 1",
}

ON_THE_REST = {
    "`generation_jobs_backoff(attempt)`": "SELECT generation_jobs_backoff(1)",
    "the sequence of `seq`": "SELECT nextval('generation_jobs_seq_seq')",
}


async def whose(connection: Connection, caller: Caller, statement: str, values: Collection[object]) -> str:
    """Whose jobs a statement gets at, tried with each of the values."""
    found: set[UUID | None] = set()
    for arguments in [(value,) for value in values] or [()]:
        async with acting(connection, caller):
            try:
                found |= {row["user_id"] for row in await connection.fetch(statement, *arguments)}
            except asyncpg.InsufficientPrivilegeError:
                continue
            except asyncpg.PostgresError as refused:
                if refused.sqlstate != "PT404":
                    raise
    if found == WAITING.keys():
        return "all"
    assert found <= {caller.user}
    return "own" if found else "no"


async def allowed(connection: Connection, caller: Caller, statement: str) -> bool:
    """Whether a statement would do something, were its values right."""
    async with acting(connection, caller):
        try:
            return bool(await connection.fetch(statement))
        except asyncpg.IntegrityConstraintViolationError:
            return True
        except asyncpg.InsufficientPrivilegeError:
            return False


async def matrix(connection: Connection) -> list[tuple[str, Mapping[Caller, str]]]:
    """Every cell, tried."""
    callers = (*CALLERS.values(), ANOTHER)
    rows = []
    for name, (statement, values) in ON_JOBS.items():
        name = name if "(" in name else f"{name} on `generation_jobs`"
        rows.append((name, {caller: await whose(connection, caller, statement, values) for caller in callers}))
    for table in OTHER_TABLES:
        column = await connection.fetchval(
            "SELECT attname FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum = 1", table
        )
        cells = {}
        for caller in callers:
            may = [a for a, s in ON_OTHERS.items() if await allowed(connection, caller, s.format(table, column))]
            cells[caller] = ", ".join(f"`{action}`" for action in may) or "no"
        rows.append((f"`{table}`", cells))
    for name, statement in ON_THE_REST.items():
        cells = {caller: "yes" if await allowed(connection, caller, statement) else "no" for caller in callers}
        rows.append((name, cells))
    return rows


async def test_matrix(any_admin: Connection) -> None:
    rows = await matrix(any_admin)

    table = [f"| | {' | '.join(CALLERS)} |", "|---" * (len(CALLERS) + 1) + "|"]
    table += [f"| {name} | {' | '.join(cells[caller] for caller in CALLERS.values())} |" for name, cells in rows]
    print("\n" + "\n".join(table))
    assert all(cells[ANOTHER] == cells[USER] for _, cells in rows)
    assert "\n".join(table) in API_DOC.read_text(encoding="utf-8")


async def test_nothing_else_is_granted_to_anybody(admin: Connection) -> None:
    """Tables, columns, sequences and functions of the whole schema, also those of later migrations."""
    readable, writable = "SELECT", "DELETE, INSERT, SELECT, UPDATE"
    jobs, backoff = "generation_jobs", "generation_jobs_backoff(integer)"
    expected = {
        "authenticated": {
            jobs: "SELECT",
            "cancel_generation_job(uuid)": "EXECUTE",
            "retry_generation_job(uuid)": "EXECUTE",
        },
        "service_role": dict.fromkeys((jobs, *OTHER_TABLES[:3]), writable)
        | {OTHER_TABLES[3]: readable, backoff: "EXECUTE"},
        "tenkaigen_worker": dict.fromkeys((jobs, "generation_workers"), writable)
        | dict.fromkeys(("generation_settings", "generation_user_limits", "tenkaigen_migrations"), readable)
        | {"generation_api_keys": "INSERT, SELECT, UPDATE", backoff: "EXECUTE"},
    }

    rows = await admin.fetch("""
        WITH ours AS (
            SELECT oid::regclass::text AS name, relowner AS owner,
                coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner)) AS acl
            FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v', 'm', 'p', 'S')
            UNION ALL
            SELECT oid::regprocedure::text, proowner, coalesce(proacl, acldefault('f', proowner))
            FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        )
        SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END AS role, name,
            string_agg(privilege_type, ', ' ORDER BY privilege_type) AS privileges
        FROM ours, aclexplode(acl)
        WHERE grantee <> owner
        GROUP BY grantee, name
    """)

    found: dict[str, dict[str, str]] = {}
    for row in rows:
        found.setdefault(row["role"], {})[row["name"]] = row["privileges"]
    assert found == expected
    without = await admin.fetch(
        "SELECT relname FROM pg_class "
        "WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND NOT relrowsecurity"
    )
    assert not without


# The columns ---------------------------------------------------------------------------------------------------------

NOW = datetime.now(UTC)

# What a user may ask for, with a value that is none's default.
SETTABLE: Mapping[str, object] = {
    "id": uuid4(),
    "user_id": MIA,
    "prompt": "a bear",
    "negative_prompt": "blurry",
    "style": "Anime",
    "mode": "lightning",
    "width": 512,
    "height": 512,
    "seed": 7,
    "steps": 4,
    "guidance_scale": 2.0,
    "count": 2,
    "loras": ["Ink"],
    "franchise": "Foxes",
    "template": "Mug Wrap",
    "template_variables": {"background": "blue"},
    "reference": "upload:1",
    "more_references": ["upload:2"],
    "mask": "upload:1",
    "strength": 0.5,
    "metadata": {"cart": 1},
    "run_at": NOW + timedelta(days=1),
    "expires_at": NOW + timedelta(days=1),
    "idempotency_key": "once",
    "request_hash": "hash",
    "retry_of": FAILED[MIA],
}

# And what only the queue or the shop's server may.
GUARDED: Mapping[str, object] = {
    "status": "completed",
    "priority": 1,
    "fair_at": NOW - timedelta(days=1),
    "max_attempts": 20,
    "webhook_url": "https://example.com/",
    "cancel_requested_at": NOW,
    "attempt": -0x7FFF,
    "lease_token": 1,
    "worker_id": "w",
    "lease_expires_at": NOW,
    "progress": 1.0,
    "stage": "decode",
    "result_url": "https://example.com/1.png",
    "outputs": [{}],
    "recipe": {},
    "error_code": "internal",
    "error_message": "x",
    "processing_time_ms": 1,
    "timings_ms": {},
    "image_data": "x",
    "files_to_remove": True,
    "created_at": NOW - timedelta(days=1),
    "started_at": NOW,
    "completed_at": NOW,
}


async def insert(connection: Connection | PoolConnectionProxy[asyncpg.Record], **columns: object) -> asyncpg.Record:
    """What supabase-js sends as ``.insert({...}).select()``, in PostgREST's words where they matter."""
    places = ", ".join(f"${number}" for number in range(1, len(columns) + 1))
    row = await connection.fetchrow(
        f'WITH pgrst_source AS (INSERT INTO "public"."generation_jobs" ({", ".join(columns)}) VALUES ({places}) '
        'RETURNING "public"."generation_jobs".*) SELECT * FROM pgrst_source',
        *columns.values(),
    )
    assert row is not None
    return row


async def test_every_column_is_either_the_users_or_refused(admin: Connection) -> None:
    columns = [
        row["attname"]
        for row in await admin.fetch(
            "SELECT attname FROM pg_attribute WHERE attrelid = 'generation_jobs'::regclass AND attnum > 0"
        )
    ]
    assert set(columns) == SETTABLE.keys() | GUARDED.keys() | {"seq"}

    for column in columns:
        if column in SETTABLE:
            async with acting(admin, USER):
                row = await insert(admin, **{"prompt": "a fox", column: SETTABLE[column]})
            assert row[column] == SETTABLE[column]
            assert row["user_id"] == MIA
        elif column in GUARDED:
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match=f"^not for users to set: {column}\n"):
                async with acting(admin, USER):
                    await insert(admin, **{"prompt": "a fox", column: GUARDED[column]})
        for caller in (ANON, USER):
            if caller is ANON or column == "seq":
                with pytest.raises(asyncpg.InsufficientPrivilegeError, match="permission denied for table"):
                    async with acting(admin, caller):
                        await admin.execute(
                            f"INSERT INTO generation_jobs ({column}) OVERRIDING SYSTEM VALUE VALUES (NULL)"
                        )


def test_the_documentation_names_the_columns() -> None:
    named = ", ".join(f"`{column}`" for column in SETTABLE)
    assert named in " ".join(API_DOC.read_text(encoding="utf-8").split())


async def test_what_a_user_may_not_say_is_refused_in_words(admin: Connection) -> None:
    for columns, message in (
        ({"user_id": NOAH}, "user_id must be your own"),
        ({"retry_of": FAILED[NOAH]}, "retry_of must be a job of your own"),
        ({"retry_of": uuid4()}, "retry_of must be a job of your own"),
        ({"run_at": NOW + timedelta(days=31)}, "run_at must be within the next 30 days"),
        ({"expires_at": NOW - timedelta(days=1)}, "expires_at must be after run_at and within the next 30 days"),
        ({"expires_at": NOW + timedelta(days=31)}, "expires_at must be after run_at and within the next 30 days"),
        ({"status": "processing", "priority": 9}, "not for users to set: status, priority"),
    ):
        with pytest.raises(asyncpg.PostgresError) as refused:
            async with acting(admin, USER):
                await insert(admin, prompt="a fox", **columns)
        assert str(refused.value).splitlines()[0] == message
        assert refused.value.sqlstate in ("42501", "22023")  # which PostgREST answers as 403 and 400


async def test_a_time_in_the_past_stands_in_front_of_nobody(admin: Connection) -> None:
    async with acting(admin, USER):
        first = await insert(admin, prompt="a fox")
        second = await insert(admin, prompt="a fox", run_at=NOW - timedelta(days=9))
    assert second["run_at"] == first["run_at"]
    assert second["fair_at"] > first["fair_at"]


async def test_a_token_without_a_user_queues_nothing(admin: Connection) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="user_id must be your own"):
        async with acting(admin, Caller("authenticated")):
            await insert(admin, prompt="a fox")


async def test_a_role_of_the_shop_for_some_users_has_no_more_rights(admin: Connection) -> None:
    async with admin.transaction():
        await admin.execute("CREATE ROLE premium; GRANT authenticated TO premium")
        premium = Caller("premium", MIA)
        async with acting(admin, premium):
            assert {row["user_id"] for row in await admin.fetch("SELECT * FROM generation_jobs")} == {MIA}
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="not for users to set: priority"):
            async with acting(admin, premium):
                await insert(admin, prompt="a fox", priority=9)
        await admin.execute("DROP ROLE premium")


# As supabase-js sends it ---------------------------------------------------------------------------------------------


async def test_a_user_inserts_cancels_and_repeats(admin: Connection, supabase: str) -> None:
    told: list[str] = []
    listener = await asyncpg.connect(supabase)
    await listener.add_listener("generation_jobs", lambda *arguments: told.append(arguments[-1]))
    async with acting(admin, USER, keep=True):
        row = await insert(admin, prompt="a bear", style="Anime")
    assert (row["user_id"], row["status"], row["seq"] > 0) == (MIA, "queued", True)

    async with acting(admin, USER, keep=True):
        canceled = await admin.fetchrow("SELECT * FROM cancel_generation_job(job_id => $1)", row["id"])
        again = await admin.fetchrow("SELECT * FROM cancel_generation_job(job_id => $1)", row["id"])
    assert canceled is not None
    assert canceled["status"] == "canceled"
    assert again == canceled

    async with acting(admin, USER):
        repeated = await admin.fetchrow("SELECT * FROM retry_generation_job(job_id => $1)", row["id"])
        assert repeated is not None
        assert (repeated["retry_of"], repeated["status"], repeated["prompt"]) == (row["id"], "queued", "a bear")
        paid = await admin.fetchrow("SELECT * FROM retry_generation_job(job_id => $1)", FAILED[MIA])
        assert paid is not None
        assert paid["priority"] == 5  # the shop had set it
        with pytest.raises(asyncpg.PostgresError, match="is queued: only a failed or canceled job") as refused:
            await admin.fetchrow("SELECT * FROM retry_generation_job(job_id => $1)", WAITING[MIA])
        assert refused.value.sqlstate == "PT409"
    await listener.fetchval("SELECT 1")
    assert "queued" in told
    await listener.close()


async def test_limits_hold_for_users(admin: Connection) -> None:
    await admin.execute("UPDATE generation_user_limits SET max_queued = 1")
    for statement, value in (
        ("INSERT INTO generation_jobs (prompt) VALUES ($1)", "a bear"),
        ("SELECT FROM retry_generation_job($1)", FAILED[MIA]),
    ):
        with pytest.raises(asyncpg.PostgresError, match="may have at most 1 jobs queued") as refused:
            async with acting(admin, USER):
                await admin.execute(statement, value)
        assert refused.value.sqlstate == "PT429"


async def test_a_repeated_job_is_the_same_request_here_and_there(admin: Connection) -> None:
    def columns(statement: str) -> list[str]:
        return [name.strip() for name in statement.partition("(")[2].partition(")")[0].split(",")]

    source = await admin.fetchval("SELECT prosrc FROM pg_proc WHERE proname = 'retry_generation_job'")
    assert columns(source.partition("INSERT INTO")[2]) == columns(QUERIES["retry"])


async def test_my_last_jobs_are_found_by_their_index(admin: Connection) -> None:
    async with admin.transaction():
        await admin.execute("SET LOCAL session_replication_role = replica")
        await admin.execute(
            "INSERT INTO generation_jobs (prompt, user_id, status, created_at) "
            "SELECT 'old', lpad(to_hex(n % 500), 32, '0')::uuid, 'completed', now() - n * interval '1 minute' "
            "FROM generate_series(1, 20000) n"
        )
    await admin.execute("ANALYZE generation_jobs")

    async with acting(admin, USER):
        answer = await admin.fetchval(
            "EXPLAIN (FORMAT JSON) SELECT * FROM generation_jobs ORDER BY created_at DESC LIMIT 20"
        )
    plan = json.loads(answer)[0]["Plan"]
    scan = next(part for part in plan["Plans"] if "Index Name" in part)
    assert (plan["Node Type"], scan["Node Type"]) == ("Limit", "Index Scan")
    assert scan["Index Name"] == "generation_jobs_by_user_idx"
    assert scan["Index Cond"] == "(user_id = (InitPlan 1).col1)"  # asked once, not once a row


# Workers and the shop's server ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("caller", [SERVICE, WORKER], ids=lambda caller: caller.role)
async def test_a_login_of_its_own_is_enough_for_workers_and_api(supabase: str, caller: Caller) -> None:
    login = f"login_{uuid4().hex}"
    owner = await connect(DatabaseSettings(), supabase, "tests")
    await owner.execute("INSERT INTO auth.users (id) VALUES ($1)", MIA)
    attributes = "BYPASSRLS" if caller is SERVICE else ""
    await owner.execute(f"CREATE ROLE {login} LOGIN {attributes} IN ROLE {caller.role}")
    try:
        async with await open_pool(DatabaseSettings(), as_role(supabase, login), "tests") as pool:
            await check_schema(pool)
            submissions, queue = Submissions(pool), PostgresQueue(pool, "worker", 60)
            job = await submissions.submit({"prompt": "a fox"}, idempotency_key="once", request_hash="hash")
            assert await submissions.submit({"prompt": "a fox"}, idempotency_key="once", request_hash="hash") == job
            assert await submissions.line(job.id) is not None

            claimed = await queue.claim()
            assert claimed is not None
            assert claimed.id == job.id
            await rescue(pool, 60)
            assert (await submissions.depth()).processing == 1
            assert await submissions.cancel(job.id) is not None

            if caller is SERVICE:
                return
            async with pool.acquire() as connection, connection.transaction():
                await connection.execute("SELECT set_config('request.jwt.claims', $1, true)", USER.claims)
                await connection.execute("SET LOCAL ROLE authenticated")
                row = await insert(connection, prompt="a fox")
                assert row["user_id"] == MIA
                assert await connection.fetchval("SELECT count(*) FROM generation_jobs") == 1
    finally:
        await owner.execute(f"DROP ROLE {login}")
        await owner.close()
