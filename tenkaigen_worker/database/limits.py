"""How much one user may ask for: the limits that the table's own trigger holds, and how far a user has come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import asyncpg

from tenkaigen_worker.database.faults import database_faults
from tenkaigen_worker.database.queries import load_queries

QUERIES = load_queries("limits.sql")

# Each limit by its name here, and what its columns are called: for everybody, and for one user.
_COLUMNS = {
    "queued": ("max_queued_per_user", "max_queued"),
    "per_minute": ("max_per_minute_per_user", "max_per_minute"),
    "pictures_per_day": ("max_pictures_per_day_per_user", "max_pictures_per_day"),
}
NAMES = tuple(_COLUMNS)

# For one user null is the limit of everybody, so that none is a number which nobody reaches.
_NONE_FOR_A_USER = 2**31 - 1
LARGEST = _NONE_FOR_A_USER - 1

Values = Mapping[str, int | None]  # by name; ``None`` is no limit


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of everybody, and of the users who have some of their own; those name only what differs."""

    everybody: Values
    users: Mapping[UUID, Values]
    fair_spacing: timedelta

    def of(self, user_id: UUID) -> Values:
        """What holds for one user."""
        return {**self.everybody, **self.users.get(user_id, {})}


class PostgresLimits:
    """The tables of limits. A change holds from the next INSERT on, for SQL and HTTP alike.

    Every method may raise :class:`~tenkaigen_worker.errors.DatabaseError`.
    """

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def read(self) -> Limits:
        """All that is set."""
        with database_faults("cannot read the limits"):
            everybody = await self._pool.fetchrow(QUERIES["everybody"])
            users = await self._pool.fetch(QUERIES["users"])
        return Limits(
            everybody={name: everybody[name] if everybody else None for name in NAMES},
            users={row["user_id"]: _own(row) for row in users},
            fair_spacing=everybody["fair_spacing"] if everybody else timedelta(0),
        )

    async def set(self, values: Values, user_id: UUID | None = None) -> None:
        """Set some limits of everybody, or of one user; the others stay as they are."""
        table, key, side = ("settings", "only_row", 0) if user_id is None else ("user_limits", "user_id", 1)
        columns = [_COLUMNS[name][side] for name in values]
        places = ", ".join(f"${number}" for number in range(1, len(columns) + 2))
        changes = ", ".join(f"{column} = excluded.{column}" for column in columns)
        # The names are constants of this module, the values go beside the text.
        query = (
            f"INSERT INTO generation_{table} ({', '.join([key, *columns])}) VALUES ({places}) "  # noqa: S608
            f"ON CONFLICT ({key}) DO UPDATE SET {changes}"
        )
        none = None if user_id is None else _NONE_FOR_A_USER
        given = [none if value is None else value for value in values.values()]
        with database_faults("cannot set the limits"):
            await self._pool.execute(query, user_id or True, *given)

    async def remove(self, user_id: UUID) -> bool:
        """Let the limits of everybody hold for a user; false when they had none of their own."""
        with database_faults("cannot remove the limits of a user"):
            return await self._pool.fetchval(QUERIES["remove"], user_id) is not None

    async def usage(self, user_id: UUID) -> Mapping[str, int]:
        """How far a user has come, limit by limit."""
        with database_faults("cannot count the jobs of a user"):
            row = (await self._pool.fetch(QUERIES["usage"], user_id))[0]
        return dict(row)


def _own(row: asyncpg.Record) -> Values:
    set_ones = {name: row[name] for name in NAMES if row[name] is not None}
    return {name: None if value == _NONE_FOR_A_USER else value for name, value in set_ones.items()}
