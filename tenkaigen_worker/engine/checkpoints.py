"""Which of the configured transformers is loaded: one at a time, because two do not fit."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tenkaigen_worker.engine.backend import DeviceBroken, OutOfMemory
from tenkaigen_worker.engine.faults import device_errors, free_memory, synchronize
from tenkaigen_worker.errors import FieldProblem, InputError

log = logging.getLogger("tenkaigen.engine")


class Checkpoints:
    """The transformers that a model can draw with, and which of them is loaded.

    ``files`` finds their files by what recipes call them, the usual one first. ``load`` makes a transformer of a file,
    on ``device``. ``there`` is the usual one's transformer where it is loaded already.
    """

    def __init__(
        self, files: Mapping[str, Path], load: Callable[[Path], Any], device: torch.device, *, there: Any = None
    ) -> None:
        self._files = files
        self._load = load
        self._device = device
        self._positions: Any = None if there is None else there.pos_embed
        self._loaded = (
            None if there is None else self._find(None)
        )  # while none is: before the first, and after a load that failed

    def loaded(self, identity: str | None) -> bool:
        """Whether the checkpoint that a recipe means is the one at hand; ``None`` means the usual one.

        Raises ``InputError`` when there is none of that name.
        """
        return self._find(identity) == self._loaded

    def first(self) -> Any:
        """Load the usual one's transformer."""
        return self._make(self._find(None))

    def switch(self, identity: str | None) -> tuple[Any, int]:
        """Load another one's transformer, and answer the milliseconds that it took.

        The caller has let go of the one before, to the last reference. When this fails none is loaded, and the next run
        loads its own. Raises ``EngineError`` for a file that cannot be loaded, and :class:`~.backend.DeviceBroken`.
        """
        wanted, started = self._find(identity), time.monotonic()
        free_memory(self._device)
        try:
            with device_errors(self._device):
                transformer = self._make(wanted)
                synchronize(self._device)
        except OutOfMemory as error:
            # No picture is too large here, and what is left may lie all over the memory: a new process starts clean.
            raise DeviceBroken(f"{wanted} does not fit into {self._device}: {error}") from None
        taken = round((time.monotonic() - started) * 1000)
        extra = {"action": "checkpoint_switched", "ms": taken, "checkpoint": wanted}
        log.info("Changed to checkpoint %s in %d ms", wanted, taken, extra=extra)
        return transformer, taken

    def _find(self, identity: str | None) -> str:
        if identity is None:
            return next(iter(self._files))
        if identity not in self._files:
            known = ", ".join(self._files)
            raise InputError.of(
                [FieldProblem("checkpoint", f"there is no {identity} on this worker; there is {known}")]
            )
        return identity

    def _make(self, identity: str) -> Any:
        self._loaded = None
        transformer = self._load(self._files[identity])
        # diffusers keeps what this module computes for as long as the process lives, on the GPU too, for every one that
        # is ever made: all transformers share the first.
        if self._positions is None:
            self._positions = transformer.pos_embed
        transformer.pos_embed = self._positions
        self._loaded = identity
        return transformer
