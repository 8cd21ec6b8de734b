"""Rows as a story needs them: inserted by plain SQL, waited for, and hurried along."""

from __future__ import annotations

import asyncio
from uuid import UUID

import asyncpg

from tests.scenarios.program import PATIENCE_SECONDS

POLL_SECONDS = 0.05

_SOME_OPEN = """
SELECT EXISTS (
    SELECT FROM generation_jobs WHERE status IN ('queued', 'processing') AND ($1::uuid IS NULL OR id = $1)
)
"""


async def insert(pool: asyncpg.Pool, prompt: str) -> UUID:
    """Queue one job and answer its id."""
    return await pool.fetchval("INSERT INTO generation_jobs (prompt, style) VALUES ($1, 'Anime') RETURNING id", prompt)


async def until_final(pool: asyncpg.Pool, job_id: UUID) -> asyncpg.Record:
    """Wait until a job has its outcome, and answer its row."""
    await until_none_open(pool, job_id)
    return await pool.fetchrow("SELECT * FROM generation_jobs WHERE id = $1", job_id)


async def until_none_open(
    pool: asyncpg.Pool, job_id: UUID | None = None, *, patience: float = PATIENCE_SECONDS
) -> None:
    """Wait until every job, or the one that is named, has its outcome."""
    async with asyncio.timeout(patience):
        while True:
            if not await pool.fetchval(_SOME_OPEN, job_id):
                return
            await asyncio.sleep(POLL_SECONDS)


async def until_none_marked(pool: asyncpg.Pool) -> None:
    """Wait until maintenance has removed the files of every job that ended without a picture."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            if not await pool.fetchval("SELECT count(*) FROM generation_jobs WHERE files_to_remove"):
                return
            await asyncio.sleep(POLL_SECONDS)


async def skip_backoff(pool: asyncpg.Pool) -> None:
    """Make every queued job due now: no story is about the length of a pause."""
    await pool.execute("UPDATE generation_jobs SET run_at = now() WHERE status = 'queued'")


def keys_of(*rows: asyncpg.Record) -> set[str]:
    """The keys of all files that rows name: pictures and their thumbnails."""
    outputs = [output for row in rows for output in row["outputs"]]
    return {output[kind] for output in outputs for kind in ("key", "thumbnail_key")}
