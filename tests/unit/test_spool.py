"""The spool: pictures wait on disk for a storage that is away, as long as waiting can help."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from io import FileIO
from pathlib import Path
from uuid import uuid4

import pytest
from tenacity import wait_fixed, wait_none

from tenkaigen_worker.engine.base import Picture
from tenkaigen_worker.errors import Code, ConfigError, InfrastructureError, StorageError
from tenkaigen_worker.jobs import Job, Lease
from tenkaigen_worker.metrics import Metrics
from tenkaigen_worker.recipe import Model, warm_up
from tenkaigen_worker.worker.publish import publish
from tenkaigen_worker.worker.spool import Spool
from tenkaigen_worker.worker.tools import Tools
from tests.unit.examples import sources

PNG = b"\x89PNG" * 100_000
JOB = Job(Lease(uuid4(), 1), None, 1, 3, {"prompt": "A phoenix rising", "style": "Anime", "count": 1})


class MoodyStorage:
    """Refuses ``refusals`` times and then keeps what it gets; ``refused`` is set by the first refusal."""

    def __init__(self, refusals: float = 0, *, permanent: bool = False) -> None:
        self.refusals = refusals
        self.permanent = permanent
        self.tries = 0
        self.files: dict[str, bytes] = {}
        self.refused = asyncio.Event()

    async def put(self, key: str, data: bytes, *, content_type: str) -> str:
        assert content_type == "image/png"
        self.tries += 1
        if self.tries <= self.refusals:
            self.refused.set()
            raise StorageError("the bucket answers 503", permanent=self.permanent)
        self.files[key] = data
        return f"http://files/{key}"

    async def list(self, prefix: str) -> Sequence[str]:
        raise NotImplementedError

    async def delete(self, keys: Sequence[str]) -> None:
        raise NotImplementedError

    async def check(self) -> str:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenkaigen_worker.worker.spool.BETWEEN_UPLOADS", wait_none())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "spool"


def open_files(folder: Path) -> list[str]:
    """What this process still holds open in a folder; a file without a name is shown there as deleted."""
    targets = []
    for handle in Path("/proc/self/fd").iterdir():
        try:
            targets.append(os.readlink(handle))
        except FileNotFoundError:
            continue  # the handle of this very listing
    return [target for target in targets if target.startswith(f"{folder}/")]


async def upload(spool: Spool) -> str:
    with spool.file() as file:
        await asyncio.to_thread(file.write, PNG)
        return await spool.upload(file, "u/j/1-0-abc.png", JOB)


async def test_a_picture_is_stored_whole_and_nothing_is_left(folder: Path) -> None:
    storage = MoodyStorage()
    assert await upload(Spool(folder, storage, 60)) == "http://files/u/j/1-0-abc.png"
    assert storage.files == {"u/j/1-0-abc.png": PNG}
    assert not os.listdir(folder)
    assert not open_files(folder)


async def test_a_storage_that_is_away_is_tried_again_with_the_same_bytes(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "tenkaigen.worker")
    storage = MoodyStorage(refusals=3)
    await upload(Spool(folder, storage, 60))
    assert storage.files == {"u/j/1-0-abc.png": PNG}

    said = [record for record in caplog.records if record.__dict__["action"] == "upload_waits"]
    assert len(said) == 3
    assert all(record.levelno == logging.WARNING and "answers 503" in record.getMessage() for record in said)


async def test_a_refusal_for_good_is_not_argued_with(folder: Path) -> None:
    storage = MoodyStorage(refusals=9, permanent=True)
    with pytest.raises(InfrastructureError, match="answers 503") as caught:
        await upload(Spool(folder, storage, 60))
    assert caught.value.code is Code.UPLOAD_FAILED
    assert storage.tries == 1
    assert not open_files(folder)


async def test_patience_ends(folder: Path) -> None:
    storage = MoodyStorage(refusals=float("inf"))
    with pytest.raises(InfrastructureError, match="answers 503") as caught:
        await upload(Spool(folder, storage, patience_seconds=0.02))
    assert caught.value.code is Code.UPLOAD_FAILED
    assert not open_files(folder)


async def test_a_cancel_in_the_middle_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenkaigen_worker.worker.spool.BETWEEN_UPLOADS", wait_fixed(3600))
    storage = MoodyStorage(refusals=float("inf"))
    uploading = asyncio.create_task(upload(Spool(folder, storage, 86_400)))
    await storage.refused.wait()
    assert len(open_files(folder)) == 1, "it waits on the disk"
    assert not os.listdir(folder), "without a name: a killed process leaves nothing either"

    uploading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await uploading
    assert not open_files(folder)


async def test_no_pixels_wait_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenkaigen_worker.worker.spool.BETWEEN_UPLOADS", wait_fixed(3600))
    storage = MoodyStorage(refusals=float("inf"))
    spool = Spool(folder, storage, 86_400)
    tools = Tools(None, None, storage, spool, sources(), Metrics(), None)  # type: ignore[arg-type]
    recipe = replace(warm_up(Model("blank", "blank", None, 64, 64)), seeds=(2718281828,))

    picture = Picture(0, recipe.seeds[0], recipe.width, recipe.height, bytes(3 * recipe.width * recipe.height), {})
    publishing = asyncio.create_task(publish(picture, recipe, JOB, tools))
    del picture
    await storage.refused.wait()
    gc.collect()
    # By type and seed: other tests of this process keep pictures, and isinstance would wake whatever else lives in it.
    assert not [thing for thing in gc.get_objects() if type(thing) is Picture and thing.seed == recipe.seeds[0]]

    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EIO])
async def test_a_disk_that_refuses_is_explained(number: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tenkaigen_worker.worker.spool.TemporaryFile", refuse)
    storage = MoodyStorage()
    with pytest.raises(InfrastructureError, match="set state_dir") as caught:
        await upload(Spool(folder, storage, 60))
    assert caught.value.code is Code.UPLOAD_FAILED
    assert str(folder) in str(caught.value)
    assert os.strerror(number) in str(caught.value)
    assert storage.tries == 0


async def test_a_disk_that_fills_up_while_it_is_written_is_explained(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_kwargs: object) -> FileIO:
        return FileIO("/dev/full", "w")

    monkeypatch.setattr("tenkaigen_worker.worker.spool.TemporaryFile", full)
    with pytest.raises(InfrastructureError, match="No space left on device"):
        await upload(Spool(folder, MoodyStorage(), 60))


async def test_a_spool_that_cannot_be_used_is_found_at_start(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(ConfigError, match="set state_dir"):
        Spool(tmp_path / "state" / "spool", MoodyStorage(), 60).check()


async def test_a_spool_whose_folder_was_removed_is_made_again(folder: Path) -> None:
    spool = Spool(folder, MoodyStorage(), 60)
    spool.check()
    os.rmdir(folder)
    await upload(spool)
