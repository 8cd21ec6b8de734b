"""A job that this worker cannot make, and another one can."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from tenkaigen_worker.errors import DatabaseError, InputError, JobError
from tenkaigen_worker.jobs import Job
from tenkaigen_worker.offers import NAMED
from tenkaigen_worker.recipe import NoSuchMode
from tenkaigen_worker.request import Names, read_request
from tenkaigen_worker.worker.outcomes import persist
from tenkaigen_worker.worker.prepare import BeyondLimits
from tenkaigen_worker.worker.tools import Tools

log = logging.getLogger("tenkaigen.worker")


async def has_a_place(job: Job, error: JobError, tools: Tools) -> bool:
    """Whether a job cannot be made here for want of names or of memory, and a worker that is live has enough of both.

    While the database is away, this waits: without an answer a good job would fail.
    """
    if not isinstance(error, InputError) or not error.problems:
        return False
    pixels = error.pixels if isinstance(error, BeyondLimits) else 0
    if not pixels and not {problem.field for problem in error.problems} <= NAMED:
        return False
    asked = dict(job.columns)
    if isinstance(error, NoSuchMode):
        asked["mode"] = error.mode  # also where it is the style that names it
    if not pixels and _knows_all_names(asked, tools):
        return False
    try:
        workers = await persist(job, tools.workers.live)
    except DatabaseError as refused:
        log.error("%s", refused, extra={"action": "workers_unknown", "job_id": job.id})
        return False
    return any(worker.limits.allow(pixels) and _reads(asked, Names.of(worker)) for worker in workers)


def _knows_all_names(asked: Mapping[str, Any], tools: Tools) -> bool:
    """Whether this worker announces all that a job names: then another one has no more than that either."""
    info = tools.engine.info
    return info is not None and _reads(asked, tools.sources.offered(info.model))


def _reads(asked: Mapping[str, Any], names: Names) -> bool:
    try:
        read_request(asked, names)
    except InputError:
        return False
    return True
