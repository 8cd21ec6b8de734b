"""When a worker speaks of itself, and what it says."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from tenkaigen_worker import __version__
from tenkaigen_worker.engine.base import EngineInfo
from tenkaigen_worker.errors import DatabaseError
from tenkaigen_worker.metrics import Metrics
from tenkaigen_worker.offers import Limits, WorkerState
from tenkaigen_worker.recipe import Model
from tenkaigen_worker.worker.announce import REPEAT_SECONDS, Announcer
from tenkaigen_worker.worker.tools import Tools
from tests.unit.examples import Clock, FakeWorkers, sources

MODEL = Model("tiny", "tiny-qwen", None, 64, 64, demo=True)
ENGINE = EngineInfo(MODEL, "cuda:0", "bfloat16", 100, limits=Limits(1024 * 1024))
MODES = {"fast": {"steps": 4, "guidance_scale": 1}, "quality": {"steps": 50, "guidance_scale": 4}}


@pytest.fixture
def workers() -> FakeWorkers:
    return FakeWorkers()


@pytest.fixture
def tools(workers: FakeWorkers, tmp_path: Path) -> Tools:
    return Tools(*cast("Any", (None,) * 4), sources(tmp_path, generation={"modes": MODES}), Metrics(), workers)


@pytest.fixture
def problems() -> list[str]:
    return []


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def announcer(tools: Tools, problems: list[str], clock: Clock) -> Announcer:
    return Announcer("worker-1", ENGINE, tools, lambda: problems, clock)


async def test_it_says_what_the_worker_is_and_can_make(announcer: Announcer, workers: FakeWorkers) -> None:
    await announcer.look()
    (said,) = workers.said
    assert (said.worker_id, said.version, said.backend, said.model) == ("worker-1", __version__, "tiny", "tiny-qwen")
    assert (said.demo, said.state) == (True, WorkerState.READY)
    assert said.styles["Anime"] == "Vibrant colors, detailed shading"
    assert said.modes == ("quality", "fast")  # the default first
    assert said.picture_ms == {}
    assert said.limits == Limits(1024 * 1024)


async def test_it_speaks_when_something_changed_and_from_time_to_time(
    announcer: Announcer, workers: FakeWorkers, tools: Tools, problems: list[str], clock: Clock, tmp_path: Path
) -> None:
    async def looked() -> int:
        await announcer.look()
        return len(workers.said)

    assert await looked() == 1
    tools.pace.note("quality", {"denoise": 900})
    assert await looked() == 1
    (tmp_path / "ukiyo-e.yaml").write_text("name: Ukiyo-e\n")
    assert await looked() == 2
    assert "Ukiyo-e" in workers.said[-1].styles
    problems.append("the engine is not loaded")
    assert await looked() == 3
    assert workers.said[-1].state is WorkerState.UNREADY

    clock.now += REPEAT_SECONDS - 0.1
    assert await looked() == 3
    clock.now += 0.1
    assert await looked() == 4
    assert workers.said[-1].picture_ms == {"quality": 900}


async def test_an_outage_is_logged_and_it_speaks_afterwards(
    announcer: Announcer, workers: FakeWorkers, caplog: pytest.LogCaptureFixture
) -> None:
    workers.broken = DatabaseError("the database is away")
    assert not await announcer.look()
    assert [record.action for record in caplog.records] == ["announce_failed"]  # type: ignore[attr-defined]
    workers.broken = None
    assert await announcer.look()
    assert len(workers.said) == 1


@pytest.mark.parametrize("broken", [None, DatabaseError("the database is away")])
async def test_its_end_takes_it_back(announcer: Announcer, workers: FakeWorkers, broken: Exception | None) -> None:
    running = asyncio.create_task(announcer.run())
    await workers.announced.wait()
    workers.broken = broken
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert workers.left == ["worker-1"]
