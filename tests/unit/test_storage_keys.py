"""A stored file's name says which lease made it; names of anything else say nothing."""

from __future__ import annotations

from uuid import UUID

import pytest

from tenkaigen_worker.jobs import Lease
from tenkaigen_worker.storage.keys import attempt_prefix, is_upload, job_folder, lease_of, made_until, thumbnail_key

USER, JOB, OTHER = UUID(int=7), UUID(int=8), UUID(int=9)


@pytest.mark.parametrize("user", [USER, None])
def test_what_a_lease_makes_is_found_by_its_name(user: UUID | None) -> None:
    key = f"{attempt_prefix(user, Lease(JOB, 12))}0-0123456789ab.png"

    assert key.startswith(job_folder(user, JOB))
    assert lease_of(key) == Lease(JOB, 12)
    assert made_until(key, Lease(JOB, 12))
    assert made_until(key, Lease(JOB, 13))
    assert not made_until(key, Lease(JOB, 11))
    assert not made_until(key, Lease(OTHER, 12))


def test_a_thumbnail_belongs_to_the_lease_of_its_picture() -> None:
    key = f"{attempt_prefix(USER, Lease(JOB, 12))}0-0123456789ab.png"

    assert thumbnail_key(key) == f"{attempt_prefix(USER, Lease(JOB, 12))}0-0123456789ab.webp"
    assert lease_of(thumbnail_key(key)) == Lease(JOB, 12)


def test_no_picture_of_a_job_lies_among_uploads() -> None:
    assert is_upload("uploads/anonymous/x.png")
    assert is_upload("UpLoads/x.png")
    assert not is_upload(job_folder(USER, JOB))
    assert not is_upload("uploadsx/y.png")


def test_no_prefix_is_the_beginning_of_another_leases() -> None:
    assert not attempt_prefix(USER, Lease(JOB, 12)).startswith(attempt_prefix(USER, Lease(JOB, 1)))


@pytest.mark.parametrize(
    "key",
    [
        "",
        "notes.txt",
        f"{JOB}/1-0.png",
        f"{USER}/{JOB}/notes.txt",
        f"{USER}/{JOB}/x-0.png",
        f"{USER}/{JOB}/1-0.png/more",
        f"{USER}/{JOB}/deeper/1-0.png",
        f"{USER}/not-a-job/1-0.png",
    ],
)
def test_what_no_worker_made_belongs_to_no_lease(key: str) -> None:
    assert lease_of(key) is None
    assert not made_until(key, Lease(JOB, 99))
