"""What the queue costs, beside procrastinate, pgqueuer and a bare asyncpg loop, on one PostgreSQL in one run.

INSERT to claim is the time from sending a plain INSERT on a connection of its own until an idle worker's claim has
returned. A claim is one call of each queue's own claim, for one job: on a table that has nothing else, and on one with
many finished and many waiting rows; those that are for later lie evenly among the others, as a shop's rows do. Only our
queue knows users: the others' rows name some too, and their claims are the same for any number.

All run in this process, on asyncio's own event loop, over a Unix socket, and every claim is durable. The queues take
turns call by call, so that whatever else the machine does meets all. A figure is the median of the rounds' medians.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import click
from pooler import find_pgbouncer, pgbouncer
from queue_rounds import HEARTBEAT_JOBS, Comparison, Plan, Rounds, Samples
from queue_systems import OURS, SYSTEMS, System
from report import Figure, Spread, publish
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from workbench import run, workbench

GROWTH_AIM = 1.5


@click.command()
@click.option("--rounds", type=click.IntRange(1, 99), default=5, show_default=True, help="Turns of each queue.")
@click.option("--inserts", type=click.IntRange(1, 999), default=15, show_default=True, help="INSERTs a turn.")
@click.option("--claims", type=click.IntRange(1, 999), default=100, show_default=True, help="Claims a turn.")
@click.option(
    "--rows",
    type=click.IntRange(20_000),
    default=1_000_000,
    show_default=True,
    help="Finished rows of the large table; a tenth as many are queued, a twentieth for later.",
)
@click.option("--json", "file", type=click.Path(dir_okay=False, writable=True, path_type=Path), help="Write it here.")
def queue_speed(rounds: int, inserts: int, claims: int, rows: int, file: Path | None) -> None:
    """Compare the queue with others on one PostgreSQL.

    \b
    Example:
      python benchmarks/queue_speed.py
      python benchmarks/queue_speed.py --rows 20000 --rounds 2
      python benchmarks/queue_speed.py --json queue_speed.json
    """
    plan = Plan(rounds, inserts, claims, rows)
    systems = installed(SYSTEMS)
    program = find_pgbouncer()
    if program is None:
        click.echo("PgBouncer is not installed, so nothing goes through it. Run: apt install pgbouncer", err=True)

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with workbench() as bench, Progress(*columns, transient=True) as progress:
        shown = progress.add_task("")
        comparison = Comparison(plan, systems, bench.dsn, lambda what: progress.update(shown, description=what))
        with pgbouncer(program, bench.folder / "pooler", bench.dsn) if program else nullcontext() as pooled:
            samples = asyncio.run(comparison.measure(pooled))

    title = (
        f"Queue: milliseconds, median of {rounds} rounds (range); "
        f"large is {plan.finished:,} finished, {plan.queued:,} queued, {plan.scheduled:,} for later"
    )
    publish(title, figures(samples), {"parameters": asdict(plan), "round_medians_ms": asdict(samples)}, file)


def installed(systems: Sequence[System]) -> tuple[System, ...]:
    """Those that can be compared here; says how to install the others."""
    missing = [system.name for system in systems if not system.installed]
    if missing:
        click.echo(
            f"Not installed, so not compared: {', '.join(missing)}. "
            "Run: pip install -c config/constraints.txt -e '.[bench]'",
            err=True,
        )
    return tuple(system for system in systems if system.installed)


def figures(samples: Samples) -> list[Figure]:
    """What came out, as lines of a table."""
    found = [*lines("INSERT to claim, idle worker", samples.insert_to_claim, race=True)]
    for users, large in samples.claim_large.items():
        small = samples.claim_small[users]
        found += lines(f"claim, large table, {users:,} {'user' if users == 1 else 'users'}", large, race=True)
        found += lines("claim, small table meanwhile", {OURS.name: small[OURS.name]})
        found.append(growth(small[OURS.name], large[OURS.name]))
    found += lines(f"heartbeat of {HEARTBEAT_JOBS} jobs", samples.heartbeat)
    found += lines("claim through PgBouncer", samples.claim_pooled)
    return found


def lines(what: str, measured: Rounds, *, race: bool = False) -> list[Figure]:
    """A line for each queue. In a ``race`` ours is to be ahead of every peer, if all of them are here."""
    spreads = {name: Spread.of(values) for name, values in measured.items()}
    peers = [system.name for system in SYSTEMS if system.package]
    judged = race and spreads.keys() >= set(peers)
    found = []
    for name, spread in spreads.items():
        figure = Figure(f"{what}: {name}", spread.text(2))
        if judged and name == OURS.name:
            figure = replace(figure, aim="ahead of both peers", met=ahead(spread, spreads, peers))
        found.append(figure)
    return found


def growth(small: Sequence[float], large: Sequence[float]) -> Figure:
    """How much dearer a claim is on the large table, compared within each round."""
    spread = Spread.of([many / few for few, many in zip(small, large, strict=True)])
    return Figure(
        f"claim, large / small: {OURS.name}", spread.text(2), f"at most {GROWTH_AIM:g}", spread.median <= GROWTH_AIM
    )


def ahead(ours: Spread, spreads: Mapping[str, Spread], peers: Sequence[str]) -> bool:
    """Whether our median is below that of every peer."""
    return all(ours.median < spreads[peer].median for peer in peers)


if __name__ == "__main__":
    run(queue_speed)
