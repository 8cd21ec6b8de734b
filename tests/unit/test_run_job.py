"""One job from its claimed row to its outcome, with stand-ins for everything around it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from PIL import Image
from tenacity import wait_fixed, wait_none

from tenkaigen_worker.engine.base import NO_INPUTS, EngineInfo, Inputs, Picture, Step
from tenkaigen_worker.errors import Code, DatabaseError, EngineError, StorageError
from tenkaigen_worker.jobs import Completion, Failure, Heartbeat, Job, Lease, Progress, Status
from tenkaigen_worker.metrics import Metrics
from tenkaigen_worker.offers import Announcement, Limits
from tenkaigen_worker.recipe import Model, Recipe
from tenkaigen_worker.worker.in_hand import JobInHand
from tenkaigen_worker.worker.outcomes import FOR_OTHERS
from tenkaigen_worker.worker.run_job import run_job
from tenkaigen_worker.worker.spool import Spool
from tenkaigen_worker.worker.tools import Tools
from tenkaigen_worker.worker.turns import EngineTurns
from tests.unit.examples import WORKER, FakeWorkers, sources


class FakeQueue:
    """Remembers outcomes; ``ours`` says whether the lease still holds, ``outages`` how many writes fail first."""

    def __init__(self) -> None:
        self.outcomes: list[tuple[str, Any]] = []
        self.ours = True
        self.outages = 0
        self.refuses_completion = False
        self.completed = asyncio.Event()
        self.answers = asyncio.Event()
        self.answers.set()

    def _write(self, kind: str, value: Any) -> bool:
        if self.outages:
            self.outages -= 1
            raise DatabaseError("the database is away")
        if self.ours:
            self.outcomes.append((kind, value))
        return self.ours

    async def claim(self) -> Job | None:
        raise NotImplementedError

    async def heartbeat(self, held: Mapping[Lease, Progress]) -> Mapping[Lease, Heartbeat]:
        raise NotImplementedError

    async def complete(self, lease: Lease, completion: Completion) -> bool:
        if self.refuses_completion:
            raise DatabaseError("the row breaks a rule of somebody's trigger", permanent=True)
        written = self._write("completed", completion)
        self.completed.set()
        await self.answers.wait()
        return written

    async def due_within(self, delay: timedelta) -> bool:
        raise NotImplementedError

    async def fail(self, lease: Lease, failure: Failure) -> Status | None:
        written = self._write("failed", failure)
        return (Status.QUEUED if failure.code.retryable else Status.FAILED) if written else None

    async def release(self, lease: Lease, *, delay: timedelta = timedelta(0)) -> bool:
        return self._write("released", delay)

    async def cancel(self, lease: Lease) -> bool:
        return self._write("canceled", None)


class FakeStorage:
    """Files in a dict."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.error: StorageError | None = None
        self.refused = asyncio.Event()

    async def put(self, key: str, data: bytes, *, content_type: str) -> str:
        if self.error:
            self.refused.set()
            raise self.error
        self.files[key] = data
        return f"http://files/{key}"

    async def list(self, prefix: str) -> Sequence[str]:
        return [key for key in self.files if key.startswith(prefix)]

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.files.pop(key, None)

    async def check(self) -> str:
        return "memory"

    async def close(self) -> None:
        pass


class FakeEngine:
    """Flat pictures; ``error`` is raised, or ``endless`` work begins, after the first picture."""

    def __init__(self) -> None:
        self.info = EngineInfo(Model("blank", "blank", None, 64, 64), "cpu", "none", 0)
        self.error: Exception | None = None
        self.endless = False
        self.working = asyncio.Event()

    async def start(self) -> EngineInfo:
        return self.info

    async def generate(
        self, recipe: Recipe, inputs: Inputs = NO_INPUTS, *, on_step: Callable[[Step], None]
    ) -> AsyncGenerator[Picture]:
        for index, seed in enumerate(recipe.seeds):
            on_step(Step("denoise", index, 1, 2))
            pixels = bytes(3 * recipe.width * recipe.height)
            yield Picture(index, seed, recipe.width, recipe.height, pixels, {"denoise": 5})
            if self.error:
                raise self.error
            self.working.set()
            if self.endless:
                await asyncio.Event().wait()

    async def stop(self) -> None:
        pass


@pytest.fixture
async def queue() -> FakeQueue:
    return FakeQueue()


@pytest.fixture
def storage() -> FakeStorage:
    return FakeStorage()


@pytest.fixture
async def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def workers() -> FakeWorkers:
    return FakeWorkers()


@pytest.fixture
def tools(queue: FakeQueue, storage: FakeStorage, engine: FakeEngine, workers: FakeWorkers, tmp_path: Path) -> Tools:
    spool = Spool(tmp_path / "spool", storage, patience_seconds=60)
    return Tools(queue, engine, storage, spool, sources(storage=storage), Metrics(), workers)


def job(token: int = 1, **columns: Any) -> Job:
    asked = {"prompt": "A phoenix rising", "style": "Anime", "count": 1, **columns}
    return Job(Lease(uuid4(), token), UUID(int=7), 1, 3, asked)


async def run(job: Job, tools: Tools) -> JobInHand:
    hand = JobInHand(job, on_change=lambda: None)
    turns = EngineTurns(3.0, on_gap=lambda seconds: None)
    turns.expect(hand)
    await run_job(hand, turns, tools)
    return hand


async def test_a_job_is_made_stored_and_completed(queue: FakeQueue, storage: FakeStorage, tools: Tools) -> None:
    asked = job(count=2, seed=41)
    await run(asked, tools)

    ((kind, completion),) = queue.outcomes
    assert kind == "completed"
    assert [output.seed for output in completion.outputs] == [41, 42]
    named = [(output.key, output.thumbnail_key) for output in completion.outputs]
    assert {key for keys in named for key in keys} == set(storage.files)
    assert all(key.startswith(f"{UUID(int=7)}/{asked.id}/1-") for key in storage.files)
    assert completion.recipe["style"] == "Anime"
    assert completion.timings_ms.keys() >= {"prepare", "wait", "generate", "publish", "denoise"}


async def test_an_outcome_has_the_size_of_the_stored_picture(
    queue: FakeQueue, storage: FakeStorage, tools: Tools
) -> None:
    resize = {"resize": {"width": 300, "height": 200}}
    await run(job(), replace(tools, sources=sources(storage=storage, plugins=resize)))

    ((_, completion),) = queue.outcomes
    (output,) = completion.outputs
    png = storage.files[output.key]
    assert Image.open(BytesIO(png)).size == (output.width, output.height) == (300, 200)
    assert (completion.recipe["width"], completion.recipe["height"]) == (64, 64)


async def test_wrong_input_ends_before_the_engine(queue: FakeQueue, engine: FakeEngine, tools: Tools) -> None:
    await run(job(style="Anima"), tools)

    ((kind, failure),) = queue.outcomes
    assert kind == "failed"
    assert failure.code is Code.INVALID_REQUEST
    assert "Anime" in failure.message
    assert not engine.working.is_set()


async def test_an_engine_that_fails_is_a_failure_that_may_be_retried(
    queue: FakeQueue, engine: FakeEngine, tools: Tools
) -> None:
    engine.error = EngineError(Code.ENGINE_CRASHED, "the engine process was killed")
    await run(job(count=2), tools)

    ((kind, failure),) = queue.outcomes
    assert (kind, failure.code) == ("failed", Code.ENGINE_CRASHED)


async def test_storage_that_refuses_for_good_fails_the_attempt(
    queue: FakeQueue, storage: FakeStorage, tools: Tools
) -> None:
    storage.error = StorageError("the bucket is gone", permanent=True)
    await run(job(), tools)

    ((kind, failure),) = queue.outcomes
    assert (kind, failure.code) == ("failed", Code.UPLOAD_FAILED)
    assert "the bucket is gone" in failure.message


async def test_a_bug_of_ours_is_written_into_the_row_without_its_details(
    queue: FakeQueue, engine: FakeEngine, tools: Tools, caplog: pytest.LogCaptureFixture
) -> None:
    engine.error = ZeroDivisionError("secret detail")
    await run(job(), tools)

    ((kind, failure),) = queue.outcomes
    assert (kind, failure.code) == ("failed", Code.INTERNAL)
    assert "secret" not in failure.message
    assert "secret detail" in caplog.text


@pytest.mark.parametrize("lost", [False, True], ids=["canceled", "lease lost"])
async def test_a_stopped_job_ends_in_the_middle(
    lost: bool, queue: FakeQueue, storage: FakeStorage, engine: FakeEngine, tools: Tools
) -> None:
    engine.endless = True
    hand = JobInHand(job(count=2), on_change=lambda: None)
    turns = EngineTurns(3.0, on_gap=lambda seconds: None)
    turns.expect(hand)
    running = asyncio.create_task(run_job(hand, turns, tools))
    await engine.working.wait()

    (hand.lose if lost else hand.cancel)()
    await running
    assert queue.outcomes == ([] if lost else [("canceled", None)])
    # Nobody else looks for files of a lease that was lost; those of a canceled job are maintenance's.
    assert not (lost and storage.files)


async def test_a_spool_that_refuses_fails_the_attempt_with_its_place(
    queue: FakeQueue, tools: Tools, tmp_path: Path
) -> None:
    (tmp_path / "spool").write_text("in the way")
    await run(job(), tools)

    ((kind, failure),) = queue.outcomes
    assert (kind, failure.code) == ("failed", Code.UPLOAD_FAILED)
    assert str(tmp_path / "spool") in failure.message
    assert "set state_dir" in failure.message


@pytest.mark.parametrize("lost", [False, True], ids=["canceled", "lease lost"])
async def test_a_job_that_waits_for_storage_ends_at_once(
    lost: bool, queue: FakeQueue, storage: FakeStorage, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenkaigen_worker.worker.spool.BETWEEN_UPLOADS", wait_fixed(3600))
    storage.error = StorageError("the bucket is away")
    hand = JobInHand(job(count=2), on_change=lambda: None)
    turns = EngineTurns(3.0, on_gap=lambda seconds: None)
    turns.expect(hand)
    running = asyncio.create_task(run_job(hand, turns, tools))
    await storage.refused.wait()

    (hand.lose if lost else hand.cancel)()
    await running
    assert queue.outcomes == ([] if lost else [("canceled", None)])


async def test_a_job_waiting_for_the_engine_is_canceled_at_once(
    queue: FakeQueue, engine: FakeEngine, tools: Tools
) -> None:
    engine.endless = True
    turns = EngineTurns(3.0, on_gap=lambda seconds: None)
    busy, waiting = (JobInHand(job(count=2), on_change=lambda: None) for _ in range(2))
    turns.expect(busy)
    running = asyncio.create_task(run_job(busy, turns, tools))
    await engine.working.wait()

    turns.expect(waiting)
    second = asyncio.create_task(run_job(waiting, turns, tools))
    waiting.cancel()
    await second
    assert queue.outcomes == [("canceled", None)]

    busy.cancel()
    await running


async def test_a_worker_that_goes_away_gives_its_job_back(queue: FakeQueue, engine: FakeEngine, tools: Tools) -> None:
    engine.endless = True
    hand = JobInHand(job(count=2), on_change=lambda: None)
    turns = EngineTurns(3.0, on_gap=lambda seconds: None)
    turns.expect(hand)
    running = asyncio.create_task(run_job(hand, turns, tools))
    await engine.working.wait()

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [kind for kind, _ in queue.outcomes] == ["released"]


async def test_an_outcome_waits_for_a_database_that_is_away(
    queue: FakeQueue, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenkaigen_worker.worker.outcomes.BETWEEN_WRITES", wait_none())
    queue.outages = 2
    await run(job(), tools)
    assert [kind for kind, _ in queue.outcomes] == ["completed"]


async def test_files_of_a_lease_that_was_lost_are_dropped_but_not_those_of_others(
    queue: FakeQueue, storage: FakeStorage, tools: Tools
) -> None:
    queue.ours = False
    asked = job(token=2)
    others = f"{UUID(int=7)}/{asked.id}/3-0-abc.png"
    storage.files[others] = b"the next lease's"
    await run(asked, tools)
    assert set(storage.files) == {others}


async def test_success_on_a_later_attempt_removes_what_earlier_ones_left(storage: FakeStorage, tools: Tools) -> None:
    asked = job(token=2)
    folder = f"{UUID(int=7)}/{asked.id}"
    storage.files[f"{folder}/1-0-abc.png"] = b"left by a worker that was killed"
    storage.files[f"{folder}/3-0-def.png"] = b"of a later lease, which a frozen worker does not know of"
    storage.files[f"{folder}/notes.txt"] = b"somebody else's"
    await run(asked, tools)
    assert f"{folder}/1-0-abc.png" not in storage.files
    assert len([key for key in storage.files if key.startswith(f"{folder}/2-0-")]) == 2, "a picture and its thumbnail"
    assert len(storage.files) == 4


async def test_a_stop_after_completion_touches_no_file(queue: FakeQueue, storage: FakeStorage, tools: Tools) -> None:
    """The row is committed and names the files, only the answer is still on its way."""
    queue.answers.clear()
    running = asyncio.create_task(run(job(), tools))
    await queue.completed.wait()

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [kind for kind, _ in queue.outcomes] == ["completed"]
    assert len(storage.files) == 2


async def test_an_outcome_that_is_refused_for_good_fails_the_attempt(queue: FakeQueue, tools: Tools) -> None:
    queue.refuses_completion = True
    await run(job(), tools)
    ((kind, failure),) = queue.outcomes
    assert (kind, failure.code) == ("failed", Code.INTERNAL)
    assert "somebody's trigger" in failure.message


async def test_a_job_that_cannot_start_soon_is_given_back(
    queue: FakeQueue, engine: FakeEngine, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenkaigen_worker.worker.turns.START_WITHIN_SECONDS", 0)
    engine.endless = True
    turns = EngineTurns(3.0, on_gap=lambda seconds: None)
    busy, waiting = (JobInHand(job(count=2), on_change=lambda: None) for _ in range(2))
    turns.expect(busy)
    running = asyncio.create_task(run_job(busy, turns, tools))
    await engine.working.wait()

    turns.expect(waiting)
    await run_job(waiting, turns, tools)
    assert [kind for kind, _ in queue.outcomes] == ["released"]

    busy.cancel()
    await running


UKIYO_E = replace(WORKER, styles={"Ukiyo-e": ""}, modes=("quality", "fast"), templates={"Tote": ""})


@pytest.mark.parametrize(
    "columns",
    [
        {"style": "ukiyo_e"},
        {"style": "Ukiyo-e", "mode": "FAST"},
        {"style": None, "loras": '["edo"]'},
        {"style": None, "template": "tote", "franchise": "Ink"},
    ],
)
async def test_a_job_whose_names_another_worker_has_is_left_to_it(
    columns: dict[str, str], queue: FakeQueue, workers: FakeWorkers, tools: Tools, caplog: pytest.LogCaptureFixture
) -> None:
    workers.rows = [WORKER, UKIYO_E]
    with caplog.at_level("INFO", "tenkaigen.worker"):
        await run(job(**columns), tools)
    assert queue.outcomes == [("released", FOR_OTHERS)]
    assert [record.action for record in caplog.records] == ["job_elsewhere"]  # type: ignore[attr-defined]


async def test_an_edit_goes_to_a_worker_that_makes_edits(
    queue: FakeQueue, workers: FakeWorkers, tools: Tools, tmp_path: Path
) -> None:
    quality = {"steps": 50, "guidance_scale": 4.0}
    modes = {"quality": quality, "edit": {**quality, "edit": True}}
    tools = replace(tools, sources=sources(tmp_path, generation={"modes": modes}))
    workers.rows = [replace(WORKER, modes=("quality",)), replace(WORKER, modes=("quality", "edit"))]
    await run(job(mode="edit", style=None, reference=f"upload:{uuid4()}"), tools)
    assert queue.outcomes == [("released", FOR_OTHERS)]


@pytest.mark.parametrize(("mode", "here"), [("edit", {"edit": True}), ("glow", {"lora": "Nowhere"}), ("warp", None)])
async def test_a_style_goes_to_a_worker_that_has_its_mode(
    mode: str,
    here: dict[str, Any] | None,
    queue: FakeQueue,
    workers: FakeWorkers,
    tools: Tools,
    tmp_path: Path,
) -> None:
    (tmp_path / "s.yaml").write_text(f"name: Sketch\nmode: {mode}")
    quality = {"steps": 50, "guidance_scale": 4.0}
    modes = {"quality": quality, **({mode: {**quality, **here}} if here else {})}
    tools = replace(tools, sources=sources(tmp_path, generation={"modes": modes}))
    poor = replace(WORKER, styles={"Sketch": ""}, modes=("quality",))
    for others, kind in (([poor], "failed"), ([poor, replace(poor, modes=("quality", mode))], "released")):
        workers.rows = others
        await run(job(style="Sketch", reference=f"upload:{uuid4()}"), tools)
        assert [outcome for outcome, _ in queue.outcomes] == [kind]
        queue.outcomes.clear()


async def test_a_picture_beyond_its_limits_goes_to_a_worker_with_more_memory(
    queue: FakeQueue, workers: FakeWorkers, engine: FakeEngine, tools: Tools
) -> None:
    engine.info = replace(engine.info, limits=Limits(64 * 64))
    workers.rows = [replace(WORKER, limits=Limits(64 * 64)), replace(WORKER, limits=Limits(128 * 64))]
    await run(job(width=128, height=64), tools)
    assert queue.outcomes == [("released", FOR_OTHERS)]


async def test_a_picture_beyond_all_limits_fails_before_the_engine_sees_it(
    queue: FakeQueue, workers: FakeWorkers, engine: FakeEngine, tools: Tools
) -> None:
    engine.info = replace(engine.info, limits=Limits(64 * 64))
    workers.rows = [replace(WORKER, limits=Limits(64 * 64)), replace(WORKER, limits=Limits(128 * 48))]
    await run(job(width=128, height=64), tools)
    ((kind, failure),) = queue.outcomes
    assert (kind, failure.code) == ("failed", Code.TOO_LARGE)
    assert failure.message == "height: 128 x 64 is 8192 pixels, and cpu has memory for at most 4096, such as 64 x 64"
    assert not engine.working.is_set()


@pytest.mark.parametrize(
    "columns",
    [
        {"style": "Cubism"},  # nobody has it
        {"style": "Ukiyo-e", "width": 500},  # nobody can make that
        {"style": "Ukiyo-e", "mode": "turbo"},  # one has the style, the other the mode
        {"style": "Ukiyo-e", "webhook_url": "https://shop.example/done"},
    ],
)
async def test_a_job_that_no_worker_can_make_fails(
    columns: dict[str, Any], queue: FakeQueue, workers: FakeWorkers, tools: Tools
) -> None:
    workers.rows = [UKIYO_E, replace(WORKER, modes=("turbo",))]
    await run(job(**columns), tools)
    assert [kind for kind, _ in queue.outcomes] == ["failed"]


async def test_a_style_that_nobody_can_use_is_passed_to_nobody(
    queue: FakeQueue, workers: FakeWorkers, tools: Tools, tmp_path: Path
) -> None:
    (tmp_path / "lost.yaml").write_text("name: Lost\nloras: [Gone]\n")
    workers.rows = [replace(WORKER, styles={"Lost": ""})]
    await run(job(style="lost"), replace(tools, sources=sources(tmp_path)))
    ((kind, failure),) = queue.outcomes
    assert (kind, failure.message) == ("failed", "style: there is no LoRA 'Gone': none can be used here")
    assert workers.asked == 0


async def test_a_style_dropped_in_this_very_second_is_found(
    queue: FakeQueue, tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenkaigen_worker.plugin.manager.LOOK_AGAIN_SECONDS", 3600)
    tools = replace(tools, sources=sources(tmp_path))
    (tmp_path / "ukiyo-e.yaml").write_text("name: Ukiyo-e\n")
    await run(job(style="Ukiyo-e"), tools)
    assert [kind for kind, _ in queue.outcomes] == ["completed"]


async def test_a_wrong_value_asks_nobody(workers: FakeWorkers, tools: Tools) -> None:
    await run(job(width=500), tools)
    assert workers.asked == 0


async def test_nothing_fails_for_its_names_while_the_database_cannot_be_asked(
    queue: FakeQueue, workers: FakeWorkers, tools: Tools
) -> None:
    class Away(FakeWorkers):
        async def live(self) -> list[Announcement]:
            self.rows = [UKIYO_E] if self.asked else []
            self.broken = None if self.asked else DatabaseError("the database is away")
            return await super().live()

    await run(job(style="Ukiyo-e"), replace(tools, workers=Away()))
    assert [kind for kind, _ in queue.outcomes] == ["released"]


async def test_a_job_gets_its_outcome_also_where_the_workers_must_not_be_read(
    queue: FakeQueue, workers: FakeWorkers, tools: Tools
) -> None:
    workers.broken = DatabaseError("permission denied for table generation_workers", permanent=True)
    await run(job(style="Ukiyo-e"), tools)
    assert [kind for kind, _ in queue.outcomes] == ["failed"]


async def test_the_pace_is_an_average_of_what_the_engine_measured(tools: Tools) -> None:
    await run(job(count=2), tools)
    assert tools.pace.picture_ms == {"quality": 5}
    tools.pace.note("quality", {"encode": 5, "denoise": 90, "decode": 10})
    assert tools.pace.picture_ms == {"quality": 25}
