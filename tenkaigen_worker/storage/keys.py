"""The names of stored files: ``USER/JOB/TOKEN-INDEX-HASH.png``, so that a file says which lease made it."""

from __future__ import annotations

import re
from uuid import UUID

from tenkaigen_worker.errors import StorageError
from tenkaigen_worker.jobs import Lease

# Jobs that belong to nobody share a folder.
NOBODY = "anonymous"

# What users upload lies in a folder of its own, which nobody but workers and API reads.
UPLOADS = "uploads"

_NAME_BYTES = 200  # per part of a key: file systems allow 255, and local storage's temporary names are longer
_KEY_BYTES = 1024
_KEY = re.compile(r"[^/]+/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/([0-9]+)-[^/]+")


def owner_folder(user_id: UUID | None) -> str:
    """The key prefix under which all files of a user's jobs stand."""
    return f"{user_id or NOBODY}/"


def job_folder(user_id: UUID | None, job_id: UUID) -> str:
    """The key prefix under which all files of a job stand, whatever the attempt."""
    return f"{owner_folder(user_id)}{job_id}/"


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


def thumbnail_key(key: str) -> str:
    """The key of a picture's small copy: made under the same lease, and so removed with it."""
    return f"{key.removesuffix('.png')}.webp"


def is_upload(key: str) -> bool:
    """Whether a key lies among the uploads, also on a disk that does not tell upper from lower case."""
    return key.partition("/")[0].casefold() == UPLOADS


def check_key(key: str) -> None:
    """Refuse a key that is not a plain relative path; raises a permanent ``StorageError`` that says why."""
    parts = key.split("/")
    if not all(parts):
        why = "it must be relative, with no empty part between the slashes"
    elif any(part.startswith(".") for part in parts):
        why = "no part of it may begin with a dot"
    elif not key.isprintable():
        why = "it holds characters that cannot be printed"
    elif len(key.encode()) > _KEY_BYTES or any(len(part.encode()) > _NAME_BYTES for part in parts):
        why = f"it is longer than {_KEY_BYTES} bytes, or a part of it than {_NAME_BYTES}"
    else:
        return
    raise StorageError(f"{key[:100]!r} cannot be a file's key: {why}", permanent=True)
