"""Following jobs to their end, and fetching their pictures."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from rich.console import Console

from tenkaigen_worker.cli.follow import fetch, follow
from tenkaigen_worker.errors import DatabaseError, StorageError, TenkaigenError
from tenkaigen_worker.jobs import JobView, Output, Status
from tenkaigen_worker.storage.local import LocalStorage
from tests.unit.examples import QUEUED

JOB = replace(QUEUED, id=UUID(int=1), prompt="A phoenix [bold]rising[/nonsense]")
KEY = "anonymous/1/1-0-abc.png"


class Story:
    """Rows as they are seen poll by poll; an exception is raised instead."""

    def __init__(self, **scenes: list[JobView | Exception | None]) -> None:
        self.scenes = {int(name[1:]): scenes for name, scenes in scenes.items()}
        self.pauses = 0

    async def get(self, job_id: UUID) -> JobView | None:
        scene = self.scenes[job_id.int].pop(0)
        if isinstance(scene, Exception):
            raise scene
        return scene

    async def pause(self) -> None:
        self.pauses += 1


def at(status: Status, number: int = 1, progress: float = 0.0) -> JobView:
    return replace(JOB, id=UUID(int=number), status=status, progress=progress, stage="denoise")


@pytest.fixture(params=[True, False], ids=["terminal", "pipe"])
def console(request: pytest.FixtureRequest) -> Console:
    return Console(file=io.StringIO(), force_terminal=request.param)


async def test_jobs_come_in_the_order_in_which_they_end(console: Console) -> None:
    running = [at(Status.PROCESSING, 1, 0.5), at(Status.PROCESSING, 1, 0.9)]
    story = Story(j1=[*running, at(Status.COMPLETED, 1, 1.0)], j2=[at(Status.QUEUED, 2), at(Status.CANCELED, 2)])
    jobs = [at(Status.QUEUED, 1), at(Status.QUEUED, 2)]
    ended = [job async for job in follow(jobs, story.get, console, pause=story.pause)]
    assert [(job.id.int, job.status) for job in ended] == [(2, "canceled"), (1, "completed")]
    assert story.pauses == 2


async def test_an_outage_of_the_database_is_waited_for(console: Console) -> None:
    story = Story(j1=[DatabaseError("gone"), DatabaseError("still gone"), at(Status.COMPLETED)])
    assert [job.status async for job in follow([JOB], story.get, console, pause=story.pause)] == ["completed"]
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count("Waiting for the database") == 1
    assert "still gone" not in shown


async def test_a_deleted_row_ends_the_wait(console: Console) -> None:
    story = Story(j1=[None])
    with pytest.raises(TenkaigenError, match=str(JOB.id)):
        _ = [job async for job in follow([JOB], story.get, console, pause=story.pause)]


async def test_progress_is_shown_on_a_terminal_only(console: Console) -> None:
    story = Story(j1=[at(Status.PROCESSING, 1, 0.5), at(Status.COMPLETED, 1, 1.0)])
    _ = [job async for job in follow([JOB], story.get, console, pause=story.pause)]
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert ("100%" in shown and "A phoenix [bold]rising" in shown) if console.is_terminal else shown == ""


# Pictures


def output(key: str = KEY, url: str = "http://127.0.0.1:9/never-asked.png") -> Output:
    return Output(0, key, url, 64, 64, 4, "", 7)


@pytest.fixture
async def storage(tmp_path: Path) -> LocalStorage:
    storage = LocalStorage(tmp_path / "files", "http://127.0.0.1/files")
    await storage.put(KEY, b"data", content_type="image/png")
    return storage


async def test_pictures_are_named_where_they_are(storage: LocalStorage) -> None:
    job = replace(JOB, outputs=(output(), output("elsewhere/x.png", "http://shop.example/x.png")))
    assert await fetch(job, storage, None) == [str((storage.root / KEY).resolve()), "http://shop.example/x.png"]


async def test_pictures_are_copied(storage: LocalStorage, tmp_path: Path) -> None:
    [place] = await fetch(replace(JOB, outputs=(output(),)), storage, tmp_path / "new" / "folder")
    target = tmp_path / "new" / "folder" / f"{JOB.id}-0.png"
    assert (place, target.read_bytes()) == (str(target), b"data")


@pytest.fixture
async def elsewhere() -> AsyncIterator[TestServer]:
    async def picture(_: web.Request) -> web.Response:
        return web.Response(body=b"from afar")

    app = web.Application()
    app.router.add_get("/x.png", picture)
    async with TestServer(app) as server:
        yield server


async def test_pictures_of_another_machine_are_downloaded(
    storage: LocalStorage, tmp_path: Path, elsewhere: TestServer
) -> None:
    afar = output("elsewhere/x.png", str(elsewhere.make_url("/x.png")))
    await fetch(replace(JOB, outputs=(afar,)), storage, tmp_path)
    assert (tmp_path / f"{JOB.id}-0.png").read_bytes() == b"from afar"


async def test_pictures_of_a_bucket_are_read_from_it(tmp_path: Path) -> None:
    class Bucket(LocalStorage):
        async def find(self, key: str) -> Path | None:
            return None

        async def read(self, key: str) -> bytes | None:
            return b"in the cloud" if key == KEY else None

    bucket = Bucket(tmp_path, "http://127.0.0.1/files")
    await fetch(replace(JOB, outputs=(output(),)), bucket, tmp_path)
    assert (tmp_path / f"{JOB.id}-0.png").read_bytes() == b"in the cloud"


@pytest.mark.parametrize("path", ["/gone.png", None])
async def test_a_picture_that_cannot_be_had_is_named(
    storage: LocalStorage, tmp_path: Path, elsewhere: TestServer, path: str | None
) -> None:
    url = str(elsewhere.make_url(path)) if path else "not a url"
    with pytest.raises(StorageError, match=url):
        await fetch(replace(JOB, outputs=(output("elsewhere/x.png", url),)), storage, tmp_path)


async def test_a_folder_that_cannot_be_written_is_named(storage: LocalStorage, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="--output"):
        await fetch(replace(JOB, outputs=(output(),)), storage, tmp_path / "file")
