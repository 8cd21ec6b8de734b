"""What the engine's child needs of a backend, and how the configured one is found."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from tenkaigen_worker.config_engine import EngineSettings
from tenkaigen_worker.engine.base import Inputs, Picture, Step
from tenkaigen_worker.errors import Code, EngineError
from tenkaigen_worker.offers import Limits
from tenkaigen_worker.recipe import Model, Recipe

INSTALL = 'pip install "tenkaigen-worker[inference]"'

Report = Callable[[Step], None]


class Stopped(Exception):
    """The run was asked to stop, and did."""


class OutOfMemory(Exception):
    """A picture did not fit into the device's memory; the device itself is fine."""


class DeviceBroken(Exception):
    """The device cannot be used by this process any more: only a new process can."""


class Backend(Protocol):
    """A loaded model. ``device`` and ``dtype`` in words; ``stages_ms`` says what of its loading took how long."""

    @property
    def model(self) -> Model: ...

    @property
    def device(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    @property
    def stages_ms(self) -> Mapping[str, int]: ...

    @property
    def limits(self) -> Limits: ...

    def pictures(
        self, recipe: Recipe, inputs: Inputs, *, first: int, lean: bool, report: Report, cancel: threading.Event
    ) -> Iterator[Picture]:
        """Make the recipe's pictures in order, from index ``first`` on, and ``report`` every step.

        ``lean`` asks for less memory at the price of time. Raises :class:`Stopped` once ``cancel`` is set,
        :class:`OutOfMemory`, or :class:`DeviceBroken`; anything else is a failure of this run alone.
        """


def load_backend(settings: EngineSettings, *, alive: Callable[[], None]) -> Backend:
    """Load the backend and model that the settings name; ``alive`` is called while that goes on.

    Raises :class:`~tenkaigen_worker.errors.EngineError` with what is wrong and what would be right.
    """
    match settings.backend:
        case "blank":
            from tenkaigen_worker.engine.blank import BlankBackend

            return BlankBackend()
        case "tiny":
            with inference_libraries("tiny"):
                from tenkaigen_worker.engine.tiny import load_tiny
            return load_tiny(settings)
        case "nunchaku":
            with inference_libraries("nunchaku"):
                from tenkaigen_worker.engine.int4 import load_nunchaku
            return load_nunchaku(settings, alive=alive)
        case "diffusers":
            with inference_libraries("diffusers"):
                from tenkaigen_worker.engine.loaders import load_diffusers
            return load_diffusers(settings, alive=alive)
        case "auto":
            with inference_libraries("auto"):
                from tenkaigen_worker.engine.int4 import load_nunchaku, nunchaku_is_ready
                from tenkaigen_worker.engine.loaders import check_auto, load_diffusers
            check_auto()
            load = load_nunchaku if nunchaku_is_ready(settings) else load_diffusers
            return load(settings, alive=alive)


@contextmanager
def inference_libraries(backend: str) -> Iterator[None]:
    """Import torch and its companions in here: what is missing or broken becomes an ``EngineError``."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise EngineError(
            Code.ENGINE_FAILED, f"engine.backend: {backend} needs {error.name}, which is not installed: {INSTALL}"
        ) from error
    except (ImportError, OSError, RuntimeError) as error:
        # diffusers imports lazily and hides what is missing behind a RuntimeError of its own.
        raise EngineError(
            Code.ENGINE_FAILED,
            f"engine.backend: {backend} cannot import its libraries ({' '.join(str(error).split())[:300]}); "
            f"install them anew: {INSTALL}",
        ) from error
