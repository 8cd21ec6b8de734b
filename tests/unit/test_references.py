"""From what a request names to files for the engine: own pictures only, fitted, and gone when the job is."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from uuid import UUID, uuid4

import pytest
from PIL import Image, ImageDraw

from tenkaigen_worker.config import ReferenceSettings
from tenkaigen_worker.errors import Code, DatabaseError, InfrastructureError, InputError, StorageError
from tenkaigen_worker.jobs import Made, Output, Status
from tenkaigen_worker.references import resolve
from tenkaigen_worker.references.fetch import Fetcher
from tenkaigen_worker.references.given import Upload
from tenkaigen_worker.references.resolve import References
from tenkaigen_worker.references.uploads import Uploads, made_at, new_id, remove_old_uploads, upload_key
from tenkaigen_worker.storage.local import LocalStorage
from tests.unit.examples import NOW
from tests.unit.pictures import bomb, encoded, gradient

ME, YOU = UUID(int=7), UUID(int=8)
PNG = encoded(gradient(300, 200))
SETTINGS = ReferenceSettings()


class Jobs:
    """A stand-in for the job table: who made what."""

    def __init__(self) -> None:
        self.rows: dict[tuple[UUID, UUID | None], Made] = {}
        self.broken: DatabaseError | None = None

    async def made(self, job_id: UUID, *, user_id: UUID | None) -> Made | None:
        if self.broken:
            raise self.broken
        return self.rows.get((job_id, user_id))


class Web(Fetcher):
    """A stand-in for other servers: what is at which URL."""

    def __init__(self) -> None:
        super().__init__(SETTINGS)
        self.there: Mapping[str, bytes | Exception] = {}

    async def fetch(self, address: str) -> bytes:
        found = self.there[address]
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "files", "http://127.0.0.1/files")


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


@pytest.fixture
def web() -> Web:
    return Web()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "references"


@pytest.fixture
def references(storage: LocalStorage, jobs: Jobs, folder: Path, web: Web) -> References:
    return References(SETTINGS, storage, jobs, folder, web)


async def uploaded(storage: LocalStorage, data: bytes = PNG, owner: UUID | None = ME) -> str:
    return str((await Uploads(storage, SETTINGS).keep(data, owner=owner)).upload)


async def wrong(references: References, reference: str, mask: str | None = None, user_id: UUID | None = ME) -> str:
    """What is said of input that is refused."""
    with pytest.raises(InputError) as caught:
        async with references.fitted(reference, mask, user_id=user_id, width=None, height=None):
            pass
    (problem,) = caught.value.problems
    return str(problem)


def names(folder: Path) -> list[str]:
    return [inside.name for inside in folder.iterdir()]


def mask(size: tuple[int, int] = (300, 200)) -> bytes:
    image = Image.new("L", size)
    ImageDraw.Draw(image).rectangle((0, 0, size[0] // 2, size[1]), fill="white")
    return encoded(image)


async def test_files_for_the_engine(references: References, storage: LocalStorage, folder: Path) -> None:
    reference, stencil = await uploaded(storage), await uploaded(storage, mask())
    async with references.fitted(reference, stencil, user_id=ME, width=256, height=None) as given:
        assert (given.width, given.height) == (256, 176)
        assert given.mask is not None
        for path, mode in [(given.reference, "RGB"), (given.mask, "L")]:
            with Image.open(path) as image:
                assert (image.format, image.mode, image.size) == ("PNG", mode, (256, 176))
    assert names(folder) == []


async def test_the_digests_are_of_what_was_given(references: References, web: Web) -> None:
    web.there = {"https://cdn.example.com/a.png": PNG, "https://cdn.example.com/b.png": mask()}
    async with references.fitted(
        "https://cdn.example.com/a.png", "https://cdn.example.com/b.png", user_id=ME, width=None, height=None
    ) as given:
        assert given.reference_sha256 == hashlib.sha256(PNG).hexdigest()
        assert given.mask_sha256 == hashlib.sha256(mask()).hexdigest()


async def test_without_a_mask(references: References, storage: LocalStorage) -> None:
    async with references.fitted(await uploaded(storage), None, user_id=ME, width=64, height=64) as given:
        assert (given.mask, given.mask_sha256) == (None, None)


async def test_files_are_gone_when_the_job_fails(references: References, storage: LocalStorage, folder: Path) -> None:
    reference = await uploaded(storage)
    with pytest.raises(RuntimeError):
        async with references.fitted(reference, None, user_id=ME, width=None, height=None):
            raise RuntimeError("the engine crashed")
    assert names(folder) == []


async def test_what_killed_workers_left_is_swept_and_nothing_that_is_in_use(
    references: References, storage: LocalStorage, folder: Path
) -> None:
    references.sweep()  # before there is a folder
    (folder / "left").mkdir(parents=True)
    (folder / "left" / "reference.png").write_bytes(PNG)
    async with references.fitted(await uploaded(storage), None, user_id=ME, width=None, height=None) as fitted:
        references.sweep()
        assert names(folder) == [fitted.reference.parent.name]
        assert fitted.reference.exists()
    assert names(folder) == []


async def test_a_folder_that_is_swept_before_it_is_locked_is_made_again(
    references: References, storage: LocalStorage, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept = []

    def make_and_sweep(**options: Any) -> str:
        made = mkdtemp(**options)
        if not swept:
            references.sweep()
            swept.append(made)
        return made

    monkeypatch.setattr(resolve, "mkdtemp", make_and_sweep)
    async with references.fitted(await uploaded(storage), None, user_id=ME, width=None, height=None) as fitted:
        assert fitted.reference.exists()
        assert names(folder) == [fitted.reference.parent.name] != [Path(swept[0]).name]


async def test_a_cancel_waits_for_the_thread_that_writes(
    references: References, storage: LocalStorage, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoding, cancelled = threading.Event(), threading.Event()
    wrote: list[bool] = []
    fit = resolve.fit_reference

    def slow(image: Image.Image, size: tuple[int, int]) -> Image.Image:
        decoding.set()
        cancelled.wait(10)
        wrote.append(len(names(folder)) == 1)
        return fit(image, size)

    async def prepare(reference: str) -> None:
        async with references.fitted(reference, None, user_id=ME, width=None, height=None):
            pass

    monkeypatch.setattr(resolve, "fit_reference", slow)
    task = asyncio.create_task(prepare(await uploaded(storage)))
    await asyncio.to_thread(decoding.wait, 10)
    task.cancel()
    for _ in range(5):  # the cancel gets through to where it would take effect
        await asyncio.sleep(0)
    cancelled.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (wrote, names(folder)) == ([True], [])


@pytest.mark.parametrize(("owner", "user_id"), [(ME, YOU), (ME, None), (None, ME)])
async def test_an_upload_of_somebody_else(
    references: References, storage: LocalStorage, owner: UUID | None, user_id: UUID | None
) -> None:
    reference = await uploaded(storage, owner=owner)
    said = await wrong(references, reference, user_id=user_id)
    assert said.startswith(f"reference: you have no {reference}: uploads are kept for 30 days")
    assert said == (await wrong(references, f"upload:{(other := uuid4())}", user_id=user_id)).replace(
        str(other), reference.removeprefix("upload:")
    )


def made(storage_key: str, status: Status = Status.COMPLETED, count: int = 1) -> Made:
    outputs = (Output(index, storage_key, f"http://x/{index}", 300, 200, 1, "ab" * 32, index) for index in range(count))
    return Made(status, tuple(outputs))


@pytest.mark.parametrize("user_id", [ME, None])
async def test_a_picture_of_an_earlier_job(
    references: References, storage: LocalStorage, jobs: Jobs, user_id: UUID | None
) -> None:
    job_id = uuid4()
    await storage.put("u/j/1-0-a.png", PNG, content_type="image/png")
    jobs.rows[job_id, user_id] = made("u/j/1-0-a.png")
    async with references.fitted(f"job:{job_id}/0", None, user_id=user_id, width=64, height=64) as given:
        assert given.reference_sha256 == hashlib.sha256(PNG).hexdigest()


@pytest.mark.parametrize(("owner", "user_id"), [(ME, YOU), (ME, None), (None, ME)])
async def test_a_picture_of_somebody_elses_job(
    references: References, storage: LocalStorage, jobs: Jobs, owner: UUID | None, user_id: UUID | None
) -> None:
    job_id = uuid4()
    await storage.put("u/j/1-0-a.png", PNG, content_type="image/png")
    jobs.rows[job_id, owner] = made("u/j/1-0-a.png")
    assert await wrong(references, f"job:{job_id}/0", user_id=user_id) == f"reference: you have no job {job_id}"


@pytest.mark.parametrize(
    ("job", "index", "says"),
    [
        (made("k", Status.PROCESSING), 0, "is processing: only pictures of a completed job can be used"),
        (made("k", Status.FAILED), 0, "is failed: only pictures of a completed job"),
        (made("k", count=2), 2, "has no picture 2; it has 0, 1"),
        (made("k", count=0), 0, "has no picture 0; it has none at all"),
        (made("k"), 0, "is not there any more"),
    ],
)
async def test_a_picture_that_is_not_there(
    references: References, jobs: Jobs, job: Made, index: int, says: str
) -> None:
    job_id = uuid4()
    jobs.rows[job_id, ME] = job
    assert says in await wrong(references, f"job:{job_id}/{index}")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"<html>not found</html>", "reference: is no PNG, JPEG or WebP picture"),
        (bomb(30_000, 30_000), "reference: has far more pixels, and at most 50000000 are taken"),
        (PNG[:-100], "reference: is a damaged picture"),
        (ValueError("is longer than 7 bytes"), "reference: is longer than 7 bytes"),
    ],
    ids=["html", "bomb", "cut", "long"],
)
async def test_what_is_fetched_may_be_anything(
    references: References, web: Web, data: bytes | Exception, says: str
) -> None:
    web.there = {"https://cdn.example.com/a": data}
    assert says in await wrong(references, "https://cdn.example.com/a")


@pytest.mark.parametrize(
    ("stencil", "says"),
    [
        (mask((200, 300)), "mask: must have the size of the reference, 300 x 200 pixels; it has 200 x 300"),
        (encoded(Image.new("L", (300, 200))), "mask: is black all over"),
    ],
)
async def test_a_wrong_mask(references: References, storage: LocalStorage, stencil: bytes, says: str) -> None:
    assert says in await wrong(references, await uploaded(storage), await uploaded(storage, stencil))


async def test_each_field_speaks_for_itself(references: References, storage: LocalStorage) -> None:
    assert (await wrong(references, "fox.png")).startswith("reference: must be upload:ID")
    assert (await wrong(references, await uploaded(storage), "fox.png")).startswith("mask: must be upload:ID")


@pytest.mark.parametrize("what", ["database", "storage", "disk"])
async def test_what_may_work_the_next_time(
    references: References, storage: LocalStorage, jobs: Jobs, folder: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    async def away(_: str) -> bytes:
        raise StorageError("secret-host does not answer")

    reference = await uploaded(storage)
    if what == "database":
        jobs.broken = DatabaseError("secret-host does not answer")
        reference = f"job:{uuid4()}/0"
    elif what == "storage":
        monkeypatch.setattr(storage, "read", away)
    else:
        folder.parent.write_bytes(b"a file where a folder should be")
    with pytest.raises(InfrastructureError) as caught:
        async with references.fitted(reference, None, user_id=ME, width=None, height=None):
            pass
    assert caught.value.code is Code.REFERENCE_UNAVAILABLE
    assert "secret" not in str(caught.value)


# Uploads


def test_ids_say_when_they_were_made_and_nothing_else() -> None:
    moment = NOW.timestamp() + 0.25
    ids = [new_id(moment) for _ in range(100)]
    assert {(one.version, one.variant) for one in ids} == {(7, "specified in RFC 4122")}
    assert {made_at(one) for one in ids} == {moment}
    assert len({one.int & (1 << 62) - 1 for one in ids}) == 100


async def test_old_uploads_are_removed(storage: LocalStorage) -> None:
    kept: dict[str, Any] = {}
    for name, age in [("old", timedelta(days=31)), ("young", timedelta(days=29))]:
        uploads = Uploads(storage, SETTINGS, clock=(NOW - age).timestamp)
        kept[name] = (await uploads.keep(PNG, owner=ME)).upload
    others = ["uploads/readme.txt", f"uploads/{ME}/{uuid4()}.png", f"{ME}/{kept['old'].id}/1-0-abc.png"]
    for key in others:
        await storage.put(key, PNG, content_type="image/png")

    assert await remove_old_uploads(storage, 30, now=NOW.timestamp()) == 1
    assert set(await storage.list("")) == {upload_key(kept["young"], ME), *others}
    assert await remove_old_uploads(storage, 30, now=NOW.timestamp()) == 0


def test_an_owner_is_part_of_the_key() -> None:
    upload = Upload(uuid4())
    assert upload_key(upload, ME) == f"uploads/{ME}/{upload.id}.png"
    assert upload_key(upload, None) == f"uploads/anonymous/{upload.id}.png"
