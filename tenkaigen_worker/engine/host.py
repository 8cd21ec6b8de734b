"""The engine as the worker sees it: one child process, started, watched, canceled, killed and started again."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Callable
from typing import NoReturn

from tenkaigen_worker.config_engine import EngineSettings, PhaseLimits
from tenkaigen_worker.engine.base import NO_INPUTS, EngineInfo, Inputs, Picture, Step
from tenkaigen_worker.engine.messages import (
    Cancel,
    Canceled,
    Done,
    Failed,
    Load,
    Loaded,
    Loading,
    Message,
    PictureReady,
    Progress,
    Run,
    Shutdown,
)
from tenkaigen_worker.engine.process import ChildEnded, ChildProcess
from tenkaigen_worker.errors import Code, EngineError, Fault, InputError, JobError
from tenkaigen_worker.recipe import Recipe

log = logging.getLogger("tenkaigen.engine")

STOP_SECONDS = 5.0
EXIT_SECONDS = 2.0


class EngineProcess:
    """An :class:`~tenkaigen_worker.engine.base.Engine` whose model lives in a child process.

    One recipe at a time, and the caller holds the turn: in the worker that is ``EngineTurns``; ``tenkaigen generate``
    has only one recipe. Belongs to one event loop, which should run in the process's main thread: Linux ends the child
    together with the thread that started it.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._child: ChildProcess | None = None  # until it is buried: it may hold the GPU to its last breath
        self._loading: asyncio.Task[EngineInfo] | None = None
        self._settling: asyncio.Task[None] | None = None
        self._runs = itertools.count(1)

    @property
    def info(self) -> EngineInfo | None:
        """What is loaded now; ``None`` while nothing is."""
        return self._child.info if self._child is not None and not self._child.ended else None

    @property
    def pid(self) -> int | None:
        """The child's process id; ``None`` while there is no child."""
        return self._child.pid if self._child is not None and not self._child.ended else None

    async def start(self) -> EngineInfo:
        """Start the child and load the model; a second call waits for the same load.

        A cancelled caller does not stop the load: only :meth:`stop` does. Raises ``EngineError`` with the cause.
        """
        if self.info is not None:
            return self.info
        if self._loading is None or self._loading.done():
            self._loading = asyncio.create_task(self._load(), name="engine load")
            self._loading.add_done_callback(_look_at)
        return await asyncio.shield(self._loading)

    async def generate(
        self, recipe: Recipe, inputs: Inputs = NO_INPUTS, *, on_step: Callable[[Step], None]
    ) -> AsyncGenerator[Picture]:
        """Yield the recipe's pictures in order; see :meth:`tenkaigen_worker.engine.base.Engine.generate`."""
        child = await self._get_ready()
        run = next(self._runs)
        child.send(Run(run, recipe, inputs))
        step = Step("encode", 0, 0, 1)
        over = False
        try:
            while not over:
                match await self._next(child, silence_limit(step, self._settings.silence), doing=step.phase):
                    case Progress(step=step):
                        on_step(step)
                    case PictureReady(picture=picture):
                        step = Step("denoise", picture.index + 1, 0, recipe.steps)
                        yield picture
                    case ending:
                        over = True
                        await self._end_run(child, ending)
        finally:
            # The consumer went away in the middle: it does not wait until the child has noticed.
            if not over and child.info is not None:
                self._settling = asyncio.create_task(self._settle(child, run, step), name="engine settle")

    async def stop(self) -> None:
        """Ask the child to end, and kill it if it has not within a few seconds; what it was doing is lost."""
        tasks = [task for task in (self._loading, self._settling) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._child is not None:
            self._child.send(Shutdown())
            await self._discard(self._child, patience=STOP_SECONDS)

    async def _load(self) -> EngineInfo:
        if self._child is not None:
            gone, idle = self._child, self._child.info is not None
            await self._discard(gone, patience=EXIT_SECONDS)
            if idle:
                log.warning("The engine process %s", gone.obituary(), extra={"action": "engine_ended"})

        try:
            child = self._child = await ChildProcess.spawn()
        except OSError as error:
            raise EngineError(Code.ENGINE_FAILED, f"the engine process cannot be started: {error}") from error
        child.send(Load(self._settings))
        try:
            message: Message = Loading()
            while isinstance(message, Loading):
                message = await self._next(child, self._settings.silence.load_seconds, doing="load")
            if not isinstance(message, Loaded):
                await self._fail(child, message)
        except asyncio.CancelledError:
            await self._discard(child, patience=0)
            raise

        info = child.info = message.info
        extra = {"pid": child.pid, "backend": info.model.backend, "load_ms": info.load_ms, "stages_ms": info.stages_ms}
        log.info("%s", _ready(info), extra={"action": "engine_ready", **extra})
        return info

    async def _get_ready(self) -> ChildProcess:
        """Wait until the child is idle and loaded."""
        if self._settling is not None:
            await asyncio.wait({self._settling})
            self._settling = None
        await self.start()
        if self._child is None or self.info is None:
            raise EngineError(Code.ENGINE_FAILED, "the engine was stopped before this ran")
        return self._child

    async def _next(self, child: ChildProcess, limit: float, *, doing: str) -> Message:
        """Wait for the child's next word; past the limit, or when it ended, see to its end and raise why."""
        try:
            return await child.receive(limit)
        except TimeoutError:
            await self._discard(child, patience=0)
            setting = f"engine.silence.{'step' if doing == 'denoise' else doing}_seconds"
            text = f"the engine process said nothing for {limit:g} s in {doing} ({setting}) and was killed"
            log.error("%s", text[0].upper() + text[1:], extra={"action": "engine_silent", "pid": child.pid})
            raise EngineError(Code.ENGINE_TIMEOUT, text) from None
        except ChildEnded:
            await self._discard(child, patience=EXIT_SECONDS)
            text = f"the engine process {child.obituary()}"
            log.error("%s", text[0].upper() + text[1:], extra={"action": "engine_crashed", "pid": child.pid})
            raise EngineError(Code.ENGINE_CRASHED, text) from None

    async def _end_run(self, child: ChildProcess, ending: Message) -> None:
        match ending:
            case Done():
                return
            case Canceled():
                raise EngineError(Code.ENGINE_FAILED, "the engine was stopped while this ran")
            case _:
                await self._fail(child, ending)

    async def _fail(self, child: ChildProcess, message: Message) -> NoReturn:
        """Raise what the child reported; a child that cannot go on is seen to its end first."""
        if not isinstance(message, Failed):
            await self._discard(child, patience=0)
            name = type(message).__name__
            raise EngineError(Code.ENGINE_CRASHED, f"the engine process said {name} out of turn and was killed")

        if message.fatal:
            await self._discard(child, patience=EXIT_SECONDS)
        if message.code.fault is Fault.INPUT:
            raise InputError(message.message, code=message.code)
        raise EngineError(message.code, message.message)

    async def _settle(self, child: ChildProcess, run: int, step: Step) -> None:
        """Stop a run that nobody waits for any more; ``step`` is the last that it reported."""
        silence = self._settings.silence
        now = silence_limit(step, silence)
        limit = max(now, silence.encode_seconds, silence.step_seconds, silence.decode_seconds)
        child.send(Cancel(run))
        try:
            while isinstance(message := await self._next(child, limit, doing="step"), Progress | PictureReady):
                pass
            if isinstance(message, Failed):
                await self._fail(child, message)
        except JobError as error:
            log.warning("A run that was given up ended badly: %s", error, extra={"action": "engine_settle"})

    async def _discard(self, child: ChildProcess, *, patience: float) -> None:
        """Take a child out of use and see to its end; the next one is not spawned before that."""
        child.info = None
        await child.bury(patience)
        if self._child is child:
            self._child = None


def silence_limit(step: Step, limits: PhaseLimits) -> float:
    """How long the child may be silent after it reported ``step``, in seconds."""
    if step.phase == "load":
        return limits.load_seconds
    if step.phase == "encode" and step.step < step.total:
        return limits.encode_seconds
    if step.phase == "decode":
        return limits.decode_seconds
    return limits.step_seconds


def _ready(info: EngineInfo) -> str:
    text = f"Model {info.model.name} is ready on {info.device} ({info.dtype}) after {info.load_ms / 1000:.1f} s"
    stages = ", ".join(f"{name} {ms / 1000:.1f} s" for name, ms in info.stages_ms.items())
    return f"{text}: {stages}" if stages else text


def _look_at(task: asyncio.Task[EngineInfo]) -> None:
    """Take note of a failed load that nobody waits for any more."""
    if not task.cancelled():
        task.exception()
