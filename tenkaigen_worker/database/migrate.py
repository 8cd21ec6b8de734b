"""Brings the schema up to date from the numbered files in ``migrations``, and says when it is not."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg

from tenkaigen_worker import __version__
from tenkaigen_worker.database.faults import FAULTS, database_faults, explain
from tenkaigen_worker.errors import DatabaseError
from tenkaigen_worker.resources import shipped

log = logging.getLogger("tenkaigen.database")

_FILE = re.compile(r"(\d{3})_(\w+)\.sql")
_LOCK = 0x74656E6B  # any number nobody else uses: "tenk"
_NO_LIMIT = 86_400.0  # seconds; a big adopted table takes its time, whatever the limit for queries is

_LEDGER = """
CREATE TABLE IF NOT EXISTS public.tenkaigen_migrations (
    version integer PRIMARY KEY,
    name text NOT NULL,
    sha256 text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    program_version text NOT NULL
);
COMMENT ON TABLE public.tenkaigen_migrations IS 'Which files of migrations/ this database has seen.';
"""

# Older Supabase projects grant every new table to everybody who holds the public key.
_CLOSE_LEDGER = """
DO $$
DECLARE
    visitor text;
BEGIN
    FOR visitor IN SELECT rolname FROM pg_roles WHERE rolname IN ('anon', 'authenticated') LOOP
        EXECUTE format('REVOKE ALL ON public.tenkaigen_migrations FROM %I', visitor);
    END LOOP;
END
$$;
"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of ``migrations``: ``NNN_name.sql``."""

    version: int
    name: str
    sql: str = field(repr=False)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()

    def __str__(self) -> str:
        return f"{self.version:03}_{self.name}.sql"


@dataclass(frozen=True, slots=True)
class _Applied:
    name: str
    sha256: str
    program_version: str


def shipped_migrations(folder: Path | None = None) -> tuple[Migration, ...]:
    """The migrations this program knows, in order; ``folder`` is the shipped one unless given."""
    found = []
    for path in sorted((folder or shipped("migrations")).glob("*.sql")):
        if not (name := _FILE.fullmatch(path.name)):
            raise DatabaseError(f"{path}: a migration is called NNN_name.sql")
        found.append(Migration(int(name[1]), name[2], path.read_text(encoding="utf-8")))
    if len({migration.version for migration in found}) != len(found):
        raise DatabaseError("two migrations have the same number")
    return tuple(found)


async def migrate(
    connection: asyncpg.Connection, *, dry_run: bool = False, known: Sequence[Migration] | None = None
) -> list[Migration]:
    """Apply what is missing, each file in a transaction of its own, and answer what was (or would be) applied.

    Any number of programs may do this at once. Raises :class:`~tenkaigen_worker.errors.DatabaseError` when an applied
    file was edited since, when the database is newer than this program, when the connection is lost, or when a file
    fails; a failing file leaves nothing behind.
    """
    known = shipped_migrations() if known is None else known
    missing = await pending(connection, known=known)
    if dry_run:
        return missing

    connection.add_log_listener(_tell)
    try:
        return [migration for migration in missing if await _apply(connection, migration, known)]
    finally:
        connection.remove_log_listener(_tell)


async def pending(
    connection: asyncpg.Connection | asyncpg.Pool, *, known: Sequence[Migration] | None = None
) -> list[Migration]:
    """What this database has not seen yet. Changes nothing; raises as :func:`migrate` does."""
    known = shipped_migrations() if known is None else known
    with database_faults("cannot read which migrations were applied"):
        applied = await _applied(connection)
    _refuse_strangers(applied, known)
    return [migration for migration in known if migration.version not in applied]


async def check_schema(connection: asyncpg.Connection | asyncpg.Pool) -> None:
    """Raise :class:`~tenkaigen_worker.errors.DatabaseError` unless the schema is exactly what this program needs."""
    missing = await pending(connection)
    if not missing:
        return
    if missing == list(shipped_migrations()):
        raise DatabaseError("this database has no job table yet; run: tenkaigen migrate")
    names = ", ".join(map(str, missing))
    raise DatabaseError(f"the job table is older than this program ({names} not applied); run: tenkaigen migrate")


async def _apply(connection: asyncpg.Connection, migration: Migration, known: Sequence[Migration]) -> bool:
    """Apply one file unless somebody else just did."""
    try:
        async with connection.transaction():
            await connection.execute(
                f"SET LOCAL statement_timeout = 0; SELECT pg_advisory_xact_lock({_LOCK})", timeout=_NO_LIMIT
            )
            await connection.execute(_LEDGER)
            await connection.execute(_CLOSE_LEDGER)
            applied = await _applied(connection)
            _refuse_strangers(applied, known)
            if migration.version in applied:
                return False

            # Waiting behind somebody's long transaction would make everybody else wait behind us.
            await connection.execute("SET LOCAL lock_timeout = '15s'")
            await connection.execute(migration.sql, timeout=_NO_LIMIT)
            await connection.execute(
                "INSERT INTO public.tenkaigen_migrations (version, name, sha256, program_version) "
                "VALUES ($1, $2, $3, $4)",
                *(migration.version, migration.name, migration.sha256, __version__),
            )
    except FAULTS as fault:
        if connection.is_closed():
            lost = f"the connection was lost while {migration} was applied: {explain(fault)}; run: tenkaigen migrate"
            raise DatabaseError(lost) from fault
        hint = getattr(fault, "hint", None)
        said = f"{explain(fault)}\n{hint}" if hint else explain(fault)
        raise DatabaseError(f"{migration} failed and changed nothing: {said}") from fault
    log.info("applied %s", migration, extra={"action": "migration_applied", "migration": str(migration)})
    return True


async def _applied(connection: asyncpg.Connection | asyncpg.Pool) -> Mapping[int, _Applied]:
    if await connection.fetchval("SELECT to_regclass('public.tenkaigen_migrations')") is None:
        return {}
    rows = await connection.fetch("SELECT version, name, sha256, program_version FROM public.tenkaigen_migrations")
    return {row["version"]: _Applied(row["name"], row["sha256"], row["program_version"]) for row in rows}


def _refuse_strangers(applied: Mapping[int, _Applied], known: Sequence[Migration]) -> None:
    """Raise when the database has seen a file that is not, or no longer, ours."""
    ours = {migration.version: migration for migration in known}
    for version, seen in sorted(applied.items()):
        if version not in ours:
            raise DatabaseError(
                f"this database has seen {version:03}_{seen.name}.sql, which this program (version {__version__}) does "
                f"not know: it was migrated by version {seen.program_version}. Install that version or a later one"
            )
        if seen.sha256 != ours[version].sha256:
            raise DatabaseError(
                f"{ours[version]} was edited after it was applied to this database. "
                "Put the file back as it was, and write what is new into a migration with the next number"
            )


def _tell(_: object, message: asyncpg.PostgresLogMessage) -> None:
    """Pass on what a migration has to say; the server's chatter about existing names is not worth a line."""
    if message.severity_en == "WARNING":
        log.warning("%s", message.message, extra={"action": "migration_warning"})
