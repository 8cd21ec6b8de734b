"""The names of stored files: ``USER/JOB/TOKEN-INDEX-HASH.png``, so that a file says which lease made it."""

from __future__ import annotations

import re
from uuid import UUID

from tenkaigen_worker.jobs import Lease

# Jobs that belong to nobody share a folder.
NOBODY = "anonymous"

_KEY = re.compile(r"[^/]+/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/([0-9]+)-[^/]+")


def job_folder(user_id: UUID | None, job_id: UUID) -> str:
    """The key prefix under which all files of a job stand, whatever the attempt."""
    return f"{user_id or NOBODY}/{job_id}/"


def attempt_prefix(user_id: UUID | None, lease: Lease) -> str:
    """The key prefix of the files made under a lease. No other lease ever writes there."""
    return f"{job_folder(user_id, lease.job_id)}{lease.token}-"


def lease_of(key: str) -> Lease | None:
    """The lease under which a file was made, or ``None`` for a file that no worker has made."""
    parts = _KEY.fullmatch(key)
    return Lease(UUID(parts[1]), int(parts[2])) if parts else None


def made_until(key: str, lease: Lease) -> bool:
    """Whether a file was made under this lease or an earlier one of the same job."""
    made = lease_of(key)
    return made is not None and made.job_id == lease.job_id and made.token <= lease.token
