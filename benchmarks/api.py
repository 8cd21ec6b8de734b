"""The API beside the least that does the same, what it costs to know who asks, and a user's last jobs in a large table.

Both servers run on the same PostgreSQL with as many connections, and are asked in turns.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import click
import last_jobs
import psutil
import token_check
from http_load import rate, request_bytes
from queue_rounds import Rounds
from report import Figure, Spread, publish
from rich.progress import track
from workbench import Workbench, run, workbench

CONNECTIONS = 4
AIM = 0.7
BARE = Path(__file__).with_name("bare_api.py")
OURS, BARELY = "tenkaigen api", "bare aiohttp and asyncpg"
JOB = {"prompt": "A phoenix rising", "style": "Anime", "width": 512, "height": 768, "seed": 7}

SUBMIT, DONE, QUEUED = "submit", "status of a finished job", "status of a queued job"
FINISHED = """
INSERT INTO generation_jobs (prompt, style, width, height, seed, status, attempt, outputs, result_url, completed_at)
SELECT 'A phoenix rising', 'Anime', 512, 768, 7, 'completed', 1, $1::jsonb, $1::jsonb -> 0 ->> 'url', now() RETURNING id
"""
OUTPUT = {
    "index": 0,
    "key": "a.png",
    "url": "http://x/a.png",
    "width": 512,
    "height": 768,
    "bytes": 9,
    "seed": 7,
    "sha256": "ab" * 32,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    rounds: int
    requests: int
    tokens: int
    rows: int


@click.command()
@click.option("--rounds", default=7, show_default=True, help="Rounds that count; one more before them does not.")
@click.option("--requests", default=1000, show_default=True, help="Requests to each server in a round.")
@click.option("--tokens", default=1000, show_default=True, help="Tokens of each kind in a round.")
@click.option("--rows", default=300_000, show_default=True, help="Jobs in the table of the last part.")
@click.option("--json", "file", type=click.Path(path_type=Path, dir_okay=False), help="Also write everything here.")
def api(rounds: int, requests: int, tokens: int, rows: int, file: Path | None) -> None:
    """Measure how many requests the API answers, and what authentication and row-level security cost."""
    plan = Plan(rounds, requests, tokens, rows)
    with workbench() as bench:
        load = psutil.getloadavg()[0]
        rates = measure_rates(bench, plan)
        read = asyncio.run(token_check.measure(rounds, tokens))
        latest = asyncio.run(measure_last_jobs(bench, plan))
    details = {
        "parameters": asdict(plan),
        "load_before": load,
        "requests_per_second": rates,
        "token_ms": read,
        "last_jobs_ms": latest,
    }
    title = f"API: median of {rounds} rounds (range), {CONNECTIONS} connections; load before {load:.1f}"
    publish(title, [*rate_figures(rates), *token_figures(read), *last_jobs_figures(latest, rows)], details, file)


def measure_rates(bench: Workbench, plan: Plan) -> dict[str, Rounds]:
    """Answers per second, round by round, of both servers to each kind of request."""
    with (
        bench.running(BARE, bench.dsn) as bare,
        bench.tenkaigen("api") as ours,
    ):
        urls = {OURS: ours.until("api_started")["url"], BARELY: bare.until("api_started")["url"]}
        for server in (ours, bare):
            server.ignore_the_rest()
        return asyncio.run(_ask_in_turns(bench, urls, plan))


async def _ask_in_turns(bench: Workbench, urls: Mapping[str, str], plan: Plan) -> dict[str, Rounds]:
    connection = await bench.connect()
    finished = await connection.fetchval(FINISHED, [OUTPUT])
    queued = await connection.fetchval("INSERT INTO generation_jobs (prompt) VALUES ('A phoenix') RETURNING id")
    await connection.close()
    # Jobs are looked at before others are submitted, which would stand behind them.
    kinds = {
        DONE: ("GET", f"/api/generate/status/{finished}", b"", 200),
        QUEUED: ("GET", f"/api/generate/status/{queued}", b"", 200),
        SUBMIT: ("POST", "/api/generate", json.dumps(JOB).encode(), 202),
    }
    found: dict[str, Rounds] = {}
    for kind, (method, path, body, status) in kinds.items():
        rounds: Rounds = {name: [] for name in urls}
        for number in track(range(plan.rounds + 1), kind, transient=True):
            for name in random.sample(sorted(urls), len(urls)):
                request = request_bytes(method, urls[name] + path, body)
                value = await rate(urls[name], request, status, CONNECTIONS, plan.requests)
                if number:
                    rounds[name].append(value)
        found[kind] = rounds
    return found


async def measure_last_jobs(bench: Workbench, plan: Plan) -> Rounds:
    """The same in a database of its own, which looks like one of Supabase."""
    connection = await bench.connect()
    await connection.execute("CREATE DATABASE supabase")
    await connection.close()
    dsn = urlunsplit(urlsplit(bench.dsn)._replace(path="/supabase"))
    return await last_jobs.measure(dsn, plan.rows, plan.rounds, calls=100)


def rate_figures(rates: Mapping[str, Rounds]) -> list[Figure]:
    """Each kind of request: both servers, and ours as a share of the bare one, compared within each round."""
    found = []
    for kind, rounds in rates.items():
        found += [Figure(f"{kind}: {name}", f"{Spread.of(values).text(0)} /s") for name, values in rounds.items()]
        share = Spread.of([ours / bare for ours, bare in zip(rounds[OURS], rounds[BARELY], strict=True)])
        # A queued job's answer also says what is before it, and when it will be done: that is another question.
        aim, met = ("", None) if kind == QUEUED else (f"at least {AIM:g}", share.median >= AIM)
        found.append(Figure(f"{kind}: share", share.text(2), aim, met))
    return found


def token_figures(read: Rounds) -> list[Figure]:
    """What authentication adds to each request, by the kind of signature."""
    return [Figure(f"whose token it is, {name}", f"{Spread.of(values).text(2)} ms") for name, values in read.items()]


def last_jobs_figures(latest: Rounds, rows: int) -> list[Figure]:
    """A user's last jobs: what the policies cost beside the plain query."""
    large = f"last 20 jobs of {rows:,}"
    return [Figure(f"{large}, {name}", f"{Spread.of(values).text(2)} ms") for name, values in latest.items()]


if __name__ == "__main__":
    run(api)
