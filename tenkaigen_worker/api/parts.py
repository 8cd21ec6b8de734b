"""What the API needs of the rest of the house, and nothing more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

from aiohttp import web

from tenkaigen_worker.jobs import JobView


class Submissions(Protocol):
    """The job table as the people who ask for pictures use it.

    Any of these may raise :class:`~tenkaigen_worker.errors.DatabaseError`.
    """

    async def submit(
        self,
        columns: Mapping[str, Any],
        *,
        user_id: UUID | None,
        idempotency_key: str | None,
        request_hash: str | None,
    ) -> JobView:
        """Insert a row; the same key with the same hash answers the row that is there."""

    async def get(self, job_id: UUID, user_id: UUID | None = None) -> JobView | None:
        """One row, or ``None``."""

    async def cancel(self, job_id: UUID) -> JobView | None:
        """Ask for it to be canceled; its row as it is now, or ``None``."""

    async def retry(self, job_id: UUID) -> JobView | None:
        """Queue the same request again as a new row, or ``None``."""


class Files(Protocol):
    """Finished files that this process serves itself."""

    async def find(self, key: str) -> Path | None:
        """The file under ``key``, or ``None``."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request that passed every rule: its columns, and a hash that is equal for equal requests."""

    columns: Mapping[str, Any]
    request_hash: str


@dataclass(frozen=True, slots=True)
class StyleList:
    """The styles there are, and in words what is wrong with plugin files that were left out."""

    styles: Sequence[tuple[str, str]]
    problems: Sequence[str]


@dataclass(frozen=True, slots=True)
class Parts:
    """All that the application is made of.

    ``accept`` checks the fields of a request and raises ``InputError``. ``styles`` reads the style files again when
    they changed. ``problems`` answers why no request can be served now, in words; nothing when all is well.
    """

    submissions: Submissions
    files: Files
    accept: Callable[[Mapping[str, Any]], Accepted]
    styles: Callable[[], StyleList]
    problems: Callable[[], Awaitable[Sequence[str]]]


PARTS: web.AppKey[Parts] = web.AppKey("parts")
