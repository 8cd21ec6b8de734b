"""The measurements of ``queue_speed.py``: each calls every queue in turns, and keeps the median of each round."""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg
from queue_systems import OURS, Session, System, asyncpg_connection

from tenkaigen_worker.errors import TenkaigenError

USERS = (1, 100, 5000)
HEARTBEAT_JOBS = 100
HEARTBEATS = 20
WARM_UP = 10
# Longer than pgqueuer takes to write an outcome, which wakes its worker again: that shall be idle, too.
IDLE_SECONDS = (0.15, 0.25)

Key = TypeVar("Key")
Measured = Callable[[], Awaitable[float]]
Rounds = dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    rounds: int
    inserts: int
    claims: int
    finished: int

    @property
    def queued(self) -> int:
        """Jobs of the large table that can run now."""
        return self.finished // 10

    @property
    def scheduled(self) -> int:
        """Jobs of the large table that are for later."""
        return self.finished // 20


@dataclass(frozen=True, slots=True)
class Samples:
    """Milliseconds, the median of each round, by queue; of claims also by how many users the large table has."""

    insert_to_claim: Rounds = field(default_factory=dict)
    claim_small: dict[int, Rounds] = field(default_factory=dict)
    claim_large: dict[int, Rounds] = field(default_factory=dict)
    claim_pooled: Rounds = field(default_factory=dict)
    heartbeat: Rounds = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Queues on one server, each with a small and a large database of its own."""

    plan: Plan
    systems: Sequence[System]
    dsn: str
    say: Callable[[str], None]
    samples: Samples = field(default_factory=Samples)

    async def measure(self, pooled: str | None) -> Samples:
        """Everything, one after another; ``pooled`` is the DSN through a transaction pooler, of a database ``{}``."""
        for system in self.systems:
            self.say(f"{system.name}: {self.plan.finished:,} finished rows")
            await self.create(system)

        await self.insert_to_claim()
        for users in USERS:
            for system in self.systems:
                if system is OURS or users == USERS[0]:
                    await self.refill(system, users)
            await self.claims(users)
        await self.heartbeats()
        if pooled:
            await self.pooled_claims(pooled)
        return self.samples

    async def create(self, system: System) -> None:
        """Make both databases, and put the finished rows into the large one."""
        for size in ("small", "large"):
            async with asyncpg_connection(self.dsn) as connection:
                await connection.execute(f"CREATE DATABASE {database(system, size)}")
            await system.create(self.dsn_of(system, size))
        async with asyncpg_connection(self.dsn_of(system, "large")) as connection, no_triggers(connection):
            await connection.execute(system.finished, self.plan.finished, max(USERS))

    async def refill(self, system: System, users: int) -> None:
        """Put other waiting rows into the large table, and leave it as autovacuum would."""
        self.say(f"{system.name}: {self.plan.queued:,} queued rows, {users:,} users")
        async with asyncpg_connection(self.dsn_of(system, "large")) as connection:
            async with no_triggers(connection):
                await connection.execute(system.clear)
            await connection.execute("VACUUM")
            async with no_triggers(connection):
                await connection.execute(system.waiting, self.plan.queued + self.plan.scheduled, users)
            await connection.execute("VACUUM (ANALYZE)")
            await connection.execute("CHECKPOINT")

    async def insert_to_claim(self) -> None:
        """Have a worker of each queue wait, and insert a row here and a row there."""
        async with AsyncExitStack() as stack:
            calls: dict[str, Measured] = {}
            for system in self.systems:
                worker = await stack.enter_async_context(idle_worker(system, self.dsn_of(system, "small")))
                calls[system.name] = worker.insert

            self.say("INSERT to claim: warm-up")
            await in_turns(WARM_UP, calls)
            for number in range(1, self.plan.rounds + 1):
                self.say(f"INSERT to claim, round {number} of {self.plan.rounds}")
                keep(self.samples.insert_to_claim, await in_turns(self.plan.inserts, calls))

    async def claims(self, users: int) -> None:
        """Claim from both tables of every queue, one here and one there."""
        for number in range(1, self.plan.rounds + 1):
            self.say(f"claims, {users:,} users, round {number} of {self.plan.rounds}")
            async with AsyncExitStack() as stack:
                few, many = {}, {}
                for system in self.systems:
                    small = await stack.enter_async_context(self.few_jobs(system, self.plan.claims + WARM_UP))
                    large = await stack.enter_async_context(system.session(self.dsn_of(system, "large")))
                    few[system.name], many[system.name] = partial(timed_claim, small), partial(timed_claim, large)

                both = {(name, size): call for size, calls in enumerate((few, many)) for name, call in calls.items()}
                await in_turns(WARM_UP, both)
                times = await in_turns(self.plan.claims, both)
            keep(self.samples.claim_small.setdefault(users, {}), {name: times[name, 0] for name in few})
            keep(self.samples.claim_large.setdefault(users, {}), {name: times[name, 1] for name in many})

    async def heartbeats(self) -> None:
        """Renew what a worker holds, one here and one there."""
        self.say(f"heartbeats of {HEARTBEAT_JOBS} jobs")
        async with AsyncExitStack() as stack:
            calls: dict[str, Measured] = {}
            for system in self.systems:
                session = await stack.enter_async_context(self.few_jobs(system, HEARTBEAT_JOBS))
                for _ in range(HEARTBEAT_JOBS):
                    await timed_claim(session)
                calls[system.name] = partial(timed_heartbeat, session)

            await in_turns(WARM_UP, calls)
            for _ in range(self.plan.rounds):
                keep(self.samples.heartbeat, await in_turns(HEARTBEATS, calls))

    async def pooled_claims(self, pooled: str) -> None:
        """Claim from the small tables through the pooler."""
        for number in range(1, self.plan.rounds + 1):
            self.say(f"claims through PgBouncer, round {number} of {self.plan.rounds}")
            async with AsyncExitStack() as stack:
                calls: dict[str, Measured] = {}
                for system in self.systems:
                    through = pooled.format(database(system, "small"))
                    opened = self.few_jobs(system, self.plan.claims + WARM_UP, through)
                    calls[system.name] = partial(timed_claim, await stack.enter_async_context(opened))
                await in_turns(WARM_UP, calls)
                keep(self.samples.claim_pooled, await in_turns(self.plan.claims, calls))

    @asynccontextmanager
    async def few_jobs(self, system: System, jobs: int, pooled: str | None = None) -> AsyncIterator[Session]:
        """A session on the small table, which has no more than ``jobs`` jobs then, all due."""
        dsn = self.dsn_of(system, "small")
        async with asyncpg_connection(dsn) as connection:
            async with connection.transaction():
                await connection.execute(system.clear)
                for _ in range(jobs):
                    await connection.execute(system.insert)
            await connection.execute("VACUUM (ANALYZE)")
        async with system.session(pooled or dsn, pooled=pooled is not None) as session:
            yield session

    def dsn_of(self, system: System, size: str) -> str:
        """How to reach one of the system's databases."""
        return urlunsplit(urlsplit(self.dsn)._replace(path=f"/{database(system, size)}"))


@dataclass(frozen=True, slots=True)
class IdleWorker:
    """A worker that waits, and the connection of somebody who inserts."""

    system: System
    connection: asyncpg.Connection
    claimed: asyncio.Queue[float]

    async def insert(self) -> float:
        """Insert a row; answers the milliseconds until the worker's claim has returned it."""
        await asyncio.sleep(random.uniform(*IDLE_SECONDS))
        started = perf_counter()
        await self.connection.execute(self.system.insert)
        return 1000 * (await self.claimed.get() - started)


@asynccontextmanager
async def idle_worker(system: System, dsn: str) -> AsyncIterator[IdleWorker]:
    """Run a worker on a table without jobs."""
    claimed: asyncio.Queue[float] = asyncio.Queue()
    async with (
        asyncpg_connection(dsn) as connection,
        system.worker(dsn, lambda: claimed.put_nowait(perf_counter())),
    ):
        yield IdleWorker(system, connection, claimed)


def database(system: System, size: str) -> str:
    """The name of one of the system's databases."""
    return f"{system.name.replace(' ', '_')}_{size}"


@asynccontextmanager
async def no_triggers(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """Let none run meanwhile."""
    await connection.execute("SET session_replication_role = replica")
    yield
    await connection.execute("RESET session_replication_role")


async def timed_claim(session: Session) -> float:
    """Milliseconds of claiming a job that must be there."""
    started = perf_counter()
    found = await session.claim()
    elapsed = perf_counter() - started
    if not found:
        raise TenkaigenError("a claim brought nothing, although jobs wait: there is nothing to compare")
    return 1000 * elapsed


async def timed_heartbeat(session: Session) -> float:
    """Milliseconds of a heartbeat for everything that the session has claimed."""
    started = perf_counter()
    await session.heartbeat()
    return 1000 * (perf_counter() - started)


async def in_turns(times: int, calls: Mapping[Key, Measured]) -> dict[Key, list[float]]:
    """Call each so many times, in turns and each time in an order of chance; answers what they said."""
    said: dict[Key, list[float]] = {key: [] for key in calls}
    for _ in range(times):
        for key in random.sample(list(calls), len(calls)):
            said[key].append(await calls[key]())
    return said


def keep(rounds: Rounds, times: Mapping[str, Sequence[float]]) -> None:
    """Add the medians of one more round."""
    for name, values in times.items():
        rounds.setdefault(name, []).append(statistics.median(values))
