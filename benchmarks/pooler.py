"""A PgBouncer in transaction mode before the benchmark's server, where the system has one."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

from tenkaigen_worker.errors import TenkaigenError

PORT = 6432
START_SECONDS = 10.0

CONFIGURATION = """
[databases]
* = host={server} port={server_port} user=postgres

[pgbouncer]
pool_mode = transaction
auth_type = any
listen_port = {port}
unix_socket_dir = {folder}
logfile = {folder}/pgbouncer.log
"""


def find_pgbouncer() -> str | None:
    """Where the program is; Debian keeps it in a folder that is on root's PATH only."""
    return shutil.which("pgbouncer", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin")))


@contextmanager
def pgbouncer(program: str, folder: Path, dsn: str) -> Iterator[str]:
    """Run it in a new ``folder`` for the server that ``dsn`` names; yields how to reach its database ``{}``.

    It runs as the server's own account, which alone may reach that server's socket: PgBouncer refuses root, too.
    """
    server = parse_qs(urlsplit(dsn).query)
    folder.mkdir()
    settings = folder / "pgbouncer.ini"
    settings.write_text(
        CONFIGURATION.format(server=server["host"][0], server_port=server["port"][0], port=PORT, folder=folder),
        encoding="utf-8",
    )
    account = None
    if os.geteuid() == 0:
        account = pwd.getpwuid(Path(server["host"][0]).stat().st_uid)
        os.chown(folder, account.pw_uid, account.pw_gid)

    process = subprocess.Popen(
        [program, "--quiet", str(settings)],
        user=account.pw_uid if account else None,
        group=account.pw_gid if account else None,
        extra_groups=[] if account else None,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait_for(process, folder)
        yield f"postgresql://postgres@/{{}}?host={quote(str(folder))}&port={PORT}"
    finally:
        process.terminate()
        process.wait()


def _wait_for(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait until it listens; raises when it ends before that, with its last words."""
    deadline = time.monotonic() + START_SECONDS
    while not (folder / f".s.PGSQL.{PORT}").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            log = folder / "pgbouncer.log"
            said = log.read_text(encoding="utf-8")[-1000:] if log.exists() else "nothing"
            raise TenkaigenError(f"PgBouncer does not start; it says:\n{said}")
        time.sleep(0.02)
