"""One PostgreSQL server of our own in a folder: made, started, found again, and stopped."""

from __future__ import annotations

import hashlib
import logging
import os
import pwd
import re
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psutil

from tenkaigen_worker.errors import DatabaseError

log = logging.getLogger("tenkaigen.database")

PORT = 5432  # names the socket's file only: the server listens on no network
START_SECONDS = 60
STOP_SECONDS = 30

# Linux allows 107 bytes for a socket's path, macOS 103; a comma or a quote would mean something to PostgreSQL.
_LONGEST_SOCKET_FOLDER = 103 - len(f"/.s.PGSQL.{PORT}")
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_./@+~-]+")


@dataclass(frozen=True, slots=True)
class Account:
    """The system user that runs the server. PostgreSQL refuses to run as root."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Postmaster:
    """What a running server says of itself in ``postmaster.pid``."""

    pid: int
    socket_folder: Path
    ready: bool


class Cluster:
    """A PostgreSQL server whose programs are in ``binaries`` and whose files are in ``folder``.

    It listens on a Unix socket only, which nobody but its system user (and root) can reach, and trusts who comes that
    way. Methods are not safe against each other across processes: the caller holds a lock. Those that start or stop
    raise :class:`~tenkaigen_worker.errors.DatabaseError` with the end of what the failing program said.
    """

    def __init__(self, binaries: Path, folder: Path) -> None:
        self.binaries = binaries.resolve()
        self.folder = folder.resolve()
        self.data = self.folder / "data"
        self.log_file = self.folder / "server.log"

    def ensure_running(self) -> str:
        """Make the files unless they are there, start the server unless it runs, and answer its DSN."""
        account = self._prepare_folder()
        if not self.data.is_dir():
            self._initialize(account)

        running = self._wait_for_postmaster()
        if running is None:
            self._start(account)
            running = self._wait_for_postmaster()
        if running is None:
            raise DatabaseError(f"PostgreSQL ended right after it started; {self.log_file} says:\n{self._log_tail()}")
        return f"postgresql://postgres@/postgres?host={quote(str(running.socket_folder))}&port={PORT}"

    def stop(self) -> None:
        """End the server; clients that are still connected lose their connection."""
        running = self._postmaster()
        if running is None:
            return
        for how, seconds in ((signal.SIGINT, STOP_SECONDS), (signal.SIGQUIT, STOP_SECONDS)):
            os.kill(running.pid, how)
            if _within(seconds, lambda: self._postmaster() is None):
                return
        raise DatabaseError(f"PostgreSQL (process {running.pid}) does not stop; see {self.log_file}")

    def _prepare_folder(self) -> Account | None:
        """Make the folder, and open the way to it for the server's account; ``None`` means: we are that account."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.geteuid() != 0:
                return None
            account = self._account()
            os.chown(self.folder, account.uid, account.gid)
            for path in (self.folder, self.binaries):
                _let_through(path, account)
        except OSError as error:
            raise DatabaseError(f"the embedded database cannot use {self.folder}: {error}") from error
        return account

    def _account(self) -> Account:
        """Who owns the folder already, unless that is root; else the account that every system has for no one."""
        owner = self.folder.stat()
        if owner.st_uid != 0:
            return Account(owner.st_uid, owner.st_gid)
        nobody = pwd.getpwnam("nobody")
        return Account(nobody.pw_uid, nobody.pw_gid)

    def _initialize(self, account: Account | None) -> None:
        """Make the files beside their place first: half of them would look like a database for ever."""
        unfinished = self.folder / "data.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        self._run(
            account,
            *("initdb", "--pgdata", unfinished.name, "--username", "postgres", "--auth", "trust"),
            *("--encoding", "UTF8", "--locale", "C"),
        )
        unfinished.rename(self.data)

    def _start(self, account: Account | None) -> None:
        socket_folder = self._socket_folder(account)
        # Left by a server that was killed. PostgreSQL itself would believe them: its number may be another process's by
        # now, or still a zombie's in a container where nobody collects those.
        for stale in (self.data / "postmaster.pid", socket_folder / f".s.PGSQL.{PORT}.lock"):
            stale.unlink(missing_ok=True)
        options = shlex.join(
            [
                *("-c", "listen_addresses="),
                *("-c", f"unix_socket_directories={socket_folder}"),
                *("-c", "unix_socket_permissions=0700"),
                *("-c", f"port={PORT}"),
            ]
        )
        self._run(
            account,
            *("pg_ctl", "start", "--wait", "--timeout", str(START_SECONDS), "--pgdata", self.data.name),
            *("--log", self.log_file.name, "--options", options),
        )
        log.info("started PostgreSQL in %s", self.data, extra={"action": "database_started"})

    def _run(self, account: Account | None, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs as the server's account, in our folder: pg_ctl cannot quote every path.

        Its output goes through a file, because the server would keep a pipe open.
        """
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")} | {"LC_ALL": "C"}
        with tempfile.TemporaryFile() as output:
            try:
                subprocess.run(
                    [str(self.binaries / program), *arguments],
                    check=True,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=self.folder,
                    env=environment,
                    user=account.uid if account else None,
                    group=account.gid if account else None,
                    extra_groups=[] if account else None,
                )
            except (OSError, subprocess.SubprocessError) as error:
                output.seek(0)
                said = output.read().decode(errors="replace").strip() or str(error)
                raise DatabaseError(
                    f"the embedded database does not start, {program} failed:\n{said}\n{self._log_tail()}".rstrip()
                ) from error

    def _wait_for_postmaster(self) -> Postmaster | None:
        """The running server once it is ready, or ``None`` when none runs."""
        _within(START_SECONDS, lambda: (running := self._postmaster()) is None or running.ready)
        running = self._postmaster()
        if running is not None and not running.ready:
            raise DatabaseError(
                f"PostgreSQL (process {running.pid}) is not ready after {START_SECONDS} s; {self.log_file} says:\n"
                f"{self._log_tail()}"
            )
        return running

    def _postmaster(self) -> Postmaster | None:
        """Read ``postmaster.pid``, unless it was left behind and its number belongs to another process by now."""
        try:
            lines = (self.data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
            process = psutil.Process(int(lines[0]))
            # A server works in its folder of files; a zombie works nowhere.
            if process.status() == psutil.STATUS_ZOMBIE or process.cwd() != str(self.data):
                return None
        except (FileNotFoundError, IndexError, ValueError, psutil.Error):
            return None
        socket_folder = Path(lines[4]) if len(lines) > 4 else self.folder
        return Postmaster(process.pid, socket_folder, ready=len(lines) > 7 and lines[7].strip() == "ready")

    def _socket_folder(self, account: Account | None) -> Path:
        """The folder itself, or a short one among temporary files when its path is too long for a socket."""
        plain = str(self.folder)
        if len(plain) <= _LONGEST_SOCKET_FOLDER and _PLAIN_PATH.fullmatch(plain):
            return self.folder

        # With the inode: a folder that was deleted and made again must not meet the socket of its old server.
        key = hashlib.sha256(f"{plain}-{self.folder.stat().st_ino}".encode()).hexdigest()[:12]
        short = Path(tempfile.gettempdir()) / f"tenkaigen-{key}"
        short.mkdir(mode=0o700, exist_ok=True)
        owner = short.lstat()
        ours = account.uid if account else os.geteuid()
        if not stat.S_ISDIR(owner.st_mode) or owner.st_uid not in {ours, os.geteuid()}:
            raise DatabaseError(f"{short} belongs to somebody else; the embedded database needs it for its socket")
        if account:
            os.chown(short, account.uid, account.gid)
            _let_through(short, account)
        return short

    def _log_tail(self) -> str:
        try:
            return "\n".join(self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-10:])
        except OSError:
            return ""


def _let_through(path: Path, account: Account) -> None:
    """Let the server's account walk through every folder above ``path``; it learns no names there."""
    for folder in path.parents:
        mode = folder.stat()
        if mode.st_uid != account.uid and not mode.st_mode & stat.S_IXOTH:
            folder.chmod(stat.S_IMODE(mode.st_mode) | stat.S_IXOTH)
            log.warning(
                "let other users walk through %s: PostgreSQL does not run as root, and has to reach its files",
                folder,
                extra={"action": "folder_opened"},
            )


def _within(seconds: float, true: Callable[[], bool]) -> bool:
    """Whether something becomes true in time."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
