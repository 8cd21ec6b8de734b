"""The table of API keys. It keeps only their digests."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import asyncpg

from tenkaigen_worker.access import ApiKey, Scope, digest_of, new_key
from tenkaigen_worker.database.faults import database_faults
from tenkaigen_worker.database.queries import load_queries
from tenkaigen_worker.errors import ConflictError, FieldProblem

QUERIES = load_queries("api_keys.sql")


class ApiKeys:
    """The table of keys.

    Every method may raise :class:`~tenkaigen_worker.errors.DatabaseError` when the database cannot be reached.
    """

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def create(self, name: str, scopes: Collection[Scope], *, days: int | None) -> str:
        """Keep a new key and answer it: it is nowhere else. It counts for ``days`` days, or until it is revoked.

        Raises ``ConflictError`` when a key of that name counts already.
        """
        key = new_key()
        with database_faults("cannot keep a key"):
            try:
                await self._pool.execute(QUERIES["create"], name, digest_of(key), sorted(scopes), days)
            except asyncpg.UniqueViolationError:
                message = f"there is a key {name!r} already; revoke it first, or choose another name"
                raise ConflictError(message, problems=[FieldProblem("name", message)]) from None
        return key

    async def find(self, digest: bytes) -> ApiKey | None:
        """The key with this digest, if it counts now; notes that it was used."""
        with database_faults("cannot look for a key"):
            row = await self._pool.fetchrow(QUERIES["find"], digest)
        return _key(row) if row else None

    async def all(self) -> Sequence[ApiKey]:
        """Every key there ever was, the newest last."""
        with database_faults("cannot list keys"):
            return [_key(row) for row in await self._pool.fetch(QUERIES["all"])]

    async def revoke(self, name: str) -> bool:
        """Have a key count no more; ``False`` when none of that name does."""
        with database_faults("cannot revoke a key"):
            return await self._pool.fetchval(QUERIES["revoke"], name) is not None


def _key(row: asyncpg.Record) -> ApiKey:
    return ApiKey(**{**row, "scopes": frozenset(map(Scope, row["scopes"]))})
