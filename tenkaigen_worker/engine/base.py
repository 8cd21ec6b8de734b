"""What the worker sees of an engine: a recipe goes in, progress and pictures come out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tenkaigen_worker.offers import NO_LIMITS, Limits
from tenkaigen_worker.recipe import Model, Recipe


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine says of itself once its model is loaded.

    ``load_ms`` is how long that took in all, ``stages_ms`` what of it went where. ``limits`` bound what it can draw.
    """

    model: Model
    device: str
    dtype: str
    load_ms: int
    stages_ms: Mapping[str, int] = field(default_factory=dict)
    limits: Limits = NO_LIMITS


@dataclass(frozen=True, slots=True)
class Inputs:
    """The files on this machine that a recipe speaks of.

    ``loras`` finds each LoRA's safetensors file by its SHA-256. ``reference`` is an RGB picture and ``mask`` a grey one
    (white is drawn anew), both PNG of exactly the recipe's size. ``references`` are the RGB pictures of an
    edit, PNG of any size, in the recipe's order.
    """

    loras: Mapping[str, Path] = field(default_factory=dict)
    reference: Path | None = None
    mask: Path | None = None
    references: tuple[Path, ...] = ()


NO_INPUTS = Inputs()


@dataclass(frozen=True, slots=True)
class Step:
    """One message of progress: picture ``index`` of the recipe has finished ``step`` of ``total`` denoising steps.

    ``phase`` is ``encode``, ``denoise`` or ``decode``; or ``load``, where the recipe wants another checkpoint than the
    one that is loaded. ``count`` pictures, from ``index`` on, take this step together.
    """

    phase: str
    index: int
    step: int
    total: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class Picture:
    """One finished picture: ``pixels`` is H x W x 3, uint8, row by row. ``timings_ms`` per phase."""

    index: int
    seed: int
    width: int
    height: int
    pixels: bytes
    timings_ms: dict[str, int]


class Engine(Protocol):
    """One model in one process, one recipe at a time."""

    @property
    def info(self) -> EngineInfo | None:
        """What is loaded now; ``None`` while nothing is."""

    async def start(self) -> EngineInfo:
        """Start the process and load the model; a second call waits for the same load.

        Raises :class:`~tenkaigen_worker.errors.EngineError` with the cause.
        """

    def generate(
        self, recipe: Recipe, inputs: Inputs = NO_INPUTS, *, on_step: Callable[[Step], None]
    ) -> AsyncGenerator[Picture]:
        """Yield the recipe's pictures in order, each as soon as it is done. The caller sees to one recipe at a time.

        A consumer that is cancelled, or closes the generator, ends the run at the child's next step; the engine stays
        usable. Starts the process again first when it is gone. Raises ``InputError`` when the recipe cannot fit,
        ``EngineError`` when the process crashed, hung or failed.
        """

    async def stop(self) -> None:
        """End the process; what it was doing is lost."""
