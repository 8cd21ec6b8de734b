"""What goes where in memory, on the GPU and on the host, computed before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tenkaigen_worker.config_engine import EngineSettings
from tenkaigen_worker.engine.machine import GIB, Machine, Problem
from tenkaigen_worker.offers import Limits
from tenkaigen_worker.recipe import MAX_PIXELS

# Published sizes in bytes: the files of nunchaku-ai/nunchaku-qwen-image by rank, and of Qwen/Qwen-Image.
CHECKPOINT_BYTES = {32: 11_500_000_000, 128: 12_700_000_000}
TEXT_ENCODER_BYTES = 16_600_000_000
VAE_BYTES = 254_000_000
BLOCKS = 60


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the model's parts take as files, in bytes. ``measured`` is true where the files are present."""

    transformer: int
    text_encoder: int = TEXT_ENCODER_BYTES
    vae: int = VAE_BYTES
    measured: bool = False


def published(settings: EngineSettings) -> Sizes:
    """The sizes as published: of the largest checkpoint that is configured, since one is loaded at a time."""
    return Sizes(max(CHECKPOINT_BYTES[checkpoint.rank] for checkpoint in settings.checkpoints.values()))


@dataclass(frozen=True, slots=True)
class Plan:
    """Where each part of the model goes. Bytes throughout.

    ``transformer`` is ``resident``, or ``blocks``: then ``blocks_on_gpu`` of its blocks stay on the GPU, and LoRAs
    cannot be used. A picture of more than ``tile_above_pixels`` is decoded tile by tile.
    """

    transformer: Literal["resident", "blocks"]
    blocks_on_gpu: int
    text_encoder: Literal["nf4", "full"]
    tile_above_pixels: int
    prompt_cache_bytes: int
    room_bytes: int
    largest_pixels: int
    host_peak_bytes: int
    problems: tuple[Problem, ...] = ()

    @property
    def limits(self) -> Limits:
        """What the engine announces: no bound where all sizes fit that a request may ask for."""
        return Limits(None if self.largest_pixels >= MAX_PIXELS else self.largest_pixels)

    def batch_at(self, pixels: int) -> int:
        """How many pictures of so many pixels can be drawn together; 0 when not even one."""
        return 1 if pixels <= self.largest_pixels else 0

    def lines(self) -> tuple[str, ...]:
        """The plan in words, for the log and for ``tenkaigen doctor``."""
        return (f"transformer {self.transformer}, text encoder {self.text_encoder}",)


def make_plan(settings: EngineSettings, machine: Machine, sizes: Sizes) -> Plan:
    """Plan for the GPU that the settings name. Raises ``ValueError`` when there is none."""
    gpu = machine.gpu(settings.device)
    if gpu is None:
        raise ValueError("a plan needs a GPU")
    return Plan("resident", BLOCKS, "nf4", 1024 * 1024, settings.prompt_cache_bytes, 3 * GIB, MAX_PIXELS, 8 * GIB)
