"""Limits of users: set and shown by a command, held by the table, and said by SQL and HTTP alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from click.testing import CliRunner, Result

from tenkaigen_worker.cli import cli
from tenkaigen_worker.config import Settings
from tenkaigen_worker.database.limits import LARGEST, NAMES, PostgresLimits
from tenkaigen_worker.database.submissions import Submissions
from tenkaigen_worker.errors import DatabaseError, LimitError
from tenkaigen_worker.jobs import Asker
from tenkaigen_worker.storage.local import LocalStorage
from tests.integration.test_api import FOX, client_of

Run = Callable[..., Result]

ALICE, BOB = UUID(int=1), UUID(int=2)
NONE = dict.fromkeys(NAMES)

INSERT = "INSERT INTO generation_jobs (prompt, user_id, count, status) VALUES ('A phoenix', $1, $2, $3)"


@pytest.fixture
def limits(pool: asyncpg.Pool[Any]) -> PostgresLimits:
    return PostgresLimits(pool)


# The tables


async def test_at_first_there_are_none(limits: PostgresLimits) -> None:
    found = await limits.read()

    assert (found.everybody, found.users) == (NONE, {})
    assert found.fair_spacing.total_seconds() == 300


async def test_what_is_not_named_stays(limits: PostgresLimits) -> None:
    await limits.set({"queued": 20, "per_minute": 5})
    await limits.set({"per_minute": None, "pictures_per_day": 100})

    assert (await limits.read()).everybody == {"queued": 20, "per_minute": None, "pictures_per_day": 100}


async def test_a_user_has_own_limits_or_none_or_those_of_everybody(limits: PostgresLimits) -> None:
    await limits.set({"queued": 20, "per_minute": 5})
    await limits.set({"queued": 500}, ALICE)
    await limits.set({"per_minute": None}, ALICE)

    found = await limits.read()
    assert found.users == {ALICE: {"queued": 500, "per_minute": None}}
    assert found.of(ALICE) == {"queued": 500, "per_minute": None, "pictures_per_day": None}
    assert found.of(BOB) == found.everybody

    assert [await limits.remove(ALICE), await limits.remove(ALICE)] == [True, False]
    assert (await limits.read()).of(ALICE) == found.everybody


async def test_lost_settings_are_made_anew(limits: PostgresLimits, pool: asyncpg.Pool[Any]) -> None:
    await pool.execute("DELETE FROM generation_settings")
    assert (await limits.read()).everybody == NONE

    await limits.set({"queued": LARGEST})

    assert (await limits.read()).everybody == NONE | {"queued": LARGEST}


async def test_usage_counts_as_the_trigger_does(limits: PostgresLimits, pool: asyncpg.Pool[Any]) -> None:
    for user, count, status in (
        *((ALICE, 2, "queued"), (ALICE, 4, "completed"), (ALICE, 8, "failed"), (ALICE, 8, "canceled")),
        (BOB, 1, "queued"),
    ):
        await pool.execute(INSERT, user, count, status)
    await pool.execute(
        "INSERT INTO generation_jobs (prompt, user_id, created_at) "
        "SELECT 'x', $1, now() - age FROM unnest('{2 minutes, 25 hours}'::interval[]) AS age",
        ALICE,
    )

    assert await limits.usage(ALICE) == {"queued": 3, "per_minute": 4, "pictures_per_day": 7}
    assert await limits.usage(UUID(int=9)) == dict.fromkeys(NAMES, 0)


async def test_what_the_table_refuses_is_one_sentence(limits: PostgresLimits) -> None:
    with pytest.raises(DatabaseError, match=r"^cannot set the limits: .*max_queued"):
        await limits.set({"queued": 0})


# Each limit, both ways


ALONE = "may ask for at most 1 pictures a day, and this job alone asks for 2"
REACHED = {
    "queued": ({"queued": 1}, 1, "may have at most 1 jobs queued; try again in 60 seconds"),
    "per_minute": ({"per_minute": 1}, 1, "may queue at most 1 jobs a minute; try again in 60 seconds"),
    "pictures_per_day": (
        {"pictures_per_day": 4},
        3,
        "may ask for at most 4 pictures a day; try again in 86400 seconds",
    ),
    "one job alone": (
        {"pictures_per_day": 1},
        0,
        "may ask for at most 1 pictures a day, and this job alone asks for 2",
    ),
}

each_limit = pytest.mark.parametrize(("values", "before", "words"), REACHED.values(), ids=REACHED)


@each_limit
async def test_by_sql_it_is_pt429(
    limits: PostgresLimits, pool: asyncpg.Pool[Any], values: dict[str, int], before: int, words: str
) -> None:
    await limits.set(values)
    async with pool.acquire() as connection, connection.transaction():  # whose now() stands still
        if before:
            await connection.execute(INSERT, ALICE, before, "queued")
        with pytest.raises(asyncpg.PostgresError) as refused:
            async with connection.transaction():
                await connection.execute(INSERT, ALICE, 2, "queued")
        await connection.execute(INSERT, BOB, 1, "queued")

    assert refused.value.sqlstate == "PT429"
    assert refused.value.args[0] == f"user {ALICE} {words}"
    seconds = words.split()[-2] if "try again" in words else None
    assert refused.value.detail == seconds


async def test_a_lifted_limit_of_one_user_lets_them_pass(limits: PostgresLimits, pool: asyncpg.Pool[Any]) -> None:
    await limits.set({"queued": 1, "per_minute": 1, "pictures_per_day": 1})
    await limits.set({"queued": None, "per_minute": None, "pictures_per_day": None}, ALICE)
    for _ in range(3):
        await pool.execute(INSERT, ALICE, 8, "queued")

    await pool.execute(INSERT, BOB, 1, "queued")
    with pytest.raises(LimitError):
        await Submissions(pool).submit({"prompt": "A phoenix"}, asker=Asker(BOB))


async def test_by_http_it_is_429_with_the_seconds_to_wait(
    limits: PostgresLimits, pool: asyncpg.Pool[Any], tmp_path: Path
) -> None:
    settings = Settings.model_validate({"state_dir": tmp_path, "plugins": {"paths": []}})
    await pool.execute(f"ALTER TABLE generation_jobs ALTER COLUMN user_id SET DEFAULT '{ALICE}'")
    await limits.set({"queued": 1, "pictures_per_day": 4})
    async with client_of(pool, settings, LocalStorage(tmp_path / "files", "http://x/files")) as client:
        assert (await client.post("/api/generate", json=FOX)).status == 202

        for count, retry_after in ((1, "60"), (5, None)):
            refused = await client.post("/api/generate", json=FOX | {"count": count})
            problem = await refused.json()
            assert (refused.status, problem["code"]) == (429, "limit_reached")
            assert problem["detail"].startswith(f"user {ALICE} may ")
            assert refused.headers.get("Retry-After") == retry_after


# The command


@pytest.fixture
def run(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call the command on the test's database, from tests that are no coroutines: it runs a loop of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TENKAIGEN_DATABASE__URL", database)
    return lambda *arguments: CliRunner(env={"COLUMNS": "120"}).invoke(cli, ["limits", *arguments])


def test_the_command_sets_shows_and_removes(run: Run) -> None:
    said = run("set", "--queued", "20", "--per-minute", "5").stdout
    assert said == "everybody: jobs queued: 20, jobs a minute: 5, pictures a day: none\n"
    said = run("set", "--user", str(ALICE), "--queued", "500", "--per-minute", "none").stdout
    assert said == f"user {ALICE}: jobs queued: 500, jobs a minute: none, pictures a day: none\n"

    table = [line.split() for line in run().stdout.splitlines()]
    assert ["everybody", "20", "5", "none"] in table
    assert [str(ALICE), "500", "none"] in table
    assert json.loads(run("--json").stdout) == {
        "everybody": {"queued": 20, "per_minute": 5, "pictures_per_day": None},
        "users": {str(ALICE): {"queued": 500, "per_minute": None}},
        "fair_spacing_seconds": 300,
    }

    assert run("remove", "--user", str(ALICE)).stdout == f"user {ALICE} now has those of everybody\n"
    assert "had no limits of their own" in run("remove", "--user", str(ALICE)).stdout
    assert json.loads(run("show", "--json").stdout)["users"] == {}


def test_the_command_says_how_far_a_user_has_come(run: Run) -> None:
    run("set", "--queued", "20")
    run("set", "--user", str(BOB), "--pictures-per-day", "9")

    lines = [line.rstrip() for line in run("show", "--user", str(BOB)).stdout.splitlines()]
    assert lines == ["jobs queued     0 of 20", "jobs a minute   0, no limit", "pictures a day  0 of 9 (their own)"]
    assert json.loads(run("show", "--user", str(BOB), "--json").stdout)["pictures_per_day"] == {
        "used": 0,
        "limit": 9,
        "own": True,
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("set",), "name what to set: --queued, --per-minute or --pictures-per-day"),
        (("set", "--queued", "0"), "'0' is no limit: write a whole number from 1 to 2147483646, or none"),
        (("set", "--queued", "2147483647"), "or none"),
        (("set", "--per-minute", "1.5"), "'1.5' is no limit"),
        (("set", "--per-minute", "5" * 5000), "is no limit"),
        (("set", "--queued", "5", "--user", "bob"), "'bob' is not a valid UUID"),
        (("remove",), "Missing option '--user'"),
    ],
)
def test_what_cannot_be_set_is_said(run: Run, arguments: tuple[str, ...], words: str) -> None:
    result = run(*arguments)

    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())
