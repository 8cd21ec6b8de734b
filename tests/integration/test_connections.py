"""How many connections a configuration wants, as doctor says it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr

from tenkaigen_worker.cli.doctor import _connections
from tenkaigen_worker.config import DatabaseSettings, Settings
from tenkaigen_worker.database.pooler import Pooler
from tenkaigen_worker.database.workers import PostgresWorkers
from tests.unit.examples import WORKER

HERE = "postgresql://me@127.0.0.1:5432/shop"
SUPABASE = "postgresql://postgres.ref@aws-0-eu.pooler.supabase.com:5432/postgres"
LOWER = "Lower database.pool_size (2 is enough), or go through a pooler in transaction mode."


@pytest.mark.parametrize(
    ("dsn", "pooler", "size", "workers", "found", "remedy"),
    [
        (HERE, Pooler.NONE, 4, 0, "one API and 1 worker hold up to 9; the server lets in 97", ""),
        (HERE, Pooler.NONE, 30, 3, "one API and 3 workers hold up to 123; the server lets in 97", LOWER),
        (SUPABASE, Pooler.SESSION, 4, 2, "hold up to 14; Supabase's session pooler lets in about 15", ""),
        (SUPABASE, Pooler.SESSION, 4, 3, "hold up to 19; Supabase's session pooler lets in about 15", LOWER),
        (SUPABASE, Pooler.TRANSACTION, 4, 3, "one API and 3 workers hold up to 19", ""),
        (HERE, Pooler.SESSION, 4, 3, "one API and 3 workers hold up to 19", ""),
    ],
)
async def test_the_sum_is_beside_what_is_let_in(
    pool: asyncpg.Pool[Any], dsn: str, pooler: Pooler, size: int, workers: int, found: str, remedy: str
) -> None:
    for number in range(workers):
        await PostgresWorkers(pool).announce(replace(WORKER, worker_id=f"worker-{number}"))

    finding = await _connections(Settings(database=DatabaseSettings(pool_size=size)), dsn, pool, pooler)

    assert finding.found.endswith(found)
    assert finding.remedy == remedy


async def test_those_that_listen_elsewhere_are_not_counted(pool: asyncpg.Pool[Any]) -> None:
    database = DatabaseSettings(url=SecretStr(HERE), listen_url=SecretStr(HERE))

    finding = await _connections(Settings(database=database), HERE, pool, Pooler.TRANSACTION)

    assert finding.found == "one API and 1 worker hold up to 8"
