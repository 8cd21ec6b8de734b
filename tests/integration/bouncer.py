"""A PgBouncer of Debian's package, run by the tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tenkaigen_worker.database.address import parse_address

SESSIONS = 8  # that it opens to the server, for each database


@contextmanager
def running_pgbouncer(server_dsn: str, mode: str, folder: Path, clients: int = 100) -> Iterator[int]:
    """Run PgBouncer before a server, as the system user that may reach its socket; yields the TCP port.

    It takes at most so many ``clients``.
    """
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("install the package pgbouncer")
    where = parse_address(server_dsn)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    (folder / "users.txt").write_text('"postgres" ""\n')
    (folder / "pgbouncer.ini").write_text(
        f"""
        [databases]
        * = host={where.host} port={where.port}
        [pgbouncer]
        listen_addr = 127.0.0.1
        listen_port = {port}
        unix_socket_dir =
        auth_type = trust
        auth_file = {folder / "users.txt"}
        pool_mode = {mode}
        default_pool_size = {SESSIONS}
        max_client_conn = {clients}
        log_connections = 0
        log_disconnections = 0
        log_stats = 0
        """
    )
    owner = os.stat(where.host)
    other: dict[str, Any] = {}
    if os.geteuid() == 0:
        other = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
    os.chown(folder, owner.st_uid, owner.st_gid)
    with subprocess.Popen([program, str(folder / "pgbouncer.ini")], stderr=subprocess.PIPE, text=True, **other) as it:
        assert it.stderr is not None
        said: list[str] = []
        for line in it.stderr:
            said.append(line)
            if "process up" in line:
                break
        else:
            pytest.fail("".join(said))
        yield port
        it.terminate()
