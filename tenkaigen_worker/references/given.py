"""What ``reference`` and ``mask`` may say, as values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from uuid import UUID

from yarl import URL

MAX_LENGTH = 2000  # characters, as the table has it
MAX_INDEX = 7  # a job has at most eight pictures

_ID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_UPLOAD = re.compile(rf"upload:({_ID})", re.IGNORECASE)
_JOB = re.compile(rf"job:({_ID})/([0-9]{{1,2}})", re.IGNORECASE)
_FORMS = (
    "upload:ID as POST /api/uploads answers it, job:ID/INDEX for a picture of an earlier job, such as "
    "job:3f1c9a52-0c1b-4f0e-9d57-2a3f5b0c7e11/0, or an https:// URL"
)


@dataclass(frozen=True, slots=True)
class Upload:
    """A picture that was uploaded."""

    id: UUID

    def __str__(self) -> str:
        return f"upload:{self.id}"


@dataclass(frozen=True, slots=True)
class JobPicture:
    """A picture that an earlier job made."""

    job_id: UUID
    index: int

    def __str__(self) -> str:
        return f"job:{self.job_id}/{self.index}"


@dataclass(frozen=True, slots=True)
class Url:
    """A picture on another server; an absolute https URL."""

    text: str

    def __str__(self) -> str:
        return self.text


Given = Upload | JobPicture | Url


def read_reference(text: str) -> Given:
    """Read what ``reference`` or ``mask`` says; whether it exists is found out later.

    Raises ``ValueError`` that says what is wrong, and what would be right.
    """
    text = text.strip()
    if len(text) > MAX_LENGTH:
        raise ValueError(f"may have at most {MAX_LENGTH} characters; this has {len(text)}")
    if upload := _UPLOAD.fullmatch(text):
        return Upload(UUID(upload[1]))
    if picture := _JOB.fullmatch(text):
        index = int(picture[2])
        if index > MAX_INDEX:
            raise ValueError(f"a job has at most {MAX_INDEX + 1} pictures, 0 to {MAX_INDEX}, and no picture {index}")
        return JobPicture(UUID(picture[1]), index)
    if text.lower().startswith(("http://", "https://")):
        return Url(str(read_url(text)))
    shown = text if len(text) <= 60 else f"{text[:60]}..."
    raise ValueError(f"must be {_FORMS}; not {shown!r}")


def read_url(text: str) -> URL:
    """Read an https URL without a password, on the usual port; raises ``ValueError`` that says what is wrong."""
    try:
        url = URL(text)
        host, port = url.raw_host, url.port
    except ValueError as error:
        raise ValueError(f"is not a URL: {error}") from None
    if url.scheme != "https":
        raise ValueError("must be an https:// URL: what comes another way could be changed on its way")
    if not host:
        raise ValueError("names no host; a URL looks like https://cdn.example.com/picture.png")
    if url.raw_user is not None or url.raw_password is not None:
        raise ValueError("must be a URL without a user name and password: it is kept with the job")
    if port != 443:
        raise ValueError(f"must be a URL without a port, not with port {port}")
    return url.with_fragment(None)


def read_strength(value: object) -> float:
    """Check ``strength``: above 0, where the reference would stay as it is, up to 1, where it is ignored.

    Raises ``ValueError`` that says what would be right.
    """
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,20}(\.[0-9]{1,20})?", value.strip()):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        text = repr(value)
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        raise ValueError(f"must be a number above 0 and at most 1, not {shown}")
    return float(value)
