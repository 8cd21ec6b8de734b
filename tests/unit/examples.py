"""Values that several tests begin from."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from tenkaigen_worker.access import ApiKey
from tenkaigen_worker.config import Settings
from tenkaigen_worker.jobs import Job, JobView, Lease, Status
from tenkaigen_worker.offers import Announcement, WorkerState
from tenkaigen_worker.plugin.manager import Plugins
from tenkaigen_worker.worker.prepare import NoJobs, Sources

NOW = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
QUEUED = JobView(
    id=UUID("3f1c9a52-0c1b-4f0e-9d57-2a3f5b0c7e11"),
    user_id=None,
    status=Status.QUEUED,
    prompt="A phoenix rising",
    style="Anime",
    width=None,
    height=None,
    seed=None,
    progress=0.0,
    stage=None,
    result_url=None,
    outputs=(),
    error_code=None,
    error_message=None,
    attempt=0,
    max_attempts=3,
    retry_of=None,
    cancel_requested=False,
    processing_time_ms=None,
    created_at=NOW,
    started_at=None,
    completed_at=None,
)


WORKER = Announcement(
    worker_id="gpu-1",
    host="gpu",
    version="1.0",
    backend="diffusers",
    model="Qwen/Qwen-Image",
    demo=False,
    state=WorkerState.READY,
    styles={"Standard": "", "Anime": "Vibrant"},
    modes=("quality", "fast"),
    picture_ms={"quality": 20_000},
    loras={"Ink": ("Edo",)},
)


class FakeWorkers:
    """The table of workers as a list: ``said`` has every announcement, ``broken`` is raised by every question."""

    def __init__(self, *live: Announcement) -> None:
        self.rows = list(live)
        self.said: list[Announcement] = []
        self.announced = asyncio.Event()
        self.left: list[str] = []
        self.asked = 0
        self.broken: Exception | None = None

    async def announce(self, announcement: Announcement) -> None:
        self._answer()
        self.said.append(announcement)
        self.announced.set()

    async def leave(self, worker_id: str) -> None:
        self.left.append(worker_id)
        self._answer()

    async def live(self) -> list[Announcement]:
        self.asked += 1
        self._answer()
        return list(self.rows)

    def _answer(self) -> None:
        if self.broken:
            raise self.broken


class FakeKeys:
    """A stand-in for the table of API keys; ``asked`` counts."""

    def __init__(self) -> None:
        self.rows: dict[bytes, ApiKey] = {}
        self.asked = 0

    async def find(self, digest: bytes) -> ApiKey | None:
        self.asked += 1
        return self.rows.get(digest)


NO_KEYS = FakeKeys()


class Clock:
    """Time in seconds that stands still until a test moves it."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def sources(*paths: Path, storage: Any = None, **settings: Any) -> Sources:
    """Make what jobs are prepared from: the shipped plugins and those in ``paths``, and sections of ``settings``."""
    plugins = {**settings.pop("plugins", {}), "paths": list(map(str, paths))}
    checked = Settings.model_validate({"plugins": plugins, **settings})
    return Sources.of(checked, Plugins.load(checked.plugins), storage, NoJobs())


def claimed(token: int = 1, **columns: Any) -> Job:
    """Make a claimed row of some user."""
    asked = {"prompt": "A phoenix rising", "style": "Anime", "count": 1, **columns}
    return Job(Lease(uuid4(), token), UUID(int=7), 1, 3, asked)
