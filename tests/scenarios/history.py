"""What became of each job, as the database itself saw it: a trigger writes down every change of status."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

import asyncpg

_KEEP = """
CREATE TABLE history (
    seq bigint GENERATED ALWAYS AS IDENTITY,
    job_id uuid, before text, after text, lease_token bigint, attempts_before integer, attempts integer,
    worker_id text, error_code text
);
CREATE FUNCTION keep_history() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.history (job_id, before, after, lease_token, attempts_before, attempts, worker_id, error_code)
    VALUES (NEW.id, OLD.status, NEW.status, NEW.lease_token, OLD.attempt, NEW.attempt, NEW.worker_id, NEW.error_code);
    RETURN NULL;
END
$$;
CREATE TRIGGER keep_history AFTER UPDATE OF status ON generation_jobs
FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION keep_history();
"""


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a job's status, and what the row said with it."""

    job_id: UUID
    before: str
    after: str
    lease_token: int
    attempts_before: int
    attempts: int
    worker_id: str
    error_code: str | None

    @property
    def released(self) -> bool:
        """Whether the job was given back with its attempt."""
        return self.after == "queued" and self.attempts < self.attempts_before


async def keep_history(pool: asyncpg.Pool) -> None:
    """Have every change of a job's status written down from now on."""
    await pool.execute(_KEEP)


async def history_of(pool: asyncpg.Pool) -> dict[UUID, list[Change]]:
    """All changes so far, in order, by job."""
    changes: dict[UUID, list[Change]] = {}
    for row in await pool.fetch("SELECT * FROM history ORDER BY seq"):
        fields = dict(row)
        del fields["seq"]
        changes.setdefault(row["job_id"], []).append(Change(**fields))
    return changes
