"""The job table as the people who ask for pictures use it: submit, look, cancel, repeat, count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from tenkaigen_worker.database.faults import database_faults, explain
from tenkaigen_worker.database.queries import load_queries
from tenkaigen_worker.database.upkeep import ping
from tenkaigen_worker.errors import ConflictError, FieldProblem, InputError, LimitError
from tenkaigen_worker.jobs import JobView, Output, QueueDepth, Status
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

    async def submit(
        self,
        columns: Mapping[str, Any],
        *,
        user_id: UUID | None = None,
        idempotency_key: str | None = None,
        request_hash: str | None = None,
    ) -> JobView:
        """Queue a job; ``columns`` are those of a checked :class:`~tenkaigen_worker.request.Request`.

        The same key of the same user answers the job that is there. Raises ``ConflictError`` when that one came with
        another hash, ``InputError`` when a value breaks a rule of the table, ``LimitError`` when the user has asked for
        as much as they may.
        """
        row = {**columns, "user_id": user_id, "idempotency_key": idempotency_key, "request_hash": request_hash}
        job = await self._insert(row)
        while job is None:
            # Somebody was first with this key; unless that job is deleted between the two statements, it is the answer.
            job = await self._earlier(user_id, idempotency_key, request_hash) or await self._insert(row)
        return job

    async def get(self, job_id: UUID) -> JobView | None:
        """One job, or ``None``."""
        with database_faults(f"cannot read job {job_id}"):
            row = await self._pool.fetchrow(QUERIES["get"], job_id)
        return _view(row) if row else None

    async def line(self, job_id: UUID) -> Line | None:
        """What is before a queued job that is due; ``None`` when there is no such job."""
        with database_faults(f"cannot see what is before job {job_id}"):
            rows = await self._pool.fetch(QUERIES["line"], job_id, LINE_AT_MOST)
        work: dict[str, list[Work]] = {"own": [], "queued": [], "running": []}
        for row in rows:
            work[row["part"]].append(Work(row["mode"], row["pictures"]))
        if not work["own"]:
            return None
        position = sum(row["jobs"] for row in rows if row["part"] == "queued")
        return Line(position, (*work["queued"], *work["running"]), work["own"][0])

    async def cancel(self, job_id: UUID) -> JobView | None:
        """Ask for a job to be canceled, and answer how it stands; ``None`` when there is no such job.

        A queued job is canceled at once, a running one soon, a final one stays as it is.
        """
        with database_faults(f"cannot cancel job {job_id}"):
            row = await self._pool.fetchrow(QUERIES["cancel"], job_id)
        return _view(row) if row else await self.get(job_id)

    async def retry(self, job_id: UUID) -> JobView | None:
        """Queue the request of a failed or canceled job again as a new job; ``None`` when there is no such job.

        Raises ``ConflictError`` when the job is not failed or canceled, ``LimitError`` as :meth:`submit` does.
        """
        job = await self._write(QUERIES["retry"], job_id)
        if job is None and (earlier := await self.get(job_id)):
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

    async def _insert(self, row: Mapping[str, Any]) -> JobView | None:
        """Insert a row, or answer ``None`` when its key is taken. What is not given keeps the table's default."""
        given = {name: value for name, value in row.items() if value is not None}
        places = ", ".join(f"${number}" for number in range(1, len(given) + 1))
        # The names are the fields of a class of ours, the values go beside the text.
        query = f"INSERT INTO generation_jobs ({', '.join(given)}) VALUES ({places}) {_UNLESS_KEY_IS_TAKEN}"  # noqa: S608
        return await self._write(query, *given.values())

    async def _earlier(self, user_id: UUID | None, key: str | None, request_hash: str | None) -> JobView | None:
        with database_faults("cannot look for an earlier job"):
            row = await self._pool.fetchrow(QUERIES["by_key"], user_id, key)
        if row is None:
            return None
        if row["request_hash"] != request_hash:
            raise ConflictError(
                f"the idempotency key {key!r} was used for another request, job {row['id']}",
                problems=[FieldProblem("idempotency_key", "was used for another request; use a new one")],
            )
        return _view(row)

    async def _write(self, query: str, *values: object) -> JobView | None:
        """Run a statement that inserts a row, and say in words which rule of the table it breaks."""
        with database_faults("cannot queue a job"):
            try:
                row = await self._pool.fetchrow(query, *values)
            except asyncpg.CheckViolationError as broken:
                raise await self._broken_rule(broken) from None
            except asyncpg.PostgresError as refused:
                if refused.sqlstate != _LIMIT_REACHED:
                    raise
                detail = refused.detail or ""
                seconds = int(detail) if detail.isdecimal() else None
                raise LimitError(explain(refused), retry_after_seconds=seconds) from None
        return _view(row) if row else None

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
