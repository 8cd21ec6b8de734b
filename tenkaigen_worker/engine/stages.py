"""What loading a model is made of, how long each part takes, and the picture at its end that nobody waits for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tenkaigen_worker.engine.backend import Backend, DeviceBroken, OutOfMemory
from tenkaigen_worker.engine.base import NO_INPUTS
from tenkaigen_worker.errors import Code, EngineError
from tenkaigen_worker.recipe import warm_up


class Stages:
    """Measures the stages of a load in ``ms``, in milliseconds, and calls ``alive`` between them."""

    def __init__(self, alive: Callable[[], None]) -> None:
        self._alive = alive
        self.ms: dict[str, int] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure what happens inside as one stage."""
        self._alive()
        started = time.monotonic()
        yield
        self.ms[name] = round((time.monotonic() - started) * 1000)


def make_warm(backend: Backend, alive: Callable[[], None]) -> None:
    """Make the smallest picture, so that the first job neither waits for kernels nor meets what does not work at all.

    Raises ``EngineError`` when it fails.
    """
    recipe, never = warm_up(backend.model), threading.Event()
    try:
        for _ in backend.pictures(recipe, NO_INPUTS, first=0, lean=False, report=lambda step: alive(), cancel=never):
            alive()
    except OutOfMemory as error:
        raise EngineError(
            Code.ENGINE_FAILED,
            f"{backend.model.name} is loaded, but {backend.device} has no memory left to draw a picture of "
            f"{recipe.width} x {recipe.height}",
        ) from error
    except DeviceBroken as error:
        raise EngineError(Code.ENGINE_FAILED, str(error)) from error
