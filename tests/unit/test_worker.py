"""The worker's loops: when they claim, what they do about an engine that cannot load, and how they end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from datetime import timedelta
from typing import Any, cast

import pytest

from tenkaigen_worker.config import WorkerSettings
from tenkaigen_worker.engine.base import NO_INPUTS, EngineInfo, Inputs, Picture, Step
from tenkaigen_worker.errors import Code, DatabaseError, EngineError
from tenkaigen_worker.jobs import Failure, Heartbeat, Job, Lease, Progress, Status
from tenkaigen_worker.metrics import Metrics
from tenkaigen_worker.recipe import Model, Recipe, warm_up
from tenkaigen_worker.worker.tools import Tools
from tenkaigen_worker.worker.worker import Worker
from tests.unit.examples import FakeWorkers, claimed, sources

INFO = EngineInfo(Model("blank", "blank", None, 64, 64), "cpu", "none", 0)


class EmptyQueue:
    """Few jobs, or none; tells how often it was asked, and fails as often as it should."""

    def __init__(self) -> None:
        self.claims = 0
        self.failures = 0
        self.asked = asyncio.Event()
        self.later: list[bool] = []
        self.jobs: list[Job] = []
        self.failed: list[Lease] = []

    async def claim(self) -> Job | None:
        self.claims += 1
        self.asked.set()
        if self.failures:
            self.failures -= 1
            raise DatabaseError("the database is away")
        return self.jobs.pop() if self.jobs else None

    async def fail(self, lease: Lease, failure: Failure) -> Status | None:
        self.failed.append(lease)
        return Status.FAILED

    async def due_within(self, delay: timedelta) -> bool:
        return self.later.pop() if self.later else False

    async def heartbeat(self, held: Mapping[Lease, Progress]) -> Mapping[Lease, Heartbeat]:
        return {}


class StubbornEngine:
    """Loads its model only after some failures."""

    def __init__(self, failures: int = 0) -> None:
        self.info: EngineInfo | None = None
        self.failures = failures

    async def start(self) -> EngineInfo:
        if self.failures:
            self.failures -= 1
            raise EngineError(Code.ENGINE_FAILED, "the model's folder is gone")
        self.info = INFO
        return INFO


@pytest.fixture
async def queue() -> EmptyQueue:
    return EmptyQueue()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenkaigen_worker.worker.worker.DATABASE_PAUSE", 0)
    monkeypatch.setattr("tenkaigen_worker.worker.worker.ENGINE_PAUSE", 0)


class SickEngine(StubbornEngine):
    """Fails every job, and the first warm-ups; ``seen`` tells the one from the other, in order."""

    def __init__(self, sick_warm_ups: int) -> None:
        super().__init__()
        self.sick_warm_ups = sick_warm_ups
        self.seen: list[str] = []

    async def generate(
        self, recipe: Recipe, inputs: Inputs = NO_INPUTS, *, on_step: Callable[[Step], None]
    ) -> AsyncGenerator[Picture]:
        self.seen.append("warm-up" if recipe == warm_up(INFO.model) else "job")
        if self.seen[-1] == "warm-up" and self.seen.count("warm-up") > self.sick_warm_ups:
            return
        raise EngineError(Code.ENGINE_CRASHED, "the GPU fell off the bus")
        yield


class NoStorage:
    """Nothing was ever stored."""

    async def list(self, prefix: str) -> list[str]:
        return []


def worker(queue: EmptyQueue, engine: StubbornEngine, *, drain: bool = False, poll: float = 0.001) -> Worker:
    parts = cast("Any", (queue, engine, NoStorage(), None))
    return Worker(
        Tools(*parts, sources(), Metrics(), FakeWorkers()),
        WorkerSettings(poll_seconds=poll),
        drain=drain,
    )


def deaf() -> bool:
    return False


async def test_no_job_is_claimed_before_the_engine_has_its_model(queue: EmptyQueue) -> None:
    engine = StubbornEngine(failures=3)
    await worker(queue, engine, drain=True).run(listening=deaf)
    assert engine.failures == 0
    assert queue.claims == 1


async def test_an_outage_of_the_database_is_waited_for(queue: EmptyQueue) -> None:
    queue.failures = 3
    await worker(queue, StubbornEngine(), drain=True).run(listening=deaf)
    assert queue.claims == 4


async def test_after_an_outage_leases_are_renewed_before_more_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class AwayQueue(EmptyQueue):
        async def claim(self) -> Job | None:
            calls.append("claim")
            return await super().claim()

    async def beat(self: Worker) -> None:
        if queue.claims:
            calls.append("heartbeat")
        if calls == ["claim", "heartbeat"]:
            raise DatabaseError("the database is still away")

    monkeypatch.setattr(Worker, "_beat", beat)
    queue = AwayQueue()
    queue.failures = 1
    await worker(queue, StubbornEngine(), drain=True).run(listening=deaf)
    assert calls == ["claim", "heartbeat", "heartbeat", "claim"]


async def test_draining_waits_for_jobs_that_are_due_a_little_later(queue: EmptyQueue) -> None:
    queue.later = [True, True]
    await worker(queue, StubbornEngine(), drain=True).run(listening=deaf)
    assert queue.claims == 3


async def test_a_stop_ends_the_longest_wait_at_once(queue: EmptyQueue) -> None:
    idle = worker(queue, StubbornEngine(), poll=3600)
    running = asyncio.create_task(idle.run(listening=deaf))
    await queue.asked.wait()
    idle.stop()
    await running
    assert idle.problems() == ["the worker is stopping"]


async def test_a_stop_does_not_wait_for_a_load(queue: EmptyQueue) -> None:
    class LoadingEngine(StubbornEngine):
        async def start(self) -> EngineInfo:
            loading.set()
            await asyncio.Event().wait()
            return INFO

    loading = asyncio.Event()
    stuck = worker(queue, LoadingEngine())
    running = asyncio.create_task(stuck.run(listening=deaf))
    await loading.wait()
    stuck.stop()
    await running
    assert queue.claims == 0


async def test_a_notification_wakes_it(queue: EmptyQueue) -> None:
    idle = worker(queue, StubbornEngine(), poll=3600)
    running = asyncio.create_task(idle.run(listening=deaf))
    await queue.asked.wait()
    queue.asked.clear()
    idle.work_may_wait()
    await queue.asked.wait()
    idle.stop()
    await running


async def test_a_heartbeat_that_breaks_ends_the_worker_loudly(
    queue: EmptyQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: Worker) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Worker, "_beat", broken)
    with pytest.raises(ExceptionGroup) as group:
        await worker(queue, StubbornEngine(), poll=3600).run(listening=deaf)
    assert group.group_contains(RuntimeError, match="a bug")


async def test_an_engine_that_fails_job_after_job_gets_no_more_until_it_is_proven(queue: EmptyQueue) -> None:
    queue.jobs = [claimed() for _ in range(5)]
    engine = SickEngine(sick_warm_ups=2)
    await worker(queue, engine, drain=True).run(listening=deaf)
    assert engine.seen == ["job"] * 3 + ["warm-up"] * 3 + ["job"] * 2
    assert len(queue.failed) == 5
