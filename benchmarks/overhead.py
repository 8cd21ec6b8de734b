"""What the worker costs: pictures per second through all of it, against a bare loop over the same pipeline.

Both sides make the same pictures, to the byte, from the same recipes on one torch thread: the demonstration model at
128 x 128. The worker is the real process with its engine, a PostgreSQL and local storage, its rows inserted at once by
SQL; the bare loop is a fresh process that runs the pipeline, encodes PNG and writes files. Loading a model and the
first pictures do not count. The sides take turns, so that whatever else the machine does meets both.

The gap is all the time between two jobs at the engine that is neither encoding, denoising nor decoding: messages to
and from the child count as gap too. It is exact to about a millisecond.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
from report import Figure, Spread, percentile, publish
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from workbench import THREADS, Workbench, run, workbench

from tenkaigen_worker.errors import TenkaigenError
from tenkaigen_worker.jobs import Status

SIZE = 128
WARM_UP = 3
RATIO_AIM = 0.97
GAP_AIM_MS = 10.0

PROMPTS = (
    ("A cyberpunk samurai", "Anime"),
    ("A phoenix rising", "Watercolor"),
    ("A lighthouse in a storm", "Line Art"),
    ("A fox asleep in the snow", "Vintage"),
)

INSERT = """
INSERT INTO generation_jobs (prompt, style, width, height, seed)
SELECT prompt, style, $3, $3, seed FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS asked (prompt, style, seed)
ORDER BY seed RETURNING id
"""
OUTCOMES = """
SELECT id, status, error_message, completed_at, timings_ms, recipe, outputs
FROM generation_jobs WHERE id = ANY ($1)
"""

Tick = Callable[[], None]


@dataclass(frozen=True, slots=True)
class WorkerRun:
    """What one run of the worker was like; without the warm-up, but for ``recipes`` and ``sha256``, in order."""

    pictures_per_second: float
    gaps_ms: tuple[float, ...]
    recipes: tuple[Mapping[str, Any], ...]
    sha256: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """One turn of both sides."""

    worker: float
    bare: float
    gaps_ms: tuple[float, ...]

    @property
    def ratio(self) -> float:
        return self.worker / self.bare


@click.command()
@click.option("--pairs", type=click.IntRange(1, 99), default=7, show_default=True, help="Turns of each side.")
@click.option("--jobs", type=click.IntRange(2, 9999), default=20, show_default=True, help="Pictures a turn.")
@click.option("--json", "file", type=click.Path(dir_okay=False, writable=True, path_type=Path), help="Write it here.")
def overhead(pairs: int, jobs: int, file: Path | None) -> None:
    """Compare the whole worker with a bare loop over the same pipeline.

    \b
    Example:
      python benchmarks/overhead.py
      python benchmarks/overhead.py --pairs 2 --jobs 5
      python benchmarks/overhead.py --json overhead.json
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with workbench() as bench, Progress(*columns, transient=True) as progress:
        bar = progress.add_task("", total=2 * pairs * (jobs + WARM_UP))
        measured = []
        for number in range(1, pairs + 1):
            progress.update(bar, description=f"pair {number} of {pairs}")
            measured.append(measure_pair(bench, jobs + WARM_UP, lambda: progress.advance(bar)))
    report(measured, jobs, file)


def measure_pair(bench: Workbench, pictures: int, tick: Tick) -> Pair:
    """Make ``pictures`` with the worker, then the same ones with the bare loop."""
    through_worker = run_worker(bench, pictures, tick)
    bare, sha256 = run_bare(bench, through_worker.recipes, tick)
    if sha256 != through_worker.sha256:
        raise TenkaigenError("the worker and the bare loop made different pictures: there is nothing to compare")
    return Pair(through_worker.pictures_per_second, bare, through_worker.gaps_ms)


def run_worker(bench: Workbench, pictures: int, tick: Tick) -> WorkerRun:
    """Queue rows, and let a fresh worker drain the queue."""
    ids = asyncio.run(queue(bench, pictures))
    at_engine: dict[str, datetime] = {}
    with bench.tenkaigen("worker", "--drain") as worker:
        for line in worker.lines():
            if line.get("action") == "job_generating":
                at_engine[line["job_id"]] = datetime.fromisoformat(line["ts"])
            elif line.get("action") == "job_completed":
                tick()

    rows = sorted(asyncio.run(outcomes(bench, ids)), key=lambda row: at_engine[str(row["id"])])
    starts = [at_engine[str(row["id"])].timestamp() for row in rows]
    return WorkerRun(
        steady_rate(sorted(row["completed_at"].timestamp() for row in rows)),
        gaps_ms(starts, [row["timings_ms"] for row in rows])[WARM_UP - 1 :],
        tuple(row["recipe"] for row in rows),
        tuple(row["outputs"][0]["sha256"] for row in rows),
    )


def run_bare(bench: Workbench, recipes: Sequence[Mapping[str, Any]], tick: Tick) -> tuple[float, tuple[str, ...]]:
    """Let a fresh process make the recipes' pictures; answers pictures per second, and what they are."""
    order = bench.folder / "recipes.json"
    order.write_text(json.dumps(recipes), encoding="utf-8")
    finished, sha256 = [], []
    script = Path(__file__).with_name("bare_loop.py")
    with bench.running(script, order, bench.folder, str(THREADS)) as bare:
        for line in bare.lines():
            finished.append(line["done"])
            sha256.append(line["sha256"])
            tick()
    return steady_rate(finished), tuple(sha256)


def steady_rate(finished: Sequence[float]) -> float:
    """Pictures per second after the warm-up, from the seconds at which each one was finished."""
    return (len(finished) - WARM_UP) / (finished[-1] - finished[WARM_UP - 1])


def gaps_ms(starts: Sequence[float], timings: Sequence[Mapping[str, int]]) -> tuple[float, ...]:
    """Milliseconds between each job and the next in which the engine did not work.

    ``starts`` are the seconds at which the jobs came to the engine, ``timings`` what they did there, in milliseconds.
    """
    busy = [sum(timing[phase] for phase in ("encode", "denoise", "decode")) for timing in timings]
    return tuple(
        1000 * (after - before) - worked for (before, after), worked in zip(pairwise(starts), busy, strict=False)
    )


async def queue(bench: Workbench, pictures: int) -> list[Any]:
    """Insert all rows with one statement; answers their ids."""
    asked = [PROMPTS[number % len(PROMPTS)] for number in range(pictures)]
    connection = await bench.connect()
    try:
        prompts, styles = zip(*asked, strict=True)
        return [row["id"] for row in await connection.fetch(INSERT, prompts, styles, SIZE)]
    finally:
        await connection.close()


async def outcomes(bench: Workbench, ids: Sequence[Any]) -> list[dict[str, Any]]:
    """Read the rows, in any order; raises unless each is completed."""
    connection = await bench.connect()
    try:
        rows = [dict(row) for row in await connection.fetch(OUTCOMES, ids)]
    finally:
        await connection.close()
    for row in rows:
        if row["status"] != Status.COMPLETED:
            raise TenkaigenError(f"job {row['id']} is {row['status']}: {row['error_message']}")
    return rows


def report(pairs: Sequence[Pair], jobs: int, file: Path | None) -> None:
    """Print and keep what came out."""
    ratio = Spread.of([pair.ratio for pair in pairs])
    gaps = [gap for pair in pairs for gap in pair.gaps_ms]
    p50, p95 = percentile(gaps, 50), percentile(gaps, 95)
    figures = [
        Figure("worker, pictures per second", Spread.of([pair.worker for pair in pairs]).text(3)),
        Figure("bare loop, pictures per second", Spread.of([pair.bare for pair in pairs]).text(3)),
        Figure("worker / bare loop", ratio.text(3), f"at least {RATIO_AIM:g}", ratio.median >= RATIO_AIM),
        Figure("gap between two jobs, p50", f"{p50:.1f} ms", f"under {GAP_AIM_MS:g} ms", p50 < GAP_AIM_MS),
        Figure("gap between two jobs, p95", f"{p95:.1f} ms"),
    ]
    details = {
        "parameters": {"pairs": len(pairs), "jobs": jobs, "warm_up": WARM_UP, "size": SIZE, "threads": THREADS},
        "pairs": [
            {"worker": pair.worker, "bare": pair.bare, "ratio": pair.ratio, "gaps_ms": pair.gaps_ms} for pair in pairs
        ],
    }
    publish(f"Overhead: median of {len(pairs)} pairs (range), {jobs} pictures each", figures, details, file)


if __name__ == "__main__":
    run(overhead)
