"""The words of the queue: a job, its lease, its outcome, and what a queue can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Protocol
from uuid import UUID

from tenkaigen_worker.errors import Code


class Status(StrEnum):
    """The five states of a job."""

    QUEUED = "queued"  # inserted, retried or given back -> claimed: processing; cancelled: canceled; expired: failed
    PROCESSING = "processing"  # leased by one worker -> completed, failed, canceled, or back to queued
    COMPLETED = "completed"  # final; its files are in storage
    FAILED = "failed"  # final; error_code and error_message say why
    CANCELED = "canceled"  # final; somebody asked for it


FINAL = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELED})

TRANSITIONS = frozenset(
    {
        (Status.QUEUED, Status.PROCESSING),
        (Status.QUEUED, Status.FAILED),
        (Status.QUEUED, Status.CANCELED),
        (Status.PROCESSING, Status.QUEUED),
        (Status.PROCESSING, Status.COMPLETED),
        (Status.PROCESSING, Status.FAILED),
        (Status.PROCESSING, Status.CANCELED),
    }
)


@dataclass(frozen=True, slots=True)
class Lease:
    """One worker's right to one job; ``token`` is the fencing token that every later write carries."""

    job_id: UUID
    token: int


@dataclass(frozen=True, slots=True)
class Job:
    """A claimed row. ``columns`` holds what the user asked for, by column name, not yet checked."""

    lease: Lease
    user_id: UUID | None
    attempt: int
    max_attempts: int
    columns: Mapping[str, Any]

    @property
    def id(self) -> UUID:
        return self.lease.job_id


@dataclass(frozen=True, slots=True)
class Output:
    """One finished picture: where it is, and what it is. ``width`` and ``height`` in pixels.

    ``thumbnail_key`` and ``thumbnail_url`` are those of its small copy, which older rows do not have.
    """

    index: int
    key: str
    url: str
    width: int
    height: int
    bytes: int
    sha256: str
    seed: int
    thumbnail_key: str | None = None
    thumbnail_url: str | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """What a job has made so far."""

    status: Status
    outputs: tuple[Output, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """All that a completed job writes. ``timings_ms`` maps a stage to milliseconds."""

    outputs: tuple[Output, ...]
    recipe: Mapping[str, Any]
    timings_ms: Mapping[str, int]
    processing_time_ms: int


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt ended. The row's ``error_message`` is shown to the user."""

    code: Code
    message: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is: ``stage`` in words, ``fraction`` from 0 to 1."""

    stage: str
    fraction: float


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What the database said about one held job: still ours, and whether somebody wants it canceled."""

    alive: bool
    cancel_requested: bool = False


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """How many jobs wait and run now; ``oldest_seconds`` is how long the oldest one that is due has waited."""

    queued: int
    processing: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class JobView:
    """A row as the people who asked for it may see it. ``progress`` from 0 to 1; ``demo`` is the recipe's."""

    id: UUID
    user_id: UUID | None
    status: Status
    prompt: str
    style: str | None
    width: int | None
    height: int | None
    seed: int | None
    progress: float
    stage: str | None
    result_url: str | None
    outputs: tuple[Output, ...]
    error_code: str | None
    error_message: str | None
    attempt: int
    max_attempts: int
    retry_of: UUID | None
    cancel_requested: bool
    processing_time_ms: int | None
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    demo: bool = False


@dataclass(frozen=True, slots=True)
class Asker:
    """On whose behalf jobs are asked for and looked at: a user, everybody, or, with neither, nobody in particular.

    ``claims`` are what row-level security is to know of a user; left out, no more than the id.
    """

    user_id: UUID | None = None
    claims: Mapping[str, Any] | None = None
    sees_all: bool = False


EVERYBODY = Asker(sees_all=True)


class Queue(Protocol):
    """What the worker needs of the job table. Every write is fenced by the lease's token.

    Writes answer ``True`` when they took effect and ``False`` when the lease was lost. Any of them may raise
    :class:`~tenkaigen_worker.errors.DatabaseError` when the database cannot be reached.
    """

    async def claim(self) -> Job | None:
        """Take the next due job, or ``None`` when there is none."""

    async def due_within(self, delay: timedelta) -> bool:
        """Whether any queued job is due now or after at most ``delay``."""

    async def heartbeat(self, held: Mapping[Lease, Progress]) -> Mapping[Lease, Heartbeat]:
        """Extend all leases, write progress, and bring back which are lost or to be canceled: one statement."""

    async def complete(self, lease: Lease, completion: Completion) -> bool:
        """Write the outcome. A reply lost on the way is recognised by re-reading: same token, completed."""

    async def fail(self, lease: Lease, failure: Failure) -> Status | None:
        """End this attempt: back to queued while attempts are left and it may be retried, else failed.

        Answers the status the job has now, or ``None`` when the lease was lost.
        """

    async def release(self, lease: Lease, *, delay: timedelta = timedelta(0)) -> bool:
        """Give the job back with its attempt, due again after ``delay``."""

    async def cancel(self, lease: Lease) -> bool:
        """End the job as canceled."""
