"""The job table as the people who ask for pictures use it: submit, look, cancel, repeat, count."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from tenkaigen_worker.database.faults import database_faults, explain
from tenkaigen_worker.database.queries import load_queries
from tenkaigen_worker.database.upkeep import ping
from tenkaigen_worker.errors import ConflictError, FieldProblem, InputError, LimitError
from tenkaigen_worker.jobs import EVERYBODY, Asker, JobView, Output, QueueDepth, Status
from tenkaigen_worker.offers import LINE_AT_MOST, Line, Work

# What a JobView takes from a row as it is, and all that it is made of.
_AS_THEY_ARE = (
    *("id", "user_id", "prompt", "style", "width", "height", "seed", "stage", "result_url", "error_code"),
    *("error_message", "attempt", "max_attempts", "retry_of", "processing_time_ms"),
    *("created_at", "started_at", "completed_at"),
)
_IS_DEMO = "coalesce(recipe -> 'demo' = 'true', false) AS demo"
_VIEW = ", ".join((*_AS_THEY_ARE, "status", "progress", "outputs", "cancel_requested_at", _IS_DEMO))

# What the trigger generation_jobs_limit raises; its detail is the number of seconds to wait, where that helps.
_LIMIT_REACHED = "PT429"

# What cancel_generation_job and retry_generation_job raise: no such job of this user; its status forbids it.
_NOT_FOR_THIS_JOB = ("PT404", "PT409")

# Where there are users, a job must be one's.
_USER_IS_A_USER = "generation_jobs_user_id_is_a_user"

QUERIES = {name: text.replace("{columns}", _VIEW) for name, text in load_queries("submissions.sql").items()}

_UNLESS_KEY_IS_TAKEN = f"""
ON CONFLICT (coalesce(user_id, '00000000-0000-0000-0000-000000000000'), idempotency_key)
    WHERE idempotency_key IS NOT NULL DO NOTHING
RETURNING {_VIEW}
"""


@dataclass(frozen=True, slots=True)
class StatusStats:
    """How many jobs have a status, and their average time from claim to outcome in milliseconds."""

    status: Status
    jobs: int
    average_ms: float | None


@dataclass(frozen=True, slots=True)
class Stats:
    """What happened to the jobs of the last ``hours``: pictures made, bytes in storage, seconds workers were busy.

    ``table_bytes`` is the whole job table with its indexes, whatever the hours.
    """

    hours: int
    by_status: tuple[StatusStats, ...]
    pictures: int
    storage_bytes: int
    gpu_seconds: float
    table_bytes: int


class Submissions:
    """The asking side of the job table.

    Every method may raise :class:`~tenkaigen_worker.errors.DatabaseError` when the database cannot be reached.
    """

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._by_role: bool | None = None

    async def submit(
        self,
        columns: Mapping[str, Any],
        *,
        asker: Asker = EVERYBODY,
        idempotency_key: str | None = None,
        request_hash: str | None = None,
    ) -> JobView:
        """Queue a job; ``columns`` are those of a checked :class:`~tenkaigen_worker.request.Request`.

        The same key of the same user answers the job that is there. Raises ``ConflictError`` when that one came with
        another hash, ``InputError`` when a value breaks a rule of the table, ``LimitError`` when the user has asked for
        as much as they may.
        """
        row = {"idempotency_key": idempotency_key, "request_hash": request_hash, **columns, "user_id": asker.user_id}
        job = await self._insert(row, asker)
        while job is None:
            # Somebody was first with this key; unless that job is deleted between the two statements, it is the answer.
            job = await self._earlier(asker, idempotency_key, request_hash) or await self._insert(row, asker)
        return job

    async def get(self, job_id: UUID, asker: Asker = EVERYBODY) -> JobView | None:
        """One job of the asker's, or ``None``."""
        with database_faults(f"cannot read job {job_id}"):
            async with self._speaking_for(asker) as (database, _):
                row = await database.fetchrow(QUERIES["get"], job_id, asker.sees_all, asker.user_id)
        return _view(row) if row else None

    async def line(self, job_id: UUID, asker: Asker = EVERYBODY) -> Line | None:
        """What is before a queued job that is due; ``None`` when the asker has no such job.

        Not in the role of the user, who would see only jobs of their own before it.
        """
        with database_faults(f"cannot see what is before job {job_id}"):
            rows = await self._pool.fetch(QUERIES["line"], job_id, LINE_AT_MOST, asker.sees_all, asker.user_id)
        work: dict[str, list[Work]] = {"own": [], "queued": [], "running": []}
        for row in rows:
            work[row["part"]].append(Work(row["mode"], row["pictures"]))
        if not work["own"]:
            return None
        position = sum(row["jobs"] for row in rows if row["part"] == "queued")
        return Line(position, (*work["queued"], *work["running"]), work["own"][0])

    async def cancel(self, job_id: UUID, asker: Asker = EVERYBODY) -> JobView | None:
        """Ask for a job to be canceled, and answer how it stands; ``None`` when the asker has no such job.

        A queued job is canceled at once, a running one soon, a final one stays as it is.
        """
        with database_faults(f"cannot cancel job {job_id}"):
            row = await self._change("cancel", job_id, asker)
        return _view(row) if row else await self.get(job_id, asker)

    async def retry(self, job_id: UUID, asker: Asker = EVERYBODY) -> JobView | None:
        """Queue the request of a failed or canceled job again as a new job; ``None`` when the asker has no such job.

        Raises ``ConflictError`` when the job is not failed or canceled, ``LimitError`` as :meth:`submit` does.
        """
        job = await self._write(self._change("retry", job_id, asker))
        if job is None and (earlier := await self.get(job_id, asker)):
            raise ConflictError(
                f"job {job_id} is {earlier.status}: only a failed or canceled job can be repeated",
                problems=[FieldProblem("status", f"is {earlier.status}, must be failed or canceled")],
            )
        return job

    async def ping(self) -> None:
        """Ask the database for a sign of life: for probes, which come often, and need no counting."""
        await ping(self._pool)

    async def depth(self) -> QueueDepth:
        """How many jobs wait and run now, and how long the oldest that is due has waited."""
        with database_faults("cannot count the queue"):
            row = (await self._pool.fetch(QUERIES["depth"]))[0]
        return QueueDepth(**row)

    async def stats(self, hours: int = 24) -> Stats:
        """Count the jobs inserted in the last ``hours``."""
        with database_faults("cannot count jobs"):
            rows = await self._pool.fetch(QUERIES["stats"], hours)
            table_bytes = await self._pool.fetchval(QUERIES["table_bytes"])
        return Stats(
            hours=hours,
            by_status=tuple(StatusStats(Status(row["status"]), row["jobs"], row["average_ms"]) for row in rows),
            pictures=sum(row["pictures"] for row in rows),
            storage_bytes=sum(row["storage_bytes"] for row in rows),
            gpu_seconds=sum(row["busy_seconds"] for row in rows),
            table_bytes=table_bytes,
        )

    async def _insert(self, row: Mapping[str, Any], asker: Asker) -> JobView | None:
        """Insert a row, or answer ``None`` when its key is taken. What is not given keeps the table's default."""
        given = {name: value for name, value in row.items() if value is not None}
        places = ", ".join(f"${number}" for number in range(1, len(given) + 1))
        # The names are the fields of a class of ours, the values go beside the text.
        query = f"INSERT INTO generation_jobs ({', '.join(given)}) VALUES ({places}) {_UNLESS_KEY_IS_TAKEN}"  # noqa: S608

        async def insert() -> asyncpg.Record | None:
            async with self._speaking_for(asker) as (database, _):
                return await database.fetchrow(query, *given.values())

        return await self._write(insert())

    async def _change(self, name: str, job_id: UUID, asker: Asker) -> asyncpg.Record | None:
        """Run ``cancel`` or ``retry``; ``None`` when the asker has no such job, or its status forbids it.

        Users may change no row themselves: there are functions for them, which look whose job it is.
        """
        try:
            async with self._speaking_for(asker) as (database, by_role):
                if by_role:
                    return await database.fetchrow(QUERIES[f"{name}_own"], job_id)
                return await database.fetchrow(QUERIES[name], job_id, asker.sees_all, asker.user_id)
        except asyncpg.PostgresError as refused:
            if refused.sqlstate not in _NOT_FOR_THIS_JOB:
                raise
            return None

    async def _earlier(self, asker: Asker, key: str | None, request_hash: str | None) -> JobView | None:
        with database_faults("cannot look for an earlier job"):
            async with self._speaking_for(asker) as (database, _):
                row = await database.fetchrow(QUERIES["by_key"], asker.user_id, key)
        if row is None:
            return None
        if row["request_hash"] != request_hash:
            raise ConflictError(
                f"the idempotency key {key!r} was used for another request, job {row['id']}",
                problems=[FieldProblem("idempotency_key", "was used for another request; use a new one")],
            )
        return _view(row)

    async def _write(self, inserting: Awaitable[asyncpg.Record | None]) -> JobView | None:
        """Await a statement that inserts a row, and say in words which rule of the table it breaks."""
        with database_faults("cannot queue a job"):
            try:
                row = await inserting
            except asyncpg.CheckViolationError as broken:
                raise await self._broken_rule(broken) from None
            except asyncpg.InvalidParameterValueError as broken:
                raise InputError(explain(broken)) from None
            except asyncpg.ForeignKeyViolationError as broken:
                if broken.constraint_name != _USER_IS_A_USER:
                    raise
                raise InputError.of([FieldProblem("user_id", "there is no such user, or no longer")]) from None
            except asyncpg.PostgresError as refused:
                if refused.sqlstate != _LIMIT_REACHED:
                    raise
                detail = refused.detail or ""
                seconds = int(detail) if detail.isdecimal() else None
                raise LimitError(explain(refused), retry_after_seconds=seconds) from None
        return _view(row) if row else None

    @asynccontextmanager
    async def _speaking_for(self, asker: Asker) -> AsyncIterator[tuple[asyncpg.Pool | PoolConnectionProxy[Any], bool]]:
        """Yield what runs statements as the asker, and whether that is in the role of users.

        Where the table has policies for users, they have the last word: a user's statements run in one transaction in
        the role that the policies are for, with the claims that they look at. Both end with the transaction, so that
        nothing of it stays in a connection that a pooler lends to somebody else next.
        """
        if asker.user_id is None or not await self._users_have_a_role():
            yield self._pool, False
            return
        user = {"sub": str(asker.user_id), "role": "authenticated"}
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.fetchrow(QUERIES["become_user"], json.dumps({**(asker.claims or {}), **user}))
            yield connection, True

    async def _users_have_a_role(self) -> bool:
        """Whether the table has policies for users; asked once, because migrations need a new start anyway."""
        if self._by_role is None:
            self._by_role = await self._pool.fetchval(QUERIES["users_have_a_role"])
        return self._by_role

    async def _broken_rule(self, broken: asyncpg.CheckViolationError) -> InputError:
        rule = await self._pool.fetchrow(QUERIES["rule"], broken.constraint_name)
        if rule is None or rule["words"] is None:
            return InputError(f"the table refuses this job: {explain(broken)}")
        return InputError.of([FieldProblem(rule["field"], rule["words"])])


def _view(row: asyncpg.Record) -> JobView:
    return JobView(
        **{name: row[name] for name in _AS_THEY_ARE},
        status=Status(row["status"]),
        progress=round(row["progress"], 4),
        outputs=tuple(Output(**output) for output in row["outputs"]),
        cancel_requested=row["cancel_requested_at"] is not None,
        demo=row["demo"],
    )
