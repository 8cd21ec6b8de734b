"""Random histories of the queue: workers claim, write late, die and race, people cancel and repeat, the clock jumps.

After every step each promise is checked on its own: by the rows, by a log of all changes that a trigger in the database
writes, and by a model that knows the history alone.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any, TypeVar
from uuid import UUID

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tenkaigen_worker.config import DatabaseSettings
from tenkaigen_worker.database.connect import open_pool
from tenkaigen_worker.database.queue import PostgresQueue
from tenkaigen_worker.database.submissions import Submissions
from tenkaigen_worker.database.upkeep import LostJob, expire_late, rescue_lost
from tenkaigen_worker.errors import Code, ConflictError
from tenkaigen_worker.jobs import FINAL, TRANSITIONS, Completion, Failure, Job, JobView, Lease, Output, Progress, Status
from tests.integration.queue_model import LEASE, NEVER, Model, ModelJob, Seen

LEASE_SECONDS = LEASE * 3600
WORKERS = ("worker-1", "worker-2", "worker-3")

# Every change of a row, as the database itself saw it: also those between two looks of the test, and in their order,
# because the row is locked meanwhile.
CHANGE_LOG = """
CREATE TABLE changes (
    n bigint GENERATED ALWAYS AS IDENTITY, job uuid,
    status_before text, status_after text, token_before bigint, token_after bigint,
    cancel_before boolean, cancel_after boolean
);
CREATE FUNCTION log_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO changes (
        job, status_before, status_after, token_before, token_after, cancel_before, cancel_after
    ) VALUES (
        NEW.id, OLD.status, NEW.status, OLD.lease_token, NEW.lease_token,
        OLD.cancel_requested_at IS NOT NULL, NEW.cancel_requested_at IS NOT NULL
    );
    RETURN NULL;
END
$$;
CREATE TRIGGER log_change AFTER UPDATE ON generation_jobs FOR EACH ROW EXECUTE FUNCTION log_change();
"""

# The clock cannot be moved, but what is compared with it can. An hour later everything is due an hour sooner.
JUMP = """
UPDATE generation_jobs
SET run_at = run_at - $1::interval, expires_at = expires_at - $1, lease_expires_at = lease_expires_at - $1
WHERE status IN ('queued', 'processing')
"""

T = TypeVar("T")

# By name: how a lease writes, and what the model makes of the answer.
WRITES: Mapping[str, tuple[Callable[[PostgresQueue, Lease], Awaitable[Any]], Callable[[Model, Lease, Any], None]]] = {
    "complete": (
        lambda queue, lease: queue.complete(lease, Completion(pictures(lease), {}, {}, 1)),
        Model.completed,
    ),
    "fail": (
        lambda queue, lease: queue.fail(lease, Failure(Code.ENGINE_CRASHED, "It crashed.")),
        lambda model, lease, answer: model.failed(lease, True, answer),
    ),
    "refuse": (
        lambda queue, lease: queue.fail(lease, Failure(Code.REFUSED, "Not for us.")),
        lambda model, lease, answer: model.failed(lease, False, answer),
    ),
    "release": (
        lambda queue, lease: queue.release(lease),
        lambda model, lease, answer: model.released(lease, 0, answer),
    ),
    "release_for_later": (
        lambda queue, lease: queue.release(lease, delay=timedelta(minutes=30)),
        lambda model, lease, answer: model.released(lease, 0.5, answer),
    ),
    "cancel": (lambda queue, lease: queue.cancel(lease), Model.canceled),
    "heartbeat": (
        lambda queue, lease: queue.heartbeat({lease: Progress("denoise", 0.5)}),
        lambda model, _, answer: model.renewed(answer),
    ),
}

# 0 is the latest, so that a shrunk history speaks of what just happened.
WHICH = st.integers(0, 7)

MOST_OPEN = 4

# One thing that is done, and what the model makes of its answer.
Action = tuple[Coroutine[Any, Any, Any], Callable[[Model, Any], None]]


def pictures(lease: Lease) -> tuple[Output, ...]:
    """What a worker with this lease makes: no other lease's pictures are equal."""
    key = f"{lease.job_id}/{lease.token}-0.png"
    return (Output(0, key, f"/files/{key}", 64, 64, 100, "ab" * 32, lease.token),)


@dataclass
class Bench:
    """A database and a loop of its own for all histories of a test, and what they have shown."""

    pool: asyncpg.Pool[Any]
    run: Callable[[Coroutine[Any, Any, Any]], Any]
    transitions: Counter[tuple[Status, Status]] = field(default_factory=Counter)
    late_writes: int = 0
    steps: int = 0


class QueueMachine(RuleBasedStateMachine):
    """One history. ``hands`` are the leases that each worker believes to hold, ``leases`` all that were ever given."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.bench = bench
        self.submissions = Submissions(bench.pool)
        self.queues = {worker: PostgresQueue(bench.pool, worker, LEASE_SECONDS) for worker in WORKERS}
        self.model = Model()
        self.hands: dict[str, list[Lease]] = {worker: [] for worker in WORKERS}
        self.leases: dict[Lease, str] = {}
        self.rows: Mapping[UUID, asyncpg.Record] = {}
        self.changes: Sequence[asyncpg.Record] = ()
        self.alive: set[Lease] = set()
        self.looked = 0
        bench.run(bench.pool.execute("TRUNCATE generation_jobs, changes RESTART IDENTITY CASCADE"))

    # What happens ----------------------------------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        self.submit(priority=0, max_attempts=20, start=0, expires=None)
        self.submit(priority=0, max_attempts=3, start=0, expires=None)
        self.submit(priority=0, max_attempts=3, start=0.5, expires=0.5)

    @rule(
        priority=st.integers(0, 1),
        max_attempts=st.integers(1, 5),
        start=st.sampled_from([0, 0, 0.5]),
        expires=st.sampled_from([None, None, 0.5, 1.5]),
    )
    def submit(self, priority: int, max_attempts: int, start: float, expires: float | None) -> None:
        # Few at a time, so that much happens to each.
        if sum(job.status not in FINAL for job in self.model.jobs.values()) >= MOST_OPEN:
            return
        columns: dict[str, object] = {"prompt": "A phoenix", "priority": priority, "max_attempts": max_attempts}
        now = datetime.now(UTC)
        if start:
            columns["run_at"] = now + timedelta(hours=start)
        if expires:
            columns["expires_at"] = now + timedelta(hours=expires)
        hour = self.model.hour
        job = ModelJob(max_attempts, hour + start, hour + expires if expires else NEVER)
        self._step((self.submissions.submit(columns), lambda model, view: model.submitted(view, job)))

    @rule(worker=st.sampled_from(WORKERS))
    def claim(self, worker: str) -> None:
        self._step(self._claim(worker))

    @rule(which=WHICH, how=st.sampled_from(sorted(WRITES)))
    def write(self, which: int, how: str) -> None:
        """Any lease that was ever given and whose worker lives may write at any time."""
        if lease := self._pick(self._held(), which):
            self._step(self._write(lease, how))

    @rule(first=st.sampled_from(WORKERS), then=st.sampled_from(WORKERS), how=st.sampled_from(sorted(WRITES)))
    def overtake(self, first: str, then: str, how: str) -> None:
        """A worker is silent for too long, another takes over, and whoever lost a job writes."""
        self.claim(first)
        self._jump(1)
        self.rescue()
        self._jump(1)
        self.claim(then)
        for lease in self._overtaken():
            self._step(self._write(lease, how))

    @rule(worker=st.sampled_from(WORKERS))
    def heartbeat(self, worker: str) -> None:
        held = {lease: Progress("denoise", 0.5) for lease in self.hands[worker]}
        self._step((self.queues[worker].heartbeat(held), Model.renewed))

    @rule(worker=st.sampled_from(WORKERS))
    def die(self, worker: str) -> None:
        self.hands[worker].clear()

    @rule(which=WHICH, how=st.sampled_from(sorted(WRITES)))
    def die_in_mid_write(self, which: int, how: str) -> None:
        """What was not committed has not happened, and others work on beside it."""
        if lease := self._pick(self._held(), which):
            self._step((self._uncommitted(lease, how), Model.rescued), racing=True)
            self.hands[self.leases[lease]].clear()

    @rule(which=WHICH)
    def ask_to_cancel(self, which: int) -> None:
        if job := self._pick([*self.model.jobs], which):
            self._step(self._ask_to_cancel(job))

    @rule(which=WHICH)
    def repeat(self, which: int) -> None:
        if job := self._pick([*self.model.jobs], which):
            self._step((self._repeat(job), lambda model, answer: model.repeated(job, answer)))

    @rule()
    def rescue(self) -> None:
        self._step((rescue_lost(self.bench.pool, LEASE_SECONDS), Model.rescued))

    @rule()
    def expire(self) -> None:
        self._step((expire_late(self.bench.pool), Model.expired))

    @rule(hours=st.sampled_from([1, -1]))
    def jump(self, hours: int) -> None:
        self._jump(hours)

    @rule(
        actions=st.lists(
            st.tuples(st.sampled_from(["claim", "ask_to_cancel", "rescue", "expire", *sorted(WRITES)]), WHICH),
            min_size=2,
            max_size=4,
        )
    )
    def race(self, actions: list[tuple[str, int]]) -> None:
        """Several statements at once: the outcome must be that of some order."""
        self._step(*filter(None, [self._action(*action) for action in actions]), racing=True)

    def teardown(self) -> None:
        """Everybody dies, time passes, one good worker comes: nothing may be left over."""
        if sys.exc_info()[0] is not None:
            return
        self._jump(100)
        self.rescue()
        self.expire()
        self._jump(100)
        while any(not is_final(row) for row in self.rows.values()):
            claims = len(self.leases)
            self.claim(WORKERS[0])
            assert len(self.leases) > claims, f"these are stuck: {[*self.rows.values()]}"
            self._step(self._write([*self.leases][-1], "complete"))

    # What must hold after each step ----------------------------------------------------------------------------------

    @invariant()
    def one_live_lease_per_job(self) -> None:
        jobs = Counter(lease.job_id for lease in self.alive)
        assert all(count == 1 for count in jobs.values()), f"several leases of one job renew: {self.alive}"
        assert self.alive == self.model.live()

    @invariant()
    def no_old_token_wrote(self) -> None:
        strangers = {change["job"] for change in self.changes} - self.model.touched
        assert not strangers, f"written by somebody without the right to: {strangers}"

    @invariant()
    def attempts_are_explained(self) -> None:
        for id, row in self.rows.items():
            claims, releases = self.model.jobs[id].claims, self.model.jobs[id].releases
            assert row["attempt"] == claims - releases, f"{claims} claims and {releases} releases do not explain {row}"
            assert row["attempt"] <= row["max_attempts"]

    @invariant()
    def tokens_grow_by_one_at_a_claim_and_never_else(self) -> None:
        for change in self.changes:
            claimed = (change["status_before"], change["status_after"]) == (Status.QUEUED, Status.PROCESSING)
            assert change["token_after"] == change["token_before"] + claimed, f"the token of {change}"

    @invariant()
    def every_transition_is_on_the_diagram(self) -> None:
        for change in self.changes:
            transition = Status(change["status_before"]), Status(change["status_after"])
            assert transition in TRANSITIONS or transition[0] is transition[1], f"{transition} is on no diagram"

    @invariant()
    def what_is_final_stays(self) -> None:
        for change in self.changes:
            assert change["status_before"] not in FINAL, f"a final row was written: {change}"

    @invariant()
    def completed_rows_have_the_pictures_of_their_own_lease(self) -> None:
        for id, row in self.rows.items():
            made = pictures(Lease(id, row["lease_token"])) if row["status"] == Status.COMPLETED else ()
            assert row["outputs"] == [asdict(picture) for picture in made]
            assert row["result_url"] == (made[0].url if made else None)

    @invariant()
    def who_asked_to_cancel_never_sees_it_start_or_wait_again(self) -> None:
        for change in self.changes:
            assert not (change["cancel_before"] and change["status_after"] == Status.QUEUED), f"queued again: {change}"
            assert not (change["cancel_before"] and change["status_before"] == Status.QUEUED), f"it waited: {change}"
            assert change["cancel_after"] or not change["cancel_before"], f"forgotten: {change}"

    @invariant()
    def times_agree_with_the_status(self) -> None:
        for row in self.rows.values():
            assert (row["lease_expires_at"] is not None) == (row["status"] == Status.PROCESSING), f"the lease of {row}"
            assert (row["completed_at"] is not None) == is_final(row), f"the end of {row}"
            assert (row["started_at"] is not None) == (row["lease_token"] > 0), f"the start of {row}"
            times = [time for name in ("created_at", "started_at", "completed_at") if (time := row[name])]
            assert times == sorted(times), f"the order of times in {row}"

    @invariant()
    def files_are_looked_for_where_a_worker_may_have_left_some(self) -> None:
        for row in self.rows.values():
            without_pictures = row["status"] in (Status.FAILED, Status.CANCELED)
            assert row["files_to_remove"] == (without_pictures and row["lease_token"] > 0), f"the mark of {row}"

    # How -------------------------------------------------------------------------------------------------------------

    def _step(self, *actions: Action, racing: bool = False) -> None:
        self.bench.run(self._do(actions, racing))
        self.bench.steps += 1

    async def _do(self, actions: Sequence[Action], racing: bool) -> None:
        answers = await asyncio.gather(*(action for action, _ in actions))
        await self._look()
        happened = [(expect, answer) for (_, expect), answer in zip(actions, answers, strict=True)]
        objections = []
        for order in permutations(happened):
            model = self.model.next(racing=racing)
            try:
                for expect, answer in order:
                    expect(model, answer)
                assert {id: seen(row) for id, row in self.rows.items()} == model.seen()
            except AssertionError as objection:
                objections.append(objection)
            else:
                self.model = model
                return
        raise objections[0] if len(objections) == 1 else ExceptionGroup("no order explains this", objections)

    async def _look(self) -> None:
        """Read the rows, what changed since the last look, and ask which leases live: without a trace."""
        async with self.bench.pool.acquire() as connection:
            rows = await connection.fetch("SELECT * FROM generation_jobs")
            self.rows = {row["id"]: row for row in rows}
            self.changes = await connection.fetch("SELECT * FROM changes WHERE n > $1 ORDER BY n", self.looked)
            transaction = connection.transaction()
            await transaction.start()
            answer = await PostgresQueue(connection, "probe", 1).heartbeat(
                dict.fromkeys(self.leases, Progress("probe", 0))
            )
            await transaction.rollback()
        self.looked = max((change["n"] for change in self.changes), default=self.looked)
        self.bench.transitions.update(
            (Status(change["status_before"]), Status(change["status_after"])) for change in self.changes
        )
        self.alive = {lease for lease, heartbeat in answer.items() if heartbeat.alive}

    def _action(self, kind: str, which: int) -> Action | None:
        if kind == "claim":
            return self._claim(WORKERS[which % len(WORKERS)])
        if kind == "rescue":
            return rescue_lost(self.bench.pool, LEASE_SECONDS), Model.rescued
        if kind == "expire":
            return expire_late(self.bench.pool), Model.expired
        if kind == "ask_to_cancel":
            return self._ask_to_cancel(self._pick([*self.model.jobs], which))
        lease = self._pick(self._held(), which)
        return self._write(lease, kind) if lease else None

    def _claim(self, worker: str) -> Action:
        async def claim() -> Job | None:
            job = await self.queues[worker].claim()
            if job:
                self.leases[job.lease] = worker
                self.hands[worker].append(job.lease)
            return job

        return claim(), lambda model, answer: model.claimed(worker, answer)

    def _write(self, lease: Lease, how: str) -> Action:
        write, expect = WRITES[how]
        self.bench.late_writes += lease in self._overtaken()
        return write(self.queues[self.leases[lease]], lease), lambda model, answer: expect(model, lease, answer)

    def _ask_to_cancel(self, job: UUID) -> Action:
        return self.submissions.cancel(job), lambda model, _: model.asked_to_cancel(job)

    def _jump(self, hours: int) -> None:
        self._step((self.bench.pool.execute(JUMP, timedelta(hours=hours)), lambda model, _: model.jumped(hours)))

    async def _repeat(self, job: UUID) -> JobView | None:
        try:
            return await self.submissions.retry(job)
        except ConflictError:
            return None

    async def _uncommitted(self, lease: Lease, how: str) -> Sequence[LostJob]:
        write, _ = WRITES[how]
        async with self.bench.pool.acquire() as connection:
            transaction = connection.transaction()
            await transaction.start()
            await write(PostgresQueue(connection, self.leases[lease], LEASE_SECONDS), lease)
            rescued = await rescue_lost(self.bench.pool, LEASE_SECONDS)
            await transaction.rollback()
        return rescued

    def _held(self) -> list[Lease]:
        """What living workers were given, lost or not."""
        return [lease for lease, worker in self.leases.items() if lease in self.hands[worker]]

    def _overtaken(self) -> list[Lease]:
        """Leases of living workers on jobs that another lease is working on now."""
        running = {lease.job_id: lease for lease in self.model.live()}
        return [lease for lease in self._held() if running.get(lease.job_id, lease) != lease]

    @staticmethod
    def _pick(things: Sequence[T], which: int) -> T | None:
        return things[-1 - which % len(things)] if things else None


def is_final(row: asyncpg.Record) -> bool:
    return row["status"] in FINAL


def seen(row: asyncpg.Record) -> Seen:
    cancel_requested = row["cancel_requested_at"] is not None
    return Seen(row["status"], row["attempt"], row["lease_token"], row["worker_id"], cancel_requested)


@pytest.fixture
def bench(database: str) -> Iterator[Bench]:
    with asyncio.Runner() as runner:
        pool = runner.run(open_pool(DatabaseSettings(pool_size=10), database, "tests"))
        runner.run(pool.execute(CHANGE_LOG))
        yield Bench(pool, runner.run)
        runner.run(pool.close())


# Each test ends by itself; the limit is for the search for the shortest history that fails.
@pytest.mark.timeout(1200)
def test_the_promises_hold_in_any_history(bench: Bench) -> None:
    run_histories(bench, settings(max_examples=25, stateful_step_count=30, derandomize=True))


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_the_promises_hold_in_a_thousand_new_histories(bench: Bench) -> None:
    run_histories(bench, settings(max_examples=1000, stateful_step_count=50))


def run_histories(bench: Bench, how_many: settings) -> None:
    """Run them, and see that they showed what they are for."""
    as_long_as_it_takes = settings(how_many, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(lambda: QueueMachine(bench), settings=as_long_as_it_takes)

    print(f"\n{bench.steps} steps, {bench.late_writes} late writes to a job that another worker has")
    for (before, after), count in sorted(bench.transitions.items()):
        print(f"{before:>12} -> {after:<12} {count}")
    assert bench.transitions.keys() >= TRANSITIONS
    assert bench.late_writes > 0
