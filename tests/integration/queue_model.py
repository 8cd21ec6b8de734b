"""The queue as a few lines of Python: what a row must look like after a history of claims, writes, deaths and jumps.

It knows nothing of the table. Each method is one thing that happened, with what the queue answered; an answer that no
such queue could give is an ``AssertionError``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple
from uuid import UUID

from tenkaigen_worker.database.upkeep import LostJob
from tenkaigen_worker.jobs import FINAL, Heartbeat, Job, JobView, Lease, Status

# Durations in hours, the steps in which the clock jumps: everything that ends within the hour has ended an hour later.
LEASE = 0.5
BACKOFF = 0.1
NEVER = float("inf")


class Seen(NamedTuple):
    """What model and row must agree in."""

    status: Status
    attempt: int
    lease_token: int
    worker_id: str | None
    cancel_requested: bool


@dataclass(frozen=True, slots=True)
class ModelJob:
    """One job, by its history. ``due``, ``expires`` and ``leased_until`` are hours on the model's clock."""

    max_attempts: int = 3
    due: float = 0
    expires: float = NEVER
    status: Status = Status.QUEUED
    claims: int = 0
    releases: int = 0
    worker: str | None = None
    leased_until: float = NEVER
    cancel_requested: bool = False

    @property
    def attempt(self) -> int:
        return self.claims - self.releases

    @property
    def seen(self) -> Seen:
        return Seen(self.status, self.attempt, self.claims, self.worker, self.cancel_requested)


@dataclass(slots=True)
class Model:
    """All jobs by id, and the hour. ``touched`` are the jobs that this step may have written."""

    jobs: dict[UUID, ModelJob] = field(default_factory=dict)
    hour: int = 0
    # Of several statements at once, claims and maintenance may pass over a row that another is just writing.
    racing: bool = False
    touched: set[UUID] = field(default_factory=set)

    def next(self, *, racing: bool) -> Model:
        """A copy for the next step."""
        return Model(dict(self.jobs), self.hour, racing)

    def live(self) -> set[Lease]:
        """The leases that may still write: at most one per job."""
        return {Lease(id, job.claims) for id, job in self.jobs.items() if job.status is Status.PROCESSING}

    def seen(self) -> dict[UUID, Seen]:
        """What the rows must say."""
        return {id: job.seen for id, job in self.jobs.items()}

    def submitted(self, view: JobView, job: ModelJob) -> None:
        assert view.id not in self.jobs
        assert view.status is Status.QUEUED
        self.jobs[view.id] = job

    def claimed(self, worker: str, answer: Job | None) -> None:
        if answer is None:
            due = [id for id, job in self.jobs.items() if self._may_start(job, self.hour)]
            assert self.racing or not due, f"nothing was claimed, and these are due: {due}"
            return

        job = self.jobs[answer.id]
        assert self._may_start(job, self.hour + BACKOFF), f"{job} was claimed at hour {self.hour}"
        job = replace(
            job, status=Status.PROCESSING, claims=job.claims + 1, worker=worker, leased_until=self.hour + LEASE
        )
        assert (answer.attempt, answer.lease.token) == (job.attempt, job.claims)
        self._write(answer.id, job)

    def completed(self, lease: Lease, answer: bool) -> None:
        # Whoever completed it may ask again: the reply may have been lost.
        again = self.jobs[lease.job_id].status is Status.COMPLETED and self.jobs[lease.job_id].claims == lease.token
        assert answer == (lease in self.live() or again), f"completing with {lease} answered {answer}"
        if answer and not again:
            self._write(lease.job_id, replace(self.jobs[lease.job_id], status=Status.COMPLETED))

    def failed(self, lease: Lease, retryable: bool, answer: Status | None) -> None:
        assert (answer is not None) == (lease in self.live()), f"failing with {lease} answered {answer}"
        if answer is not None:
            self._end_attempt(lease.job_id, retryable)
            assert answer is self.jobs[lease.job_id].status

    def released(self, lease: Lease, delay: float, answer: bool) -> None:
        assert answer == (lease in self.live()), f"releasing with {lease} answered {answer}"
        if answer:
            job = self.jobs[lease.job_id]
            self._queue_again(lease.job_id, replace(job, releases=job.releases + 1), delay)

    def canceled(self, lease: Lease, answer: bool) -> None:
        assert answer == (lease in self.live()), f"canceling with {lease} answered {answer}"
        if answer:
            self._write(lease.job_id, replace(self.jobs[lease.job_id], status=Status.CANCELED))

    def renewed(self, answers: dict[Lease, Heartbeat]) -> None:
        for lease, answer in answers.items():
            job, alive = self.jobs[lease.job_id], lease in self.live()
            assert answer == Heartbeat(alive, alive and job.cancel_requested), f"{answer} for {lease} of {job}"
            if alive:
                self._write(lease.job_id, replace(job, leased_until=self.hour + LEASE))

    def rescued(self, answer: Sequence[LostJob]) -> None:
        jobs = self.jobs.items()
        lost = {id for id, job in jobs if job.status is Status.PROCESSING and job.leased_until <= self.hour}
        taken = {job.id for job in answer}
        assert taken <= lost if self.racing else taken == lost, f"{taken} were rescued of {lost}"
        for found in answer:
            self._end_attempt(found.id, True)
            assert found.status is self.jobs[found.id].status

    def expired(self, answer: Sequence[UUID]) -> None:
        jobs = self.jobs.items()
        late = {id for id, job in jobs if job.status is Status.QUEUED and job.expires <= self.hour}
        assert set(answer) <= late if self.racing else set(answer) == late, f"{answer} expired of {late}"
        for id in answer:
            self._write(id, replace(self.jobs[id], status=Status.FAILED))

    def asked_to_cancel(self, id: UUID) -> None:
        job = self.jobs[id]
        if job.status not in FINAL and not job.cancel_requested:
            status = Status.CANCELED if job.status is Status.QUEUED else job.status
            self._write(id, replace(job, status=status, cancel_requested=True))

    def repeated(self, id: UUID, answer: JobView | None) -> None:
        job = self.jobs[id]
        assert (answer is not None) == (job.status in {Status.FAILED, Status.CANCELED})
        if answer is not None:
            assert answer.retry_of == id
            self.submitted(answer, ModelJob(job.max_attempts, self.hour))

    def jumped(self, hours: int) -> None:
        self.hour += hours
        self.touched |= {id for id, job in self.jobs.items() if job.status not in FINAL}

    def _may_start(self, job: ModelJob, hour: float) -> bool:
        return job.status is Status.QUEUED and job.due <= hour and job.expires > self.hour

    def _end_attempt(self, id: UUID, retryable: bool) -> None:
        job = self.jobs[id]
        if retryable and job.attempt < job.max_attempts:
            self._queue_again(id, job, BACKOFF)
        else:
            self._write(id, replace(job, status=Status.FAILED))

    def _queue_again(self, id: UUID, job: ModelJob, delay: float) -> None:
        status = Status.CANCELED if job.cancel_requested else Status.QUEUED
        self._write(id, replace(job, status=status, due=self.hour + delay))

    def _write(self, id: UUID, job: ModelJob) -> None:
        self.jobs[id] = job
        self.touched.add(id)
