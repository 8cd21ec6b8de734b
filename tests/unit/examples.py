"""Values that several tests begin from."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from tenkaigen_worker.jobs import Job, JobView, Lease, Status

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


class Clock:
    """Time in seconds that stands still until a test moves it."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def claimed(token: int = 1, **columns: Any) -> Job:
    """Make a claimed row of some user."""
    asked = {"prompt": "A phoenix rising", "style": "Anime", "count": 1, **columns}
    return Job(Lease(uuid4(), token), UUID(int=7), 1, 3, asked)
