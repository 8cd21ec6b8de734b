"""The queue as a worker uses it, on a real PostgreSQL: races, fences, places, plans."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from tenkaigen_worker.database.queue import QUERIES, PostgresQueue
from tenkaigen_worker.errors import Code, DatabaseError
from tenkaigen_worker.jobs import Completion, Failure, Heartbeat, Job, Lease, Made, Output, Progress, Queue, Status
from tenkaigen_worker.maintenance import rescue

CRASHED = Failure(Code.ENGINE_CRASHED, "The engine crashed.")
REFUSED = Failure(Code.REFUSED, "Not for us.")
DONE = Completion(
    outputs=(
        Output(0, "a/1-0.png", "/files/a/1-0.png", 96, 64, 1234, "ab" * 32, 7),
        Output(1, "a/1-1.png", "/files/a/1-1.png", 96, 64, 2345, "cd" * 32, 8, "a/1-1.webp", "/files/a/1-1.webp"),
    ),
    recipe={"prompt": "A phoenix, anime", "width": 96, "height": 64},
    timings_ms={"denoise": 900},
    processing_time_ms=1500,
)


@pytest.fixture
def queue(pool: asyncpg.Pool[Any]) -> Queue:
    return PostgresQueue(pool, "worker-1", lease_seconds=60)


@pytest.fixture
def rival(pool: asyncpg.Pool[Any]) -> Queue:
    return PostgresQueue(pool, "worker-2", lease_seconds=60)


async def insert(pool: asyncpg.Pool[Any], **columns: object) -> UUID:
    columns = {"prompt": "A phoenix rising", **columns}
    places = ", ".join(f"${n}" for n in range(1, len(columns) + 1))
    query = f"INSERT INTO generation_jobs ({', '.join(columns)}) VALUES ({places}) RETURNING id"
    return UUID(str(await pool.fetchval(query, *columns.values())))


async def row(pool: asyncpg.Pool[Any], job_id: UUID) -> asyncpg.Record:
    (found,) = await pool.fetch("SELECT *, run_at - now() AS due_in FROM generation_jobs WHERE id = $1", job_id)
    return found


async def claimed(queue: Queue) -> Job:
    job = await queue.claim()
    assert job is not None
    return job


async def test_a_plain_insert_is_claimed_with_what_was_asked_for(pool: asyncpg.Pool[Any], queue: Queue) -> None:
    await pool.execute("INSERT INTO generation_jobs (prompt, style) VALUES ('A phoenix rising', 'Anime')")

    job = await claimed(queue)

    assert (job.attempt, job.max_attempts, job.lease.token, job.user_id) == (1, 3, 1, None)
    assert job.columns == {
        "prompt": "A phoenix rising",
        "style": "Anime",
        "count": 1,
        **dict.fromkeys(["negative_prompt", "mode", "width", "height", "seed", "steps", "guidance_scale", "loras"]),
        **dict.fromkeys(["franchise", "template", "template_variables", "reference", "mask", "strength"]),
        "more_references": None,
        "webhook_url": None,
    }
    stored = await row(pool, job.id)
    assert (stored["status"], stored["worker_id"]) == ("processing", "worker-1")
    assert stored["lease_expires_at"] - stored["started_at"] == timedelta(seconds=60)
    assert await queue.claim() is None


async def test_json_that_was_asked_for_is_claimed_as_text(pool: asyncpg.Pool[Any], queue: Queue) -> None:
    await insert(pool, loras=["ink"], template_variables={"who": "a samurai"})

    columns = (await claimed(queue)).columns

    assert (columns["loras"], columns["template_variables"]) == ('["ink"]', '{"who": "a samurai"}')


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("metadata", """'{"n": 1e5000}'"""),
        ("template_variables", """'{"n": 1e5000}'"""),
        ("loras", "(repeat('[', 3000) || repeat(']', 3000))::jsonb"),
        ("run_at", "'0044-03-15 BC'"),
        ("expires_at", "'30000-01-01'"),
        ("expires_at", "'infinity'"),
    ],
)
async def test_what_postgres_can_hold_and_python_cannot_is_claimed_all_the_same(
    pool: asyncpg.Pool[Any], queue: Queue, column: str, value: str
) -> None:
    await pool.execute(f"INSERT INTO generation_jobs (prompt, {column}) VALUES ('A phoenix rising', {value})")

    assert (await claimed(queue)).columns["prompt"] == "A phoenix rising"


async def test_priority_first_then_place_then_order_of_insertion(pool: asyncpg.Pool[Any], queue: Queue) -> None:
    now = await pool.fetchval("SELECT now()")
    third = await insert(pool, run_at=now - timedelta(minutes=1), user_id=UUID(int=1))
    fourth = await insert(pool, run_at=now - timedelta(minutes=1), user_id=UUID(int=2))
    second = await insert(pool, run_at=now - timedelta(minutes=2), user_id=UUID(int=3))
    first = await insert(pool, priority=1)

    assert [(await claimed(queue)).id for _ in range(4)] == [first, second, third, fourth]


async def test_jobs_that_are_not_due_or_have_expired_are_left_alone(pool: asyncpg.Pool[Any], queue: Queue) -> None:
    now = await pool.fetchval("SELECT now()")
    await insert(pool, run_at=now + timedelta(hours=1))
    await insert(pool, expires_at=now - timedelta(seconds=1))

    assert await queue.claim() is None


async def test_a_row_that_somebody_is_just_claiming_is_skipped(pool: asyncpg.Pool[Any], rival: Queue) -> None:
    first, second = await insert(pool), await insert(pool)

    async with pool.acquire() as connection, connection.transaction():
        held = await connection.fetchrow(QUERIES["claim"], "worker-1", 60.0)
        assert held is not None
        assert held["id"] == first
        assert (await claimed(rival)).id == second
        assert await rival.claim() is None

    assert (await row(pool, first))["worker_id"] == "worker-1"


async def test_no_job_is_claimed_twice_by_a_crowd(pool: asyncpg.Pool[Any]) -> None:
    await pool.execute("INSERT INTO generation_jobs (prompt) SELECT 'Picture ' || n FROM generate_series(1, 200) n")

    async def drain(name: str) -> list[Job]:
        queue = PostgresQueue(pool, name, 60)
        return [job async for job in _jobs(queue)]

    drained = await asyncio.gather(*(drain(f"worker-{n}") for n in range(10)))

    # A claim that loses a race for one row may see an empty queue for a moment; the rest is still there for the next.
    jobs = [job for part in drained for job in part] + [job async for job in _jobs(PostgresQueue(pool, "late", 60))]
    assert len(jobs) == 200
    assert len({job.id for job in jobs}) == 200
    assert {job.lease.token for job in jobs} == {1}


async def _jobs(queue: Queue) -> Any:
    while job := await queue.claim():
        yield job


async def test_completing_writes_the_outcome(pool: asyncpg.Pool[Any], queue: Queue) -> None:
    job_id = await insert(pool, width=128)
    await queue.fail((await claimed(queue)).lease, CRASHED)
    await pool.execute("UPDATE generation_jobs SET run_at = now()")
    job = await claimed(queue)

    assert await queue.complete(job.lease, DONE)

    stored = await row(pool, job_id)
    assert (stored["status"], stored["progress"], stored["stage"]) == ("completed", 1, None)
    assert (stored["result_url"], stored["processing_time_ms"]) == ("/files/a/1-0.png", 1500)
    assert (stored["width"], stored["height"], stored["seed"]) == (128, 64, 7)
    assert (stored["error_code"], stored["error_message"], stored["lease_expires_at"]) == (None, None, None)
    assert stored["outputs"][1] == {
        **{"index": 1, "key": "a/1-1.png", "url": "/files/a/1-1.png", "width": 96, "height": 64},
        **{"bytes": 2345, "sha256": "cd" * 32, "seed": 8},
        **{"thumbnail_key": "a/1-1.webp", "thumbnail_url": "/files/a/1-1.webp"},
    }
    assert (stored["recipe"], stored["timings_ms"]) == (dict(DONE.recipe), {"denoise": 900})
    assert stored["completed_at"] >= stored["started_at"]


async def test_what_a_job_made_is_told_to_its_user_alone(pool: asyncpg.Pool[Any]) -> None:
    queue = PostgresQueue(pool, "worker-1", lease_seconds=60)
    mine, nobodys = await insert(pool, user_id=UUID(int=7)), await insert(pool)
    assert await queue.made(mine, user_id=UUID(int=7)) == Made(Status.QUEUED, ())
    for _ in range(2):
        assert await queue.complete((await claimed(queue)).lease, DONE)

    for job_id, owner in [(mine, UUID(int=7)), (nobodys, None)]:
        for user_id in (UUID(int=7), UUID(int=8), None):
            made = await queue.made(job_id, user_id=user_id)
            assert made == (Made(Status.COMPLETED, DONE.outputs) if user_id == owner else None)
    assert await queue.made(UUID(int=1), user_id=None) is None


async def test_pictures_of_older_rows_have_no_thumbnail(pool: asyncpg.Pool[Any], queue: Queue) -> None:
    job_id = await insert(pool)
    assert await queue.complete((await claimed(queue)).lease, DONE)
    await pool.execute("UPDATE generation_jobs SET outputs = outputs #- '{1,thumbnail_key}' #- '{1,thumbnail_url}'")

    made = await PostgresQueue(pool, "worker-1", lease_seconds=60).made(job_id, user_id=None)
    assert made is not None
    assert made.outputs[1] == replace(DONE.outputs[1], thumbnail_key=None, thumbnail_url=None)


async def test_completing_again_after_a_lost_reply_is_success(pool: asyncpg.Pool[Any], queue: Queue) -> None:
    await insert(pool)
    job = await claimed(queue)

    assert await queue.complete(job.lease, DONE)
    assert await queue.complete(job.lease, DONE)


async def test_every_late_write_of_a_lost_lease_changes_nothing(
    pool: asyncpg.Pool[Any], queue: Queue, rival: Queue
) -> None:
    await insert(pool)
    lost = (await claimed(queue)).lease
    await pool.execute("UPDATE generation_jobs SET lease_expires_at = now() - interval '1 second'")
    await rescue(pool, 60)
    assert not await queue.complete(lost, DONE)  # queued again, with the same token: it is nobody's now
    await pool.execute("UPDATE generation_jobs SET run_at = now()")
    current = (await claimed(rival)).lease
    before = await row(pool, lost.job_id)

    assert current.token == lost.token + 1
    assert not await queue.complete(lost, DONE)
    assert await queue.fail(lost, CRASHED) is None
    assert not await queue.release(lost)
    assert not await queue.cancel(lost)
    assert await queue.heartbeat({lost: Progress("denoise", 0.9)}) == {lost: Heartbeat(alive=False)}

    after = await row(pool, lost.job_id)
    assert {name: value for name, value in after.items() if name != "due_in"} == {
        name: value for name, value in before.items() if name != "due_in"
    }
    assert await rival.complete(current, DONE)
    assert not await queue.complete(lost, DONE)


async def test_a_worker_past_its_deadline_still_completes(pool: asyncpg.Pool[Any], queue: Queue) -> None:
    await insert(pool)
    job = await claimed(queue)
    await pool.execute("UPDATE generation_jobs SET lease_expires_at = now() - interval '1 hour'")

    assert await queue.complete(job.lease, DONE)


async def test_one_heartbeat_renews_all_leases_and_brings_back_the_news(
    pool: asyncpg.Pool[Any], queue: Queue, rival: Queue
) -> None:
    for _ in range(3):
        await insert(pool)
    kept, canceled, lost = [(await claimed(queue)).lease for _ in range(3)]
    await pool.execute("UPDATE generation_jobs SET lease_expires_at = now()")
    await pool.execute("UPDATE generation_jobs SET cancel_requested_at = now() WHERE id = $1", canceled.job_id)
    await pool.execute("UPDATE generation_jobs SET lease_token = 9 WHERE id = $1", lost.job_id)

    held = {kept: Progress("denoise", 0.25), canceled: Progress("encode", 0.0), lost: Progress("decode", 1.0)}
    answer = await queue.heartbeat(held)

    assert answer == {
        kept: Heartbeat(alive=True),
        canceled: Heartbeat(alive=True, cancel_requested=True),
        lost: Heartbeat(alive=False),
    }
    stored = await row(pool, kept.job_id)
    assert (stored["progress"], stored["stage"]) == (0.25, "denoise")
    assert stored["lease_expires_at"] > stored["started_at"]
    assert (await row(pool, lost.job_id))["progress"] == 0
    assert await rival.heartbeat({}) == {}


async def test_a_repeated_attempt_waits_and_keeps_its_place(pool: asyncpg.Pool[Any], queue: Queue) -> None:
    job_id = await insert(pool)
    place = (await row(pool, job_id))["fair_at"]

    assert await queue.fail((await claimed(queue)).lease, CRASHED) is Status.QUEUED

    stored = await row(pool, job_id)
    assert timedelta(seconds=3) < stored["due_in"] < timedelta(seconds=6.3)
    assert (stored["fair_at"], stored["attempt"]) == (place, 1)
    assert (stored["error_code"], stored["error_message"]) == ("engine_crashed", "The engine crashed.")
    assert await queue.claim() is None


async def test_the_last_attempt_fails_for_good(pool: asyncpg.Pool[Any], queue: Queue) -> None:
    job_id = await insert(pool, max_attempts=2)

    assert await queue.fail((await claimed(queue)).lease, CRASHED) is Status.QUEUED
    await pool.execute("UPDATE generation_jobs SET run_at = now()")
    assert await queue.fail((await claimed(queue)).lease, CRASHED) is Status.FAILED

    stored = await row(pool, job_id)
    assert (stored["status"], stored["attempt"]) == ("failed", 2)
    assert stored["completed_at"] is not None


async def test_wrong_input_is_not_tried_again(pool: asyncpg.Pool[Any], queue: Queue) -> None:
    await insert(pool)

    assert await queue.fail((await claimed(queue)).lease, REFUSED) is Status.FAILED


async def test_whatever_a_crashed_engine_said_can_be_stored(pool: asyncpg.Pool[Any], queue: Queue) -> None:
    job_id = await insert(pool)
    said = "nul \0, half a pair \ud800, " + "long " * 2000

    assert await queue.fail((await claimed(queue)).lease, Failure(Code.REFUSED, said))

    stored = await row(pool, job_id)
    assert stored["error_message"].startswith("nul , half a pair ?, long")
    assert len(stored["error_message"]) == 4000


async def test_releasing_gives_the_attempt_back_but_never_the_token(pool: asyncpg.Pool[Any], queue: Queue) -> None:
    job_id = await insert(pool)
    job = await claimed(queue)
    await queue.heartbeat({job.lease: Progress("denoise", 0.5)})

    assert await queue.release(job.lease)

    stored = await row(pool, job_id)
    assert (stored["status"], stored["attempt"], stored["lease_token"]) == ("queued", 0, 1)
    assert (stored["progress"], stored["stage"], stored["lease_expires_at"]) == (0, None, None)
    again = await claimed(queue)
    assert (again.attempt, again.lease.token) == (1, 2)

    assert await queue.release(again.lease, delay=timedelta(minutes=1))
    assert await queue.claim() is None


async def test_a_job_that_comes_back_while_it_shall_be_canceled_ends(pool: asyncpg.Pool[Any], queue: Queue) -> None:
    ids = [await insert(pool), await insert(pool)]
    leases = [(await claimed(queue)).lease for _ in ids]
    await pool.execute("UPDATE generation_jobs SET cancel_requested_at = now()")

    assert await queue.fail(leases[0], CRASHED) is Status.CANCELED
    assert await queue.release(leases[1])

    assert {(await row(pool, job_id))["status"] for job_id in ids} == {"canceled"}
    assert all([(await row(pool, job_id))["completed_at"] for job_id in ids])


async def test_canceling_ends_a_running_job(pool: asyncpg.Pool[Any], queue: Queue) -> None:
    job_id = await insert(pool)
    job = await claimed(queue)

    assert await queue.cancel(job.lease)

    stored = await row(pool, job_id)
    assert stored["status"] == "canceled"
    assert not await queue.complete(job.lease, DONE)


async def test_heartbeats_touch_no_index(pool: asyncpg.Pool[Any], queue: Queue) -> None:
    await pool.execute("INSERT INTO generation_jobs (prompt) SELECT repeat('word ', 100) FROM generate_series(1, 20)")
    leases = [(await claimed(queue)).lease for _ in range(20)]
    before = await _updates(pool)

    for step in range(50):
        await queue.heartbeat({lease: Progress("denoise", step / 50) for lease in leases})

    after = await _updates(pool)
    updates, hot = (now - then for now, then in zip(after, before, strict=True))
    assert updates == 50 * 20
    assert hot / updates > 0.9


async def _updates(pool: asyncpg.Pool[Any]) -> tuple[int, int]:
    """Updates of the job table so far, and how many of them were HOT; every session reports what it did."""
    await asyncio.gather(*(_flush(pool) for _ in range(pool.get_size())))
    (found,) = await pool.fetch(
        "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'generation_jobs'"
    )
    return found["n_tup_upd"], found["n_tup_hot_upd"]


async def _flush(pool: asyncpg.Pool[Any]) -> None:
    async with pool.acquire() as connection:
        await connection.execute("SELECT pg_stat_force_next_flush()")
        await connection.execute("SELECT 1")


async def test_the_claim_reads_one_entry_of_its_index(pool: asyncpg.Pool[Any]) -> None:
    await pool.execute(
        "INSERT INTO generation_jobs (prompt, status) SELECT 'old', 'completed' FROM generate_series(1, 20000)"
    )
    await pool.execute("INSERT INTO generation_jobs (prompt) SELECT 'new' FROM generate_series(1, 2000)")
    await pool.execute("ANALYZE generation_jobs")

    plan = await _plan(pool, QUERIES["claim"], "worker-1", 60.0)

    scans = {node["Index Name"]: node["Actual Rows"] for node in _nodes(plan) if "Index Name" in node}
    assert scans == {"generation_jobs_queued_idx": 1, "generation_jobs_pkey": 1}
    assert not [node for node in _nodes(plan) if node["Node Type"] in {"Seq Scan", "Sort", "Bitmap Heap Scan"}]


async def _plan(pool: asyncpg.Pool[Any], query: str, *values: object) -> dict[str, Any]:
    explained = await pool.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}", *values)
    plan: dict[str, Any] = json.loads(explained)[0]["Plan"]
    return plan


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", ()) for node in _nodes(child))]


async def test_a_database_that_is_gone_is_a_database_error(pool: asyncpg.Pool[Any], queue: Queue) -> None:
    await pool.close()
    lease = Lease(UUID(int=1), 1)

    for action in (
        queue.claim(),
        queue.heartbeat({lease: Progress("denoise", 0.5)}),
        queue.complete(lease, DONE),
        queue.fail(lease, CRASHED),
        queue.release(lease),
        queue.cancel(lease),
    ):
        with pytest.raises(DatabaseError, match="pool is clos"):
            await action


async def test_a_connection_that_breaks_is_replaced(pool: asyncpg.Pool[Any], queue: Queue) -> None:
    await insert(pool)
    async with pool.acquire() as killer, pool.acquire() as doomed:
        await killer.execute("SELECT pg_terminate_backend($1, 5000)", doomed.get_server_pid())
        with pytest.raises(DatabaseError):
            await PostgresQueue(_Single(doomed), "worker-1", 60).claim()  # type: ignore[arg-type]

    assert await queue.claim() is not None


class _Single:
    """A pool of one given connection."""

    def __init__(self, connection: Any) -> None:
        self.fetchrow = connection.fetchrow
