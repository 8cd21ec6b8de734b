"""Who waits how long when one user queues a thousand jobs: the table's fair places beside first in, first out.

The clock is simulated, the queue is not: jobs are inserted with the minute at which they come as ``run_at``, and one is
claimed each minute by the worker's own claim on a real PostgreSQL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import click
from report import Figure, Spread, publish
from rich.progress import track
from workbench import Workbench, run, workbench

from tenkaigen_worker.config import DatabaseSettings
from tenkaigen_worker.database.connect import open_pool
from tenkaigen_worker.database.queue import PostgresQueue
from tenkaigen_worker.errors import TenkaigenError

FIRST_USER = UUID(int=1)
MINUTE = timedelta(minutes=1)
BACKLOG = 1000
OTHERS = 50
OTHERS_EVERY = 10  # minutes
NEWCOMERS_BACKLOG = 100
NEWCOMERS_MINUTES = 900
WAIT_AIM = 10.0

INSERT = """
INSERT INTO generation_jobs (prompt, user_id, run_at)
SELECT 'A phoenix rising', $1, $2 FROM generate_series(1, $3)
"""


@dataclass(frozen=True, slots=True)
class Arrival:
    """Jobs that one user queues at a minute."""

    minute: int
    user: UUID
    jobs: int = 1


@dataclass(frozen=True, slots=True)
class Turn:
    """One job that ran: whose, and the minutes from its arrival to its start, which are the jobs that ran before."""

    user: UUID
    waited: int


@dataclass(frozen=True, slots=True)
class Story:
    """Who comes when, and for how many minutes one looks on."""

    arrivals: Sequence[Arrival]
    minutes: int


def others_come() -> Story:
    """One user queues a thousand jobs; then, every ten minutes, somebody else queues one."""
    others = [Arrival(OTHERS_EVERY * n, UUID(int=1 + n)) for n in range(1, OTHERS + 1)]
    return Story([Arrival(0, FIRST_USER, BACKLOG), *others], BACKLOG + OTHERS)


def newcomers_for_ever() -> Story:
    """One user queues a hundred jobs, and every minute somebody new comes: more than one worker can do."""
    newcomers = [Arrival(minute, UUID(int=2 + minute)) for minute in range(NEWCOMERS_MINUTES)]
    return Story([Arrival(0, FIRST_USER, NEWCOMERS_BACKLOG), *newcomers], NEWCOMERS_MINUTES)


@click.command()
@click.option("--json", "file", type=click.Path(dir_okay=False, writable=True, path_type=Path), help="Write it here.")
def fairness(file: Path | None) -> None:
    """Simulate two rushes on one worker that makes a picture a minute.

    \b
    Example:
      python benchmarks/fairness.py
      python benchmarks/fairness.py --json fairness.json
    """
    with workbench() as bench:
        turns = asyncio.run(measure(bench))
    report(turns, file)


async def measure(bench: Workbench) -> Mapping[str, Sequence[Turn]]:
    """Play each story with the places that the table gives, and the first one also with none."""
    pool = await open_pool(DatabaseSettings(), bench.dsn, "tenkaigen benchmark")
    try:
        return {
            "first_in_first_out": await play(pool, others_come(), "first in, first out", spread=False),
            "fair": await play(pool, others_come(), "fair"),
            "newcomers_first_in_first_out": await play(
                pool, newcomers_for_ever(), "newcomers, first in, first out", spread=False
            ),
            "newcomers": await play(pool, newcomers_for_ever(), "newcomers, fair"),
        }
    finally:
        await pool.close()


async def play(pool: asyncpg.Pool[Any], story: Story, words: str, *, spread: bool = True) -> list[Turn]:
    """Insert who comes, claim one job a minute, and answer the turns in their order."""
    await pool.execute("TRUNCATE generation_jobs")
    await pool.execute(
        "UPDATE generation_settings SET fair_spacing = $1", timedelta(minutes=5) if spread else timedelta(0)
    )
    # So long ago that each simulated minute is over, and every job that has come is due.
    begin: datetime = await pool.fetchval("SELECT now() - interval '30 days'")
    queue = PostgresQueue(pool, "fairness", lease_seconds=3600)
    arrivals = by_minute(story.arrivals)
    came: dict[UUID, int] = {}
    turns = []
    for minute in track(range(story.minutes), words, transient=True):
        for arrival in arrivals.get(minute, ()):
            await pool.execute(INSERT, arrival.user, begin + minute * MINUTE, arrival.jobs)
            came[arrival.user] = minute
        job = await queue.claim()
        if job is None or job.user_id is None:
            raise TenkaigenError(f"nothing was claimed in minute {minute}: the benchmark's stories keep the queue full")
        turns.append(Turn(job.user_id, minute - came[job.user_id]))
    return turns


def by_minute(arrivals: Sequence[Arrival]) -> dict[int, list[Arrival]]:
    """The arrivals of each minute that has any."""
    found: dict[int, list[Arrival]] = {}
    for arrival in arrivals:
        found.setdefault(arrival.minute, []).append(arrival)
    return found


def waits(turns: Sequence[Turn], *, first_user: bool) -> list[float]:
    """The minutes that the jobs of the first user, or of everybody else, waited."""
    return [float(turn.waited) for turn in turns if (turn.user == FIRST_USER) == first_user]


def longest_pause(turns: Sequence[Turn]) -> int:
    """The most turns from one of the first user's to their next, up to their last or to the end of what was seen."""
    own = [number for number, turn in enumerate(turns) if turn.user == FIRST_USER]
    if len(own) < NEWCOMERS_BACKLOG:
        own.append(len(turns))
    return max(after - before for before, after in pairwise(own))


def report(turns: Mapping[str, Sequence[Turn]], file: Path | None) -> None:
    """Print and keep what came out."""
    others = {story: Spread.of(waits(seen, first_user=False)) for story, seen in turns.items()}
    first = {story: Spread.of(waits(seen, first_user=True)) for story, seen in turns.items()}
    ran = len(waits(turns["newcomers"], first_user=True))
    pause = longest_pause(turns["newcomers"])
    figures = [
        Figure("others wait, first in first out", minutes(others["first_in_first_out"])),
        Figure(
            "others wait, fair", minutes(others["fair"]), f"at most {WAIT_AIM:g} min", others["fair"].high <= WAIT_AIM
        ),
        Figure(f"the {BACKLOG} jobs wait, first in first out", minutes(first["first_in_first_out"])),
        Figure(f"the {BACKLOG} jobs wait, fair", minutes(first["fair"])),
        Figure("newcomers for ever: they wait, first in first out", minutes(others["newcomers_first_in_first_out"])),
        Figure("newcomers for ever: they wait, fair", minutes(others["newcomers"])),
        Figure(
            "newcomers for ever: first user's jobs that ran",
            f"{ran} of {NEWCOMERS_BACKLOG}",
            "all",
            ran == NEWCOMERS_BACKLOG,
        ),
        Figure("newcomers for ever: longest time between two of them", f"{pause} min"),
    ]
    details = {
        "unit": "simulated minutes, at one job a minute; median, low and high",
        "others_wait": {story: asdict(spread) for story, spread in others.items()},
        "first_user_waits": {story: asdict(spread) for story, spread in first.items()},
        "newcomers": {"ran": ran, "of": NEWCOMERS_BACKLOG, "longest_pause": pause},
    }
    publish(
        f"Fairness: one user queues {BACKLOG} jobs, then others come; a job runs each minute; median (range)",
        figures,
        details,
        file,
    )


def minutes(waited: Spread) -> str:
    """Say it for the table."""
    return f"{waited.text(0)} min"


if __name__ == "__main__":
    run(fairness)
