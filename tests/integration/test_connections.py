"""What doctor says of connections, and of acting for users."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from pydantic import SecretStr

from tenkaigen_worker.cli.doctor import Finding, _as_a_user, _connections
from tenkaigen_worker.config import DatabaseSettings, Settings
from tenkaigen_worker.database.connect import open_pool
from tenkaigen_worker.database.pooler import Pooler
from tenkaigen_worker.database.workers import PostgresWorkers
from tests.conftest import as_role
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


async def test_doctor_acts_for_a_user_as_the_api_would(supabase: str) -> None:
    login = f"shop_{uuid4().hex}"
    async with await open_pool(DatabaseSettings(), supabase, "tests") as owner:
        assert (await _as_a_user(owner)).ok
        await owner.execute(f"CREATE ROLE {login} LOGIN; GRANT SELECT ON generation_jobs TO {login}")
        async with await open_pool(DatabaseSettings(), as_role(supabase, login), "tests") as pool:
            refused = await _as_a_user(pool)
            await owner.execute(f"GRANT tenkaigen_worker TO {login}")
            assert await _as_a_user(pool) == Finding("Users", "the API can act for them")
        await owner.execute(f"REVOKE ALL ON generation_jobs FROM {login}; DROP ROLE {login}")
    assert refused.found.startswith("the API cannot act for them: ")
    assert 'permission denied to set role "authenticated"' in refused.found
    assert "tenkaigen_worker" in refused.remedy
