"""The workers as the table knows them: who is there, and what each can make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import asyncpg

from tenkaigen_worker.database.faults import database_faults
from tenkaigen_worker.database.queries import load_queries
from tenkaigen_worker.offers import Announcement, Limits, WorkerState

QUERIES = load_queries("workers.sql")


class PostgresWorkers:
    """The table of workers as :class:`~tenkaigen_worker.offers.Workers`."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def announce(self, announcement: Announcement) -> None:
        """Say what a worker is now; others believe it for 45 s. Forgets whom nobody saw for a day."""
        with database_faults("cannot announce this worker"):
            await self._pool.execute(
                QUERIES["announce"],
                announcement.worker_id,
                announcement.host,
                announcement.version,
                announcement.backend,
                announcement.model,
                announcement.demo,
                announcement.state.value,
                dict(announcement.styles),
                list(announcement.modes),
                dict(announcement.picture_ms),
                dict(announcement.loras),
                dict(announcement.templates),
                asdict(announcement.limits),
            )
            await self._pool.execute(QUERIES["forget"])

    async def leave(self, worker_id: str) -> None:
        """Say that a worker is gone."""
        with database_faults("cannot take back what this worker announced"):
            await self._pool.execute(QUERIES["leave"], worker_id)

    async def live(self) -> Sequence[Announcement]:
        """What all workers said that were seen in the last 45 s, the oldest worker first."""
        with database_faults("cannot read which workers there are"):
            rows = await self._pool.fetch(QUERIES["live"])
        return [
            Announcement(
                worker_id=row["id"],
                host=row["host"],
                version=row["version"],
                backend=row["backend"],
                model=row["model"],
                demo=row["demo"],
                state=WorkerState(row["state"]),
                styles=row["styles"],
                modes=tuple(row["modes"]),
                picture_ms=row["picture_ms"],
                loras={name: tuple(aliases) for name, aliases in row["loras"].items()},
                templates=row["templates"],
                limits=Limits(row["limits"].get("max_pixels")),
            )
            for row in rows
        ]
