"""The engine's host and child through every failure, on a backend that fails on demand; no torch is involved."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tenkaigen_worker.config_engine import EngineSettings, PhaseLimits
from tenkaigen_worker.engine import child as child_module
from tenkaigen_worker.engine import messages
from tenkaigen_worker.engine import process as process_module
from tenkaigen_worker.engine.base import NO_INPUTS, Picture, Step
from tenkaigen_worker.engine.host import EngineProcess, silence_limit
from tenkaigen_worker.engine.process import ChildProcess, exit_words, last_words
from tenkaigen_worker.errors import Code, EngineError, InputError
from tenkaigen_worker.recipe import Recipe

RECIPE = Recipe("a fox", "", "Standard", 64, 32, "quality", 4, 1.0, "base", (7,), "blank", "blank")
LIMITS = PhaseLimits(load_seconds=30, encode_seconds=30, step_seconds=30, decode_seconds=30)
LONG = "[slow 3600]"


def settings(**changes: object) -> EngineSettings:
    return EngineSettings.model_validate({"backend": "blank", "silence": LIMITS, **changes})


def prompt(text: str, **changes: object) -> Recipe:
    return replace(RECIPE, prompt=text, **changes)


@pytest.fixture
async def make_engine() -> AsyncIterator[Callable[..., EngineProcess]]:
    """Makes engines, and holds every one of them to leaving nothing behind."""
    engines: list[EngineProcess] = []

    def make(limits: PhaseLimits = LIMITS, **changes: object) -> EngineProcess:
        engines.append(EngineProcess(settings(silence=limits, **changes)))
        return engines[-1]

    yield make
    for engine in engines:
        await engine.stop()
    assert psutil.Process().children(recursive=True) == []


@pytest.fixture
def engine(make_engine: Callable[..., EngineProcess]) -> EngineProcess:
    return make_engine()


class Client:
    """Consumes an engine, keeps what it was told, and cancels at the denoising step ``cancel_at``."""

    def __init__(self, engine: EngineProcess, *, cancel_at: int | None = None) -> None:
        self.engine = engine
        self.cancel_at = cancel_at
        self.steps: list[Step] = []
        self.stepped = asyncio.Event()
        self._task: asyncio.Task[Any] | None = None

    def on_step(self, step: Step) -> None:
        self.steps.append(step)
        self.stepped.set()
        if (step.phase, step.step) == ("denoise", self.cancel_at):
            self.cancel()

    def cancel(self) -> None:
        assert self._task is not None
        self._task.cancel()

    async def run(self, recipe: Recipe) -> list[Picture]:
        self._task = asyncio.current_task()
        return [picture async for picture in self.engine.generate(recipe, on_step=self.on_step)]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what sends no event; twenty seconds are for ever."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.01)


def gone(pid: int) -> bool:
    """Tell whether no process, or only its unreaped remains, has this id."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def assert_usable(engine: EngineProcess) -> None:
    (picture,) = await Client(engine).run(RECIPE)
    assert (picture.seed, len(picture.pixels)) == (7, 64 * 32 * 3)


async def test_pictures_come_in_order_with_every_step(engine: EngineProcess) -> None:
    client = Client(engine)
    pictures = await client.run(replace(RECIPE, seeds=(7, 8), steps=2))

    assert [(picture.index, picture.seed, picture.width, picture.height) for picture in pictures] == [
        (0, 7, 64, 32),
        (1, 8, 64, 32),
    ]
    assert pictures[0].pixels != pictures[1].pixels
    assert [(step.phase, step.index, step.step, step.total) for step in client.steps] == [
        ("encode", 0, 1, 1),
        ("denoise", 0, 1, 2),
        ("denoise", 0, 2, 2),
        ("decode", 0, 0, 1),
        ("encode", 1, 1, 1),
        ("denoise", 1, 1, 2),
        ("denoise", 1, 2, 2),
        ("decode", 1, 0, 1),
    ]


async def test_starting_twice_is_one_child_with_one_model(engine: EngineProcess) -> None:
    assert engine.info is None
    first, second = await asyncio.gather(engine.start(), engine.start())

    assert first is second is engine.info
    assert first.model.demo
    assert len(psutil.Process().children()) == 1
    assert await engine.start() is first


async def test_a_cancelled_start_does_not_stop_the_load_for_others(engine: EngineProcess) -> None:
    impatient, patient = asyncio.create_task(engine.start()), asyncio.create_task(engine.start())
    await asyncio.sleep(0)
    impatient.cancel()

    assert (await patient).model.name == "blank"
    assert impatient.cancelled()


async def test_the_child_has_no_torch_and_no_secrets(engine: EngineProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENKAIGEN_DATABASE__URL", "postgresql://user:secret@db/shop")
    monkeypatch.setenv("HF_HOME", "/somewhere")
    await engine.start()
    assert engine.pid is not None
    process = psutil.Process(engine.pid)

    assert not any(name.startswith("TENKAIGEN_") for name in process.environ())
    assert process.environ()["HF_HOME"] == "/somewhere"
    assert not any("torch" in part.path for part in process.memory_maps())


async def test_noise_on_standard_output_becomes_log_lines(
    engine: EngineProcess, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tenkaigen.engine")
    await Client(engine).run(prompt("[noise]"))
    await assert_usable(engine)
    await engine.stop()

    lines = [record.getMessage() for record in caplog.records if record.action == "engine_output"]
    assert any("noise on standard output" in line for line in lines)
    assert any("TKG1 and some raw bytes" in line for line in lines)


async def test_a_cancel_at_a_step_stops_there(engine: EngineProcess) -> None:
    client = Client(engine, cancel_at=2)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(client.run(prompt("a fox", steps=1000)))

    assert client.steps[-1].step < 1000
    await assert_usable(engine)


async def test_a_cancel_in_the_middle_of_a_long_step_stops_at_once(engine: EngineProcess) -> None:
    await engine.start()
    pid, client = engine.pid, Client(engine)
    running = asyncio.create_task(client.run(prompt(LONG)))
    await client.stepped.wait()
    client.cancel()

    with pytest.raises(asyncio.CancelledError):
        await running
    await assert_usable(engine)
    assert engine.pid == pid


async def test_a_cancel_does_not_wait_for_a_load(engine: EngineProcess) -> None:
    client = Client(engine)
    running = asyncio.create_task(client.run(RECIPE))
    await asyncio.sleep(0)
    client.cancel()

    with pytest.raises(asyncio.CancelledError):
        await running
    assert client.steps == []
    assert engine.info is None
    await assert_usable(engine)


async def test_a_consumer_that_stops_early_stops_the_run(engine: EngineProcess) -> None:
    await engine.start()
    pid, client = engine.pid, Client(engine)
    recipe = prompt("[slow 0.02]", seeds=tuple(range(1000)))
    async with aclosing(engine.generate(recipe, on_step=client.on_step)) as pictures:
        async for picture in pictures:
            assert picture.index == 0
            break

    await assert_usable(engine)
    assert engine.pid == pid


async def test_a_crash_says_how_and_why_and_the_next_run_has_a_new_child(engine: EngineProcess) -> None:
    await engine.start()
    pid = engine.pid
    with pytest.raises(EngineError) as caught:
        await Client(engine).run(prompt("[crash]"))

    assert caught.value.code is Code.ENGINE_CRASHED
    assert str(caught.value) == (
        "the engine process was killed by SIGABRT: the prompt asked the blank backend to crash"
    )
    assert (engine.info, engine.pid) == (None, None)
    await assert_usable(engine)
    assert engine.pid != pid


async def test_the_next_child_is_not_spawned_before_the_last_one_is_buried(
    engine: EngineProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.start()
    events: list[str] = []
    digging, may_end = asyncio.Event(), asyncio.Event()
    bury, spawn = ChildProcess.bury, ChildProcess.spawn

    async def slow_bury(child: ChildProcess, patience: float) -> None:
        digging.set()
        await may_end.wait()
        await bury(child, patience)
        events.append("buried")

    async def noted_spawn() -> ChildProcess:
        events.append("spawned")
        return await spawn()

    monkeypatch.setattr(ChildProcess, "bury", slow_bury)
    monkeypatch.setattr(ChildProcess, "spawn", noted_spawn)
    running = asyncio.create_task(Client(engine).run(prompt("[broken]")))
    await digging.wait()
    next_job = asyncio.create_task(engine.start())
    for _ in range(5):  # more than a start takes to spawn
        await asyncio.sleep(0)
    may_end.set()

    await next_job
    with pytest.raises(EngineError, match="broken device"):
        await running
    assert events == ["buried", "buried", "spawned"]


HALF_A_FRAME = """
import os, signal, socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
sock.recv(1)
sock.sendall(b"TKG1" + bytes(4))
os.kill(os.getpid(), signal.SIGKILL)
"""


async def test_a_child_killed_in_the_middle_of_a_frame_is_told_by_its_signal(
    engine: EngineProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_a_frame.py").write_text(HALF_A_FRAME)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(process_module, "CHILD_MODULE", "half_a_frame")

    with pytest.raises(EngineError, match="was killed by SIGKILL, perhaps by the kernel for want of memory"):
        await engine.start()


async def test_a_child_that_died_idle_is_replaced(engine: EngineProcess, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tenkaigen.engine")
    await engine.start()
    pid = engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await until(lambda: engine.info is None)

    await assert_usable(engine)
    assert engine.pid != pid
    assert "The engine process was killed by SIGKILL" in caplog.text


async def test_a_hanging_step_is_killed_past_its_limit(make_engine: Callable[..., EngineProcess]) -> None:
    engine = make_engine(LIMITS.model_copy(update={"step_seconds": 0.2}))
    await engine.start()
    pid = engine.pid
    assert pid is not None
    with pytest.raises(EngineError, match=r"nothing for 0\.2 s in denoise \(engine\.silence\.step_seconds\)") as caught:
        await Client(engine).run(prompt("[hang]"))

    assert caught.value.code is Code.ENGINE_TIMEOUT
    assert not psutil.pid_exists(pid)
    await assert_usable(engine)


async def test_a_run_that_ignores_its_cancel_is_killed_past_the_limit(
    make_engine: Callable[..., EngineProcess],
) -> None:
    engine = make_engine(LIMITS.model_copy(update={"step_seconds": 0.2, "encode_seconds": 0.2, "decode_seconds": 0.2}))
    await engine.start()
    pid = engine.pid
    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(Client(engine, cancel_at=1).run(prompt("[hang]", steps=1)))

    await assert_usable(engine)
    assert engine.pid != pid


async def test_a_silent_load_is_killed_past_its_limit(make_engine: Callable[..., EngineProcess]) -> None:
    engine = make_engine(LIMITS.model_copy(update={"load_seconds": 0.001}))
    with pytest.raises(EngineError, match=r"in load \(engine\.silence\.load_seconds\)") as caught:
        await engine.start()

    assert caught.value.code is Code.ENGINE_TIMEOUT
    assert psutil.Process().children() == []


async def test_an_unexpected_error_fails_the_run_and_keeps_the_child(
    engine: EngineProcess, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tenkaigen.engine")
    await engine.start()
    pid = engine.pid
    with pytest.raises(EngineError, match="RuntimeError: the prompt asked") as caught:
        await Client(engine).run(prompt("[fail]"))

    assert caught.value.code is Code.ENGINE_FAILED
    await assert_usable(engine)
    assert engine.pid == pid
    await engine.stop()
    assert "Traceback" in caplog.text


async def test_a_broken_device_gets_a_new_child(engine: EngineProcess) -> None:
    await engine.start()
    pid = engine.pid
    with pytest.raises(EngineError, match="broken device"):
        await Client(engine).run(prompt("[broken]"))

    await assert_usable(engine)
    assert engine.pid != pid


async def test_out_of_memory_is_tried_leaner_and_then_too_large(engine: EngineProcess) -> None:
    await engine.start()
    pid = engine.pid
    pictures = await Client(engine).run(prompt("[oom once]", seeds=(1, 2)))
    assert [picture.seed for picture in pictures] == [1, 2]

    with pytest.raises(InputError, match="64 x 32 does not fit into the memory") as caught:
        await Client(engine).run(prompt("[oom]"))
    assert caught.value.code is Code.TOO_LARGE
    assert engine.pid == pid


async def test_signals_to_the_whole_group_are_left_to_the_parent(engine: EngineProcess) -> None:
    await engine.start()
    pid = engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)

    await assert_usable(engine)
    assert engine.pid == pid


async def test_stopping_in_the_middle_of_a_run_fails_the_run(engine: EngineProcess) -> None:
    client = Client(engine)
    running = asyncio.create_task(client.run(prompt(LONG)))
    await client.stepped.wait()
    await engine.stop()

    with pytest.raises(EngineError, match="stopped"):
        await running
    await engine.stop()


async def test_stopping_in_the_middle_of_a_load_leaves_nothing(engine: EngineProcess) -> None:
    starting = asyncio.create_task(engine.start())
    await until(lambda: psutil.Process().children() != [])
    await engine.stop()

    with pytest.raises(asyncio.CancelledError):
        await starting
    assert psutil.Process().children() == []


async def test_the_child_ends_with_its_socket_even_in_the_middle_of_a_step() -> None:
    process = await ChildProcess.spawn()
    process.send(messages.Load(settings()))
    assert isinstance(await process.receive(30), messages.Loaded)
    process.send(messages.Run(1, prompt("[hang]"), NO_INPUTS))
    assert isinstance(await process.receive(30), messages.Progress)

    process._channel.close()
    await process.bury(20)

    assert process.obituary() == f"ended with status {child_module.EXIT_PARENT_LOST}"


PARENT = """
import asyncio
from tenkaigen_worker.config_engine import EngineSettings
from tenkaigen_worker.engine.host import EngineProcess
from tenkaigen_worker.recipe import Recipe

async def main():
    engine = EngineProcess(EngineSettings(backend="blank"))
    await engine.start()
    recipe = Recipe("[hang]", "", "", 64, 64, "quality", 1, 1.0, "base", (1,), "blank", "blank")
    tell = lambda step: print(engine.pid, flush=True)
    async for _ in engine.generate(recipe, on_step=tell):
        pass

asyncio.run(main())
"""


async def test_a_killed_parent_takes_its_child_along() -> None:
    command = (sys.executable, "-c", PARENT)
    parent = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    child = int(await parent.stdout.readline())
    parent.kill()

    await until(lambda: gone(child))
    await parent.wait()


async def test_a_child_that_breaks_the_protocol_is_killed(engine: EngineProcess) -> None:
    await engine.start()
    child = engine._child
    assert child is not None
    child.send(messages.Loaded(engine.info))  # type: ignore[arg-type] # not a word a parent may say

    with pytest.raises(EngineError):
        await Client(engine).run(RECIPE)
    await assert_usable(engine)


@pytest.mark.parametrize(
    ("step", "limit"),
    [
        (Step("load", 0, 0, 1), "load_seconds"),
        (Step("encode", 0, 0, 1), "encode_seconds"),
        (Step("encode", 0, 1, 1), "step_seconds"),
        (Step("denoise", 0, 3, 4), "step_seconds"),
        (Step("decode", 0, 0, 1), "decode_seconds"),
    ],
)
def test_each_phase_has_its_own_limit(step: Step, limit: str) -> None:
    limits = PhaseLimits(load_seconds=1, encode_seconds=2, step_seconds=3, decode_seconds=4)

    assert silence_limit(step, limits) == getattr(limits, limit)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "was stopped"),
        (3, "ended with status 3"),
        (-9, "was killed by SIGKILL, perhaps by the kernel for want of memory"),
        (-6, "was killed by SIGABRT"),
        (-1000, "was killed by signal 1000"),
    ],
)
def test_how_a_process_ended_in_words(status: int, words: str) -> None:
    assert exit_words(status) == words


@pytest.mark.parametrize(
    ("tail", "cause"),
    [
        ([], ""),
        (["loading", "CUDA error: device-side assert"], "CUDA error: device-side assert"),
        (["libfoo: bad state", "Fatal Python error: Aborted", "Thread 0x1:", "  File"], "libfoo: bad state"),
        (["Fatal Python error: Segmentation fault", "Thread 0x1:"], "Fatal Python error: Segmentation fault"),
    ],
)
def test_the_cause_is_what_was_said_before_the_stacks(tail: list[str], cause: str) -> None:
    assert last_words(tail) == cause
