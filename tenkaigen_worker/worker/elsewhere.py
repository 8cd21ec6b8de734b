"""A job that this worker cannot make, and another one can."""

from __future__ import annotations

import logging

from tenkaigen_worker.errors import DatabaseError, InputError, JobError
from tenkaigen_worker.jobs import Job
from tenkaigen_worker.offers import NAMED, Announcement
from tenkaigen_worker.request import read_request
from tenkaigen_worker.worker.outcomes import persist
from tenkaigen_worker.worker.tools import Tools

log = logging.getLogger("tenkaigen.worker")


async def has_a_place(job: Job, error: JobError, tools: Tools) -> bool:
    """Whether a job is wrong here only because of names that this worker lacks, and one that is live has them all.

    While the database is away, this waits: without an answer a good job would fail.
    """
    if not isinstance(error, InputError) or not error.problems:
        return False
    if not {problem.field for problem in error.problems} <= NAMED:
        return False
    try:
        workers = await persist(job, tools.workers.live)
    except DatabaseError as refused:
        log.error("%s", refused, extra={"action": "workers_unknown", "job_id": job.id})
        return False
    return any(_takes(worker, job) for worker in workers)


def _takes(worker: Announcement, job: Job) -> bool:
    try:
        read_request(job.columns, styles=worker.styles, modes=worker.modes)
    except InputError:
        return False
    return True
