"""Maintenance: jobs of lost workers come back or end, and jobs that waited too long end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from tenkaigen_worker import maintenance
from tenkaigen_worker.config import WorkerSettings
from tenkaigen_worker.database.queue import PostgresQueue
from tenkaigen_worker.database.submissions import Submissions
from tenkaigen_worker.database.upkeep import OLDEST, Place, expire_late, rescue_lost
from tenkaigen_worker.errors import Code, DatabaseError, StorageError
from tenkaigen_worker.jobs import Asker, Completion, Failure, Job, Output, Status
from tenkaigen_worker.maintenance import expire, maintain, prune, remove_files, rescue
from tenkaigen_worker.storage.keys import attempt_prefix, lease_of, thumbnail_key
from tenkaigen_worker.storage.local import LocalStorage

LOSE_ALL = "UPDATE generation_jobs SET lease_expires_at = now() - interval '1 second' WHERE status = 'processing'"
MAKE_DUE = "UPDATE generation_jobs SET run_at = now()"
MARKED = "SELECT id FROM generation_jobs WHERE files_to_remove"
CRASHED = Failure(Code.ENGINE_CRASHED, "It crashed.")


@pytest.fixture
def submissions(pool: asyncpg.Pool[Any]) -> Submissions:
    return Submissions(pool)


@pytest.fixture
def queue(pool: asyncpg.Pool[Any]) -> PostgresQueue:
    return PostgresQueue(pool, "worker-1", 60)


class Files(LocalStorage):
    """A folder of files; the keys of ``stubborn`` jobs are not let go."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, "http://127.0.0.1/files")
        self.stubborn: set[UUID] = set()

    async def add(self, job: Job, index: int = 0) -> str:
        """Store a file as the worker that holds the job does; answers its key."""
        key = f"{attempt_prefix(job.user_id, job.lease)}{index}-0123456789ab.png"
        await self.put(key, b"PNG", content_type="image/png")
        return key

    async def add_thumbnail(self, key: str) -> str:
        """Store the small copy of a file; answers its key."""
        small = thumbnail_key(key)
        await self.put(small, b"WEBP", content_type="image/webp")
        return small

    async def all(self) -> list[str]:
        return [*await self.list("")]

    async def jobs(self) -> set[UUID]:
        """The jobs that have files."""
        return {lease.job_id for key in await self.all() if (lease := lease_of(key))}

    async def delete(self, keys: Sequence[str]) -> None:
        if any(str(id) in key for id in self.stubborn for key in keys):
            raise StorageError("the bucket is away")
        await super().delete(keys)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


async def claimed(queue: PostgresQueue) -> Job:
    job = await queue.claim()
    assert job is not None
    return job


async def marked(pool: asyncpg.Pool[Any]) -> list[UUID]:
    """The jobs whose files shall be removed."""
    return [row["id"] for row in await pool.fetch(MARKED)]


async def rescued(pool: asyncpg.Pool[Any]) -> list[Status]:
    """Take the lost jobs from their workers; answers what became of each."""
    return [job.status for job in await rescue_lost(pool, 60)]


async def test_a_lost_job_comes_back_until_no_attempt_is_left(
    pool: asyncpg.Pool[Any], submissions: Submissions, queue: PostgresQueue
) -> None:
    job = await submissions.submit({"prompt": "A phoenix", "max_attempts": 2})
    await queue.claim()
    assert await rescued(pool) == []  # the lease still holds

    await pool.execute(LOSE_ALL)
    assert await rescued(pool) == [Status.QUEUED]

    waiting = await submissions.get(job.id)
    assert waiting is not None
    assert (waiting.status, waiting.attempt, waiting.error_code) == (Status.QUEUED, 1, "worker_lost")
    assert (
        timedelta(seconds=3) < await pool.fetchval("SELECT run_at - now() FROM generation_jobs") < timedelta(seconds=7)
    )
    assert await rescued(pool) == []

    await pool.execute(MAKE_DUE)
    await queue.claim()
    await pool.execute(LOSE_ALL)
    assert await rescued(pool) == [Status.FAILED]

    lost = await submissions.get(job.id)
    assert lost is not None
    assert (lost.status, lost.attempt, lost.error_code) == (Status.FAILED, 2, "worker_lost")
    assert lost.completed_at is not None


async def test_a_lost_job_that_shall_be_canceled_ends(
    pool: asyncpg.Pool[Any], submissions: Submissions, queue: PostgresQueue
) -> None:
    job = await submissions.submit({"prompt": "A phoenix"})
    await queue.claim()
    await submissions.cancel(job.id)
    await pool.execute(LOSE_ALL)

    assert await rescued(pool) == [Status.CANCELED]


async def test_a_row_without_a_lease_is_rescued_a_lease_after_its_start(
    pool: asyncpg.Pool[Any], submissions: Submissions
) -> None:
    await pool.execute(
        "INSERT INTO generation_jobs (prompt, status, created_at) VALUES "
        "('just now', 'processing', now()), ('long ago', 'processing', now() - interval '61 seconds')"
    )

    assert await rescued(pool) == [Status.QUEUED]

    assert await pool.fetchval("SELECT prompt FROM generation_jobs WHERE status = 'queued'") == "long ago"


async def test_maintainers_share_the_work(pool: asyncpg.Pool[Any], queue: PostgresQueue) -> None:
    await pool.execute("INSERT INTO generation_jobs (prompt) SELECT 'x' FROM generate_series(1, 50)")
    while await queue.claim():
        pass
    await pool.execute(LOSE_ALL)

    parts = await asyncio.gather(*(rescued(pool) for _ in range(5)))

    assert sum(len(part) for part in parts) == 50
    assert await pool.fetchval("SELECT count(*) FROM generation_jobs WHERE status = 'queued'") == 50


async def test_a_row_that_its_worker_is_just_writing_is_left_alone(
    pool: asyncpg.Pool[Any], submissions: Submissions, queue: PostgresQueue
) -> None:
    await submissions.submit({"prompt": "A phoenix"})
    job = await queue.claim()
    assert job is not None
    await pool.execute(LOSE_ALL)

    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("UPDATE generation_jobs SET progress = 1")
        assert await rescued(pool) == []

    assert await queue.complete(job.lease, Completion((), {}, {}, 1))


async def test_pauses_grow_and_jobs_that_failed_together_come_back_apart(pool: asyncpg.Pool[Any]) -> None:
    pauses = [
        [await pool.fetchval("SELECT generation_jobs_backoff($1)", attempt) for _ in range(20)]
        for attempt in (1, 2, 3, 4, 20)
    ]

    for seconds, group in zip((5, 20, 80, 300, 300), pauses, strict=True):
        assert min(group) >= timedelta(seconds=0.75 * seconds)
        assert max(group) <= timedelta(seconds=1.25 * seconds)
        assert len(set(group)) > 10


async def test_queued_jobs_past_their_time_end(
    pool: asyncpg.Pool[Any], submissions: Submissions, queue: PostgresQueue
) -> None:
    now = await pool.fetchval("SELECT now()")
    late = await submissions.submit({"prompt": "late", "expires_at": now - timedelta(seconds=1)})
    await submissions.submit({"prompt": "in time", "expires_at": now + timedelta(hours=1)})
    await submissions.submit({"prompt": "whenever"})

    assert await expire_late(pool) == [late.id]
    assert await expire_late(pool) == []

    ended = await submissions.get(late.id)
    assert ended is not None
    assert (ended.status, ended.error_code) == (Status.FAILED, "expired")
    assert (await submissions.depth()).queued == 2


async def test_what_was_rescued_and_what_expired_is_logged(
    pool: asyncpg.Pool[Any], submissions: Submissions, queue: PostgresQueue, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tenkaigen.maintenance")
    lost = await submissions.submit({"prompt": "lost"})
    await queue.claim()
    await pool.execute(LOSE_ALL)
    late = await submissions.submit({"prompt": "late", "expires_at": await pool.fetchval("SELECT now()")})

    await rescue(pool, 60)
    await expire(pool)

    assert f"job {lost.id} was lost by worker worker-1 in attempt 1 of 3; it is queued now" in caplog.text
    assert f"job {late.id} expired before it started" in caplog.text


@pytest.mark.parametrize("claims", [0, 1])
@pytest.mark.parametrize("ending", ["failed", "expired", "lost", "canceled", "canceled_when_queued", "by_hand"])
async def test_a_job_that_ends_without_a_picture_is_marked_whoever_ends_it(
    ending: str, claims: int, pool: asyncpg.Pool[Any], submissions: Submissions, queue: PostgresQueue
) -> None:
    view = await submissions.submit({"prompt": "A phoenix", "max_attempts": 1})
    running = claims and ending not in ("expired", "canceled_when_queued")
    if claims:
        job = await claimed(queue)
        if not running:
            await queue.release(job.lease)
        elif ending == "failed":
            await queue.fail(job.lease, CRASHED)
        elif ending == "canceled":
            await queue.cancel(job.lease)
        elif ending == "lost":
            await pool.execute(LOSE_ALL)
            await rescued(pool)
    if ending == "by_hand":
        await pool.execute("UPDATE generation_jobs SET status = 'failed'")
    elif ending == "expired":
        await pool.execute("UPDATE generation_jobs SET expires_at = now()")
        await expire_late(pool)
    elif not running:
        await submissions.cancel(view.id)

    ended = await submissions.get(view.id)
    assert ended is not None
    assert ended.status in (Status.FAILED, Status.CANCELED)
    assert await marked(pool) == [view.id] * claims


async def test_a_job_that_comes_back_or_is_completed_is_not_marked(
    pool: asyncpg.Pool[Any], submissions: Submissions, queue: PostgresQueue
) -> None:
    await submissions.submit({"prompt": "A phoenix"})
    await queue.fail((await claimed(queue)).lease, CRASHED)
    assert not await marked(pool)

    await pool.execute(MAKE_DUE)
    await queue.complete((await claimed(queue)).lease, Completion((), {}, {}, 1))
    assert not await marked(pool)


async def test_files_of_a_job_that_failed_are_gone_after_the_next_round(
    pool: asyncpg.Pool[Any], submissions: Submissions, queue: PostgresQueue, files: Files
) -> None:
    for _ in range(2):
        await submissions.submit({"prompt": "A phoenix", "max_attempts": 2}, asker=Asker(UUID(int=7)))
    failing, other = await claimed(queue), await claimed(queue)
    await files.add(failing)
    kept = await files.add(other)
    await queue.fail(failing.lease, CRASHED)
    await remove_files(pool, files)
    assert len(await files.all()) == 2, "the job will be tried again"

    await pool.execute(MAKE_DUE)
    failing = await claimed(queue)
    await files.add(failing)
    await queue.fail(failing.lease, CRASHED)
    await remove_files(pool, files)

    assert await files.all() == [kept]
    assert not await marked(pool)


async def test_who_is_killed_between_files_and_note_leaves_only_the_note(
    pool: asyncpg.Pool[Any],
    submissions: Submissions,
    queue: PostgresQueue,
    files: Files,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = await submissions.submit({"prompt": "A phoenix"})
    await files.add(held := await claimed(queue))
    await queue.cancel(held.lease)

    async def killed(*_: object) -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(maintenance, "files_removed", killed)
        with pytest.raises(asyncio.CancelledError):
            await remove_files(pool, files)
    assert (await files.all(), await marked(pool)) == ([], [job.id])

    await remove_files(pool, files)
    assert not await marked(pool)


async def test_a_storage_that_refuses_one_job_is_asked_again_and_the_others_go_on(
    pool: asyncpg.Pool[Any],
    submissions: Submissions,
    queue: PostgresQueue,
    files: Files,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("WARNING", "tenkaigen.maintenance")
    for _ in range(5):
        await submissions.submit({"prompt": "A phoenix"})
    jobs = [await claimed(queue) for _ in range(5)]
    keys = [await files.add(job) for job in jobs]
    for job in jobs:
        await queue.cancel(job.lease)

    files.stubborn.add(jobs[2].id)
    await remove_files(pool, files)
    assert (await files.all(), await marked(pool)) == ([keys[2]], [jobs[2].id])
    assert f"files of job {jobs[2].id} could not be removed, which will be tried again: the bucket" in caplog.text

    files.stubborn.clear()
    await remove_files(pool, files)
    assert (await files.all(), await marked(pool)) == ([], [])


async def test_a_worker_that_does_not_know_yet_is_waited_for(
    pool: asyncpg.Pool[Any], submissions: Submissions, queue: PostgresQueue, files: Files
) -> None:
    await submissions.submit({"prompt": "A phoenix"})
    held = await claimed(queue)
    await pool.execute("UPDATE generation_jobs SET status = 'canceled'")
    await remove_files(pool, files)
    await files.add(held)
    assert await marked(pool)

    await pool.execute("UPDATE generation_jobs SET lease_expires_at = now() - interval '1 second'")
    await remove_files(pool, files)
    assert (await files.all(), await marked(pool)) == ([], [])


async def test_a_job_that_begins_again_by_hand_meanwhile_keeps_the_files_of_its_new_lease(
    pool: asyncpg.Pool[Any], submissions: Submissions, queue: PostgresQueue, files: Files
) -> None:
    job = await submissions.submit({"prompt": "A phoenix"})
    await files.add(held := await claimed(queue))
    await queue.cancel(held.lease)
    new: list[Job] = []

    class SlowFiles(Files):
        async def list(self, prefix: str) -> Sequence[str]:
            await pool.execute("UPDATE generation_jobs SET status = 'queued', completed_at = NULL")
            assert not await marked(pool)
            new.append(await claimed(queue))
            await files.add(new[0])
            await queue.fail(new[0].lease, Failure(Code.REFUSED, "Not for us."))
            return await super().list(prefix)

    await remove_files(pool, SlowFiles(files.root))
    (kept,) = await files.all()
    assert lease_of(kept) == new[0].lease
    assert await marked(pool) == [job.id]

    await remove_files(pool, files)
    assert (await files.all(), await marked(pool)) == ([], [])


async def test_a_picture_that_the_row_names_stays_even_if_the_job_is_called_failed(
    pool: asyncpg.Pool[Any], submissions: Submissions, queue: PostgresQueue, files: Files
) -> None:
    await submissions.submit({"prompt": "A phoenix"})
    held = await claimed(queue)
    named, unnamed = await files.add(held), await files.add(held, index=1)
    small, _ = await files.add_thumbnail(named), await files.add_thumbnail(unnamed)
    picture = Output(0, named, f"/files/{named}", 64, 64, 3, "ab" * 32, 1, small, f"/files/{small}")
    await queue.complete(held.lease, Completion((picture,), {}, {}, 1))
    await pool.execute("UPDATE generation_jobs SET status = 'failed', outputs = outputs || '[null, 1, {\"key\": {}}]'")
    assert unnamed in await files.all()

    await remove_files(pool, files)
    assert (await files.all(), await marked(pool)) == ([named, small], [])


AGE = "UPDATE generation_jobs SET completed_at = now() - $2 * interval '1 day' WHERE id = $1"


async def completed(
    pool: asyncpg.Pool[Any], queue: PostgresQueue, files: Files, *, days_ago: float, user_id: UUID | None = None
) -> UUID:
    """Complete a job with one stored picture and its thumbnail, so many days ago; answers its id."""
    await pool.execute("INSERT INTO generation_jobs (prompt, user_id) VALUES ('A phoenix', $1)", user_id)
    job = await claimed(queue)
    key = await files.add(job)
    small = await files.add_thumbnail(key)
    picture = Output(0, key, f"/files/{key}", 64, 64, 3, "ab" * 32, 1, small, f"/files/{small}")
    assert await queue.complete(job.lease, Completion((picture,), {}, {}, 1))
    await pool.execute(AGE, job.id, days_ago)
    return job.id


async def there(pool: asyncpg.Pool[Any]) -> set[UUID]:
    return {row["id"] for row in await pool.fetch("SELECT id FROM generation_jobs")}


async def test_old_jobs_are_pruned_with_their_files_and_no_others(
    pool: asyncpg.Pool[Any],
    submissions: Submissions,
    queue: PostgresQueue,
    files: Files,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "tenkaigen.maintenance")
    for days_ago in (400, 31, 30.1):
        await completed(pool, queue, files, days_ago=days_ago, user_id=UUID(int=7))
    young = await completed(pool, queue, files, days_ago=29.9)
    queued = await submissions.submit({"prompt": "A phoenix"})
    await pool.execute(AGE, queued.id, 400)  # a hand has queued it again and left the date

    assert await prune(pool, files, 30, OLDEST) is None

    assert await there(pool) == {young, queued.id}
    assert await files.jobs() == {young}
    (line,) = [record for record in caplog.records if getattr(record, "action", "") == "jobs_pruned"]
    assert line.__dict__["count"] == 3


async def test_pictures_of_a_user_who_is_gone_are_pruned_by_the_keys_in_the_row_if_they_are_the_jobs_own(
    pool: asyncpg.Pool[Any], queue: PostgresQueue, files: Files
) -> None:
    job = await completed(pool, queue, files, days_ago=40, user_id=UUID(int=7))
    other = await completed(pool, queue, files, days_ago=1, user_id=UUID(int=7))
    await pool.execute("UPDATE generation_jobs SET user_id = NULL")
    await pool.execute(
        "UPDATE generation_jobs SET outputs = outputs || (SELECT outputs FROM generation_jobs WHERE id = $2) "
        "WHERE id = $1",
        *(job, other),
    )

    await prune(pool, files, 30, OLDEST)

    assert await files.jobs() == {other}


async def test_a_row_outlives_its_files_if_storage_refuses_or_the_program_is_killed(
    pool: asyncpg.Pool[Any],
    queue: PostgresQueue,
    files: Files,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("WARNING", "tenkaigen.maintenance")
    jobs = [await completed(pool, queue, files, days_ago=40 - n) for n in range(3)]
    files.stubborn.add(jobs[0])
    await prune(pool, files, 30, OLDEST)
    assert await there(pool) == {jobs[0]}
    assert "of the old jobs 1 stay for now, the first because: the bucket is away" in caplog.text

    files.stubborn.clear()
    delete = files.delete

    async def killed(keys: Sequence[str]) -> None:
        await delete(keys)
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(files, "delete", killed)
        with pytest.raises(asyncio.CancelledError):
            await prune(pool, files, 30, OLDEST)
    assert (await files.all(), await there(pool)) == ([], {jobs[0]})

    await prune(pool, files, 30, OLDEST)
    assert not await there(pool)


@pytest.mark.parametrize("when", ["", "DEFERRABLE INITIALLY DEFERRED"], ids=["at_once", "at_commit"])
async def test_a_job_that_an_order_refers_to_keeps_its_picture_and_stands_in_front_of_nobody(
    when: str,
    pool: asyncpg.Pool[Any],
    queue: PostgresQueue,
    files: Files,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(maintenance, "PRUNED_AT_ONCE", 1)
    sold, unsold = [await completed(pool, queue, files, days_ago=days) for days in (50, 40)]
    await pool.execute(f"CREATE TABLE orders (job uuid REFERENCES generation_jobs {when})")
    await pool.execute("INSERT INTO orders VALUES ($1)", sold)

    place = await prune(pool, files, 30, OLDEST)
    assert place is not None
    assert place.id == sold
    place = await prune(pool, files, 30, place)
    assert place is not None
    assert place.id == unsold
    assert await prune(pool, files, 30, place) is None

    assert await there(pool) == {sold}
    assert await files.jobs() == {sold}


async def test_what_else_forgets_a_pruned_job(
    pool: asyncpg.Pool[Any], submissions: Submissions, queue: PostgresQueue, files: Files
) -> None:
    first = await submissions.submit({"prompt": "A phoenix"}, idempotency_key="k")
    await submissions.cancel(first.id)
    again = await submissions.retry(first.id)
    assert again is not None
    await pool.execute(AGE, first.id, 40)

    await prune(pool, files, 30, OLDEST)

    repeated = await submissions.get(again.id)
    assert repeated is not None
    assert (repeated.status, repeated.retry_of) == (Status.QUEUED, None)
    assert (await submissions.submit({"prompt": "A phoenix"}, idempotency_key="k")).id != first.id


async def test_maintainers_that_prune_at_once_share_the_work(
    pool: asyncpg.Pool[Any], queue: PostgresQueue, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tenkaigen.maintenance")
    for _ in range(10):
        await completed(pool, queue, files, days_ago=40)

    await asyncio.gather(*(prune(pool, files, 30, OLDEST) for _ in range(5)))

    assert (await files.all(), await there(pool)) == ([], set())
    assert sum(getattr(record, "count", 0) for record in caplog.records) == 10


async def test_an_old_row_that_somebody_is_just_writing_is_passed_by(
    pool: asyncpg.Pool[Any], queue: PostgresQueue, files: Files
) -> None:
    busy, _ = [await completed(pool, queue, files, days_ago=days) for days in (50, 40)]

    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("UPDATE generation_jobs SET metadata = '{\"sold\": true}' WHERE id = $1", busy)
        await prune(pool, files, 30, OLDEST)

    assert await there(pool) == await files.jobs() == {busy}


async def test_a_storage_that_never_answers_is_given_up(
    pool: asyncpg.Pool[Any],
    queue: PostgresQueue,
    files: Files,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("WARNING", "tenkaigen.maintenance")
    old = await completed(pool, queue, files, days_ago=40)

    async def hang(prefix: str) -> Sequence[str]:
        await asyncio.Event().wait()
        return ()

    monkeypatch.setattr(files, "list", hang)
    monkeypatch.setattr(maintenance, "STORAGE_SECONDS", 0)
    await prune(pool, files, 30, OLDEST)
    assert "storage did not answer within 0 s" in caplog.text
    assert await there(pool) == {old}


async def test_it_goes_on_after_an_outage_but_lets_workers_renew_first(
    pool: asyncpg.Pool[Any], files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(datetime(2026, 1, 1, tzinfo=UTC), UUID(int=7))
    steps: dict[str, list[object]] = {
        "rescue": [None, DatabaseError("away"), None],
        "files": [None, DatabaseError("away"), None],
        "prune": [place, DatabaseError("away"), None],
    }
    pauses: dict[str, list[float]] = {name: [] for name in steps}
    begun: list[Place] = []

    def step(name: str) -> Callable[..., Awaitable[Any]]:
        outcomes = iter(steps[name])

        async def next_outcome(*given: object) -> object:
            begun.extend(value for value in given if isinstance(value, Place))
            outcome = next(outcomes)
            if isinstance(outcome, DatabaseError):
                raise outcome
            return outcome

        return next_outcome

    async def note(seconds: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        noted = pauses[task.get_name()]
        noted.append(seconds)
        if len(noted) == 4:
            raise asyncio.CancelledError

    monkeypatch.setattr(maintenance, "rescue", step("rescue"))
    monkeypatch.setattr(maintenance, "remove_files", step("files"))
    monkeypatch.setattr(maintenance, "prune", step("prune"))
    monkeypatch.setattr(maintenance.asyncio, "sleep", note)

    await maintain(pool, files, WorkerSettings(heartbeat_seconds=20, rescue_seconds=10, prune_after_days=30))

    assert pauses == {"rescue": [20, 10, 10, 20], "files": [10, 10, 10, 10], "prune": [10, 10, 10, 3600]}
    assert begun == [OLDEST, place, place]


async def test_workers_renew_first_once_an_outage_is_over_and_not_while_it_lasts(
    pool: asyncpg.Pool[Any], files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = DatabaseError("away")
    answers = {"ping": iter([away, away, None]), "rescue": iter([None, None])}
    events: list[str | float] = []

    def step(name: str) -> Callable[..., Awaitable[None]]:
        async def next_answer(*_: object) -> None:
            events.append(name)
            if error := next(answers[name]):
                raise error

        return next_answer

    async def note(seconds: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        if task.get_name() == "rescue":
            events.append(seconds)
        if task.get_name() != "rescue" or events.count("rescue") == 2:
            raise asyncio.CancelledError

    monkeypatch.setattr(maintenance, "ping", step("ping"))
    monkeypatch.setattr(maintenance, "rescue", step("rescue"))
    monkeypatch.setattr(maintenance.asyncio, "sleep", note)

    await maintain(pool, files, WorkerSettings(heartbeat_seconds=20, rescue_seconds=10))

    assert events == ["ping", 10, "ping", 10, "ping", 20, "rescue", 10, "rescue", 10]


async def test_nothing_is_pruned_unless_asked_for(
    pool: asyncpg.Pool[Any], files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = set()

    async def note(_: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        begun.add(task.get_name())
        raise asyncio.CancelledError

    monkeypatch.setattr(maintenance.asyncio, "sleep", note)
    await maintain(pool, files, WorkerSettings())
    assert begun == {"rescue", "files"}
