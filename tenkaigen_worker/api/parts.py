"""What the API needs of the rest of the house, and nothing more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

from aiohttp import web

from tenkaigen_worker.access import ApiKey
from tenkaigen_worker.api.offers import Offers
from tenkaigen_worker.jobs import Asker, JobView
from tenkaigen_worker.offers import Line
from tenkaigen_worker.plugin.manager import Plugins
from tenkaigen_worker.references.uploads import Uploads


class Submissions(Protocol):
    """The job table as the people who ask for pictures use it.

    Any of these may raise :class:`~tenkaigen_worker.errors.DatabaseError`.
    """

    async def submit(
        self,
        columns: Mapping[str, Any],
        *,
        asker: Asker,
        idempotency_key: str | None,
        request_hash: str | None,
    ) -> JobView:
        """Insert a row of the asker's; the same key with the same hash answers the row that is there."""

    async def get(self, job_id: UUID, asker: Asker) -> JobView | None:
        """One row of the asker's, or ``None``."""

    async def line(self, job_id: UUID, asker: Asker) -> Line | None:
        """What is before a queued job that is due, or ``None``."""

    async def cancel(self, job_id: UUID, asker: Asker) -> JobView | None:
        """Ask for it to be canceled; its row as it is now, or ``None``."""

    async def retry(self, job_id: UUID, asker: Asker) -> JobView | None:
        """Queue the same request again as a new row, or ``None``."""


class Files(Protocol):
    """Finished files, which this process serves itself or knows the way to.

    ``private`` files are for those who may look at the jobs that made them; others are for whoever knows their keys.
    """

    @property
    def private(self) -> bool:
        """Whether it matters who asks."""

    async def find(self, key: str) -> Path | None:
        """The file under ``key`` on this machine, or ``None``."""

    async def link(self, key: str) -> str | None:
        """A URL under which a browser finds the file now, or ``None``."""


class KeyTable(Protocol):
    """Where API keys are kept; raises :class:`~tenkaigen_worker.errors.DatabaseError` when it cannot be reached."""

    async def find(self, digest: bytes) -> ApiKey | None:
        """The key with this digest, if it counts now."""


@dataclass(frozen=True, slots=True)
class Parts:
    """All that the application is made of.

    ``check`` raises :class:`~tenkaigen_worker.errors.DatabaseError` that says why no request can be served now.
    """

    submissions: Submissions
    files: Files
    uploads: Uploads
    plugins: Plugins
    offers: Offers
    check: Callable[[], Awaitable[None]]
    keys: KeyTable


PARTS: web.AppKey[Parts] = web.AppKey("parts")
ASKS_NOBODY = web.AppKey("asks_nobody", bool)
