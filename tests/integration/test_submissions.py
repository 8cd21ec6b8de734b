"""The asking side of the table: submit, idempotency, cancel, repeat, counting; every refusal names its field."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from tenkaigen_worker.database.queue import PostgresQueue
from tenkaigen_worker.database.submissions import Submissions
from tenkaigen_worker.errors import Code, ConflictError, DatabaseError, FieldProblem, InputError
from tenkaigen_worker.jobs import EVERYBODY, Asker, Completion, Failure, Job, JobView, Output, Progress, Status

ALICE, BOB = UUID(int=1), UUID(int=2)
PHOENIX = {"prompt": "A phoenix rising", "style": "Anime"}
OUTPUT = Output(0, "a/1-0.png", "/files/a/1-0.png", 96, 64, 1000, "ab" * 32, 7)


@pytest.fixture
def submissions(pool: asyncpg.Pool[Any]) -> Submissions:
    return Submissions(pool)


@pytest.fixture
def queue(pool: asyncpg.Pool[Any]) -> PostgresQueue:
    return PostgresQueue(pool, "worker-1", 60)


async def claimed(queue: PostgresQueue) -> Job:
    job = await queue.claim()
    assert job is not None
    return job


async def test_what_was_submitted_can_be_looked_at(submissions: Submissions, pool: asyncpg.Pool[Any]) -> None:
    job = await submissions.submit({**PHOENIX, "width": 512, "metadata": {"cart": [1, "ünï"]}}, asker=Asker(ALICE))

    assert (job.status, job.prompt, job.style, job.width, job.height) == (
        *(Status.QUEUED, "A phoenix rising", "Anime"),
        *(512, None),
    )
    assert (job.progress, job.outputs, job.cancel_requested, job.retry_of) == (0, (), False, None)
    assert await submissions.get(job.id) == job
    assert await submissions.get(uuid4()) is None
    assert await pool.fetchval("SELECT metadata FROM generation_jobs") == {"cart": [1, "ünï"]}


async def test_a_finished_job_shows_its_pictures(submissions: Submissions, queue: PostgresQueue) -> None:
    await submissions.submit(PHOENIX)
    job = await claimed(queue)
    await queue.heartbeat({job.lease: Progress("denoise", 0.3)})
    running = await submissions.get(job.id)
    assert running is not None
    assert (running.status, running.stage, running.progress) == (Status.PROCESSING, "denoise", 0.3)

    await queue.complete(job.lease, Completion((OUTPUT,), {"width": 96, "height": 64}, {"denoise": 900}, 1500))

    done = await submissions.get(job.id)
    assert done is not None
    assert (done.status, done.result_url, done.outputs) == (Status.COMPLETED, "/files/a/1-0.png", (OUTPUT,))
    assert (done.width, done.height, done.seed, done.processing_time_ms) == (96, 64, 7, 1500)


async def test_what_is_not_given_keeps_the_tables_default(submissions: Submissions, pool: asyncpg.Pool[Any]) -> None:
    await submissions.submit({**PHOENIX, "count": None, "run_at": None})

    (row,) = await pool.fetch(
        "SELECT count, priority, max_attempts, loras, run_at = created_at AS now FROM generation_jobs"
    )
    assert tuple(row) == (1, 0, 3, [], True)


@pytest.mark.parametrize(
    ("columns", "field", "words"),
    [
        ({"prompt": "  "}, "prompt", "must not be blank"),
        ({"prompt": "x" * 4001}, "prompt", "must have at most 4000 characters"),
        ({**PHOENIX, "width": 1000}, "width", "must be a multiple of 16"),
        ({**PHOENIX, "seed": 2**32}, "seed", "must be between 0 and 4294967295"),
        ({**PHOENIX, "webhook_url": "http://a.example"}, "webhook_url", "must start with https://"),
    ],
)
async def test_a_broken_rule_is_told_in_its_own_words(
    submissions: Submissions, columns: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(InputError) as refused:
        await submissions.submit(columns)

    (problem,) = refused.value.problems
    assert problem.field == field
    assert words in problem.message
    assert (await submissions.depth()).queued == 0


@pytest.mark.parametrize(
    "columns",
    [
        {**PHOENIX, "seed": 10**30},
        {**PHOENIX, "height": "tall"},
        {**PHOENIX, "style": "half \ud800"},
        {**PHOENIX, "metadata": {"x": "\0"}},
    ],
)
async def test_what_no_checked_request_holds_is_refused_for_good(
    submissions: Submissions, columns: dict[str, Any]
) -> None:
    with pytest.raises(DatabaseError, match="cannot queue a job") as refused:
        await submissions.submit(columns)
    assert refused.value.permanent


async def test_the_same_key_is_the_same_job(submissions: Submissions) -> None:
    first = await submissions.submit(PHOENIX, asker=Asker(ALICE), idempotency_key="order-1", request_hash="abc")

    assert await submissions.submit(PHOENIX, asker=Asker(ALICE), idempotency_key="order-1", request_hash="abc") == first
    other = await submissions.submit(PHOENIX, asker=Asker(BOB), idempotency_key="order-1", request_hash="abc")
    nobodys = await submissions.submit(PHOENIX, idempotency_key="order-1", request_hash="abc")
    assert await submissions.submit(PHOENIX, idempotency_key="order-1", request_hash="abc") == nobodys
    assert len({first.id, other.id, nobodys.id}) == 3


async def test_a_key_used_for_something_else_is_a_conflict(submissions: Submissions) -> None:
    first = await submissions.submit(PHOENIX, idempotency_key="order-1", request_hash="abc")

    with pytest.raises(ConflictError, match=f"'order-1' was used for another request, job {first.id}") as refused:
        await submissions.submit({"prompt": "A dragon"}, idempotency_key="order-1", request_hash="def")
    assert [problem.field for problem in refused.value.problems] == ["idempotency_key"]


async def test_one_key_submitted_many_times_at_once_is_one_job(submissions: Submissions) -> None:
    jobs = await asyncio.gather(
        *(submissions.submit(PHOENIX, idempotency_key="order-1", request_hash="abc") for _ in range(20))
    )

    assert len({job.id for job in jobs}) == 1
    assert (await submissions.depth()).queued == 1


async def test_a_key_whose_job_was_just_deleted_is_used_anew(
    submissions: Submissions, pool: asyncpg.Pool[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await submissions.submit(PHOENIX, idempotency_key="order-1", request_hash="abc")
    look = submissions._earlier

    async def delete_and_look(*arguments: Any) -> JobView | None:
        await pool.execute("DELETE FROM generation_jobs")
        return await look(*arguments)

    monkeypatch.setattr(submissions, "_earlier", delete_and_look)

    again = await submissions.submit(PHOENIX, idempotency_key="order-1", request_hash="abc")
    assert again.id != first.id


async def test_a_queued_job_is_canceled_at_once(submissions: Submissions, queue: PostgresQueue) -> None:
    job = await submissions.submit(PHOENIX)

    canceled = await submissions.cancel(job.id)

    assert canceled is not None
    assert (canceled.status, canceled.cancel_requested) == (Status.CANCELED, True)
    assert canceled.completed_at is not None
    assert await queue.claim() is None


async def test_a_running_job_is_asked_to_end(submissions: Submissions, queue: PostgresQueue) -> None:
    job = await submissions.submit(PHOENIX)
    lease = (await claimed(queue)).lease

    asked = await submissions.cancel(job.id)

    assert asked is not None
    assert (asked.status, asked.cancel_requested) == (Status.PROCESSING, True)
    assert await submissions.cancel(job.id) == asked
    assert (await queue.heartbeat({lease: Progress("denoise", 0.5)}))[lease].cancel_requested


async def test_canceling_what_is_final_or_unknown_changes_nothing(
    submissions: Submissions, queue: PostgresQueue
) -> None:
    job = await submissions.submit(PHOENIX)
    await queue.complete((await claimed(queue)).lease, Completion((OUTPUT,), {}, {}, 1))

    assert await submissions.cancel(job.id) == await submissions.get(job.id)
    done = await submissions.get(job.id)
    assert done is not None
    assert (done.status, done.cancel_requested) == (Status.COMPLETED, False)
    assert await submissions.cancel(uuid4()) is None


async def test_a_failed_job_is_repeated_as_a_new_one(submissions: Submissions, queue: PostgresQueue) -> None:
    request = {**PHOENIX, "width": 512, "count": 2, "loras": [{"name": "ink"}], "metadata": {"cart": 7}}
    job = await submissions.submit(request, asker=Asker(ALICE), idempotency_key="order-1")
    first = await claimed(queue)
    await queue.fail(first.lease, Failure(Code.REFUSED, "Not for us."))

    again = await submissions.retry(job.id)

    assert again is not None
    assert again.id != job.id
    assert (again.retry_of, again.user_id, again.status, again.attempt) == (job.id, ALICE, Status.QUEUED, 0)
    assert (again.error_code, again.completed_at) == (None, None)
    second = await claimed(queue)
    assert second.id == again.id
    assert second.columns == first.columns


async def test_only_failed_and_canceled_jobs_are_repeated(submissions: Submissions) -> None:
    job = await submissions.submit(PHOENIX)

    with pytest.raises(ConflictError, match=r"is queued: only a failed or canceled job can be repeated"):
        await submissions.retry(job.id)
    assert await submissions.retry(uuid4()) is None

    await submissions.cancel(job.id)
    again = await submissions.retry(job.id)
    assert again is not None
    assert again.status is Status.QUEUED
    assert not again.cancel_requested


async def test_a_database_that_is_there_answers(submissions: Submissions) -> None:
    await submissions.ping()


async def test_the_depth_of_the_queue(submissions: Submissions, queue: PostgresQueue, pool: asyncpg.Pool[Any]) -> None:
    now = await pool.fetchval("SELECT now()")
    assert (await submissions.depth()).oldest_seconds == 0
    await submissions.submit({**PHOENIX, "run_at": now + timedelta(hours=1)})
    assert (await submissions.depth()).oldest_seconds == 0
    await submissions.submit({**PHOENIX, "run_at": now - timedelta(hours=2)})
    await submissions.submit({**PHOENIX, "run_at": now - timedelta(hours=1)})
    await queue.claim()

    depth = await submissions.depth()

    assert (depth.queued, depth.processing) == (2, 1)
    assert depth.oldest_seconds == pytest.approx(3600, abs=60)


async def test_stats_count_what_happened(
    submissions: Submissions, queue: PostgresQueue, pool: asyncpg.Pool[Any]
) -> None:
    assert (await submissions.stats()).by_status == ()
    two = (OUTPUT, OUTPUT)
    for outputs, milliseconds in (((OUTPUT,), 1000), (two, 3000), (two, 9000)):
        await submissions.submit(PHOENIX)
        await queue.complete((await claimed(queue)).lease, Completion(outputs, {}, {}, milliseconds))
    await pool.execute(
        "UPDATE generation_jobs SET created_at = now() - interval '2 days' WHERE processing_time_ms = 9000"
    )
    await submissions.submit(PHOENIX)

    day, week = await submissions.stats(), await submissions.stats(24 * 7)

    assert {one.status: (one.jobs, one.average_ms) for one in day.by_status} == {
        Status.COMPLETED: (2, 2000),
        Status.QUEUED: (1, None),
    }
    assert (day.pictures, day.storage_bytes, day.gpu_seconds) == (3, 3000, 4)
    assert (week.pictures, week.gpu_seconds) == (5, 13)
    assert day.table_bytes > 0


async def test_a_database_that_is_gone_is_a_database_error(submissions: Submissions, pool: asyncpg.Pool[Any]) -> None:
    await pool.close()

    for action in (
        submissions.submit(PHOENIX),
        submissions.get(ALICE),
        submissions.cancel(ALICE),
        submissions.retry(ALICE),
        submissions.ping(),
        submissions.depth(),
        submissions.stats(),
    ):
        with pytest.raises(DatabaseError):
            await action


def test_a_problem_reads_as_a_sentence() -> None:
    assert str(InputError.of([FieldProblem("width", "must be a multiple of 16")])) == "width: must be a multiple of 16"


async def test_every_question_is_about_the_askers_own_jobs(submissions: Submissions, pool: asyncpg.Pool[Any]) -> None:
    of_alice, of_nobody = await submissions.submit(PHOENIX, asker=Asker(ALICE)), await submissions.submit(PHOENIX)
    await pool.execute("UPDATE generation_jobs SET status = 'failed' WHERE id = $1", of_nobody.id)
    failed = await submissions.submit(PHOENIX, asker=Asker(ALICE))
    await pool.execute("UPDATE generation_jobs SET status = 'failed' WHERE id = $1", failed.id)

    for stranger in (Asker(BOB), Asker()):
        assert await submissions.get(of_alice.id, stranger) is None
        assert await submissions.line(of_alice.id, stranger) is None
        assert await submissions.cancel(of_alice.id, stranger) is None
        assert await submissions.retry(failed.id, stranger) is None
    assert await submissions.retry(of_nobody.id, Asker(ALICE)) is None
    assert await submissions.get(of_nobody.id, Asker()) is not None

    for knows in (Asker(ALICE), EVERYBODY):
        assert await submissions.line(of_alice.id, knows) is not None
        again = await submissions.retry(failed.id, knows)
        assert again is not None
        assert again.user_id == ALICE
