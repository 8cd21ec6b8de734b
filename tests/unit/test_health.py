"""What a worker's own endpoint says of its engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from tenkaigen_worker.engine.base import EngineInfo
from tenkaigen_worker.metrics import Metrics
from tenkaigen_worker.recipe import Model
from tenkaigen_worker.worker.health import health_endpoint

MODEL = Model("nunchaku", "fox", None, 64, 64)
LOADED = EngineInfo(MODEL, "cuda:0", "bfloat16", 61_000, {"transformer": 48_000, "warm_up": 2_000})


async def nothing() -> Any:
    """Reach the database."""


@pytest.mark.parametrize("info", [LOADED, None], ids=["loaded", "loading"])
async def test_readyz_says_what_is_loaded_and_what_that_took(info: EngineInfo | None) -> None:
    engine: Any = SimpleNamespace(info=info)
    problems = [] if info else ["The engine is not loaded."]
    async with (
        health_endpoint(
            "127.0.0.1", 0, problems=problems.copy, engine=engine, metrics=Metrics(), ping=nothing, depth=nothing
        ) as url,
        aiohttp.ClientSession() as session,
        session.get(f"{url}/readyz") as response,
    ):
        said = await response.json()

    assert response.status == (200 if info else 503)
    assert said["problems"] == problems
    assert said["engine"] == (
        info
        and {
            "backend": "nunchaku",
            "model": "fox",
            "device": "cuda:0",
            "dtype": "bfloat16",
            "demo": False,
            "load_ms": 61_000,
            "stages_ms": {"transformer": 48_000, "warm_up": 2_000},
        }
    )
