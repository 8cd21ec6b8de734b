"""What goes where in memory, on the GPU and on the host, computed before anything is loaded.

Weights count as the files that are here, else as published; everything else as :mod:`.footprint` derives it, which
makes the plan an estimate, and it says so.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tenkaigen_worker.config_engine import EngineSettings
from tenkaigen_worker.engine.footprint import (
    BETWEEN_BLOCKS_BYTES,
    BLOCKS,
    BUFFER_BLOCKS,
    CHECKPOINT_BYTES,
    HOST_BASE_BYTES,
    LARGEST_SHARD_BYTES,
    LORA_BYTES_PER_RANK,
    NF4_SHARE,
    PIXELS_PER_TOKEN,
    RESERVE_BYTES,
    TEXT_ENCODER_BYTES,
    USUAL_PIXELS,
    USUAL_RANK,
    VAE_BYTES,
    denoising_bytes,
    drawing_bytes,
)
from tenkaigen_worker.engine.machine import GIB, Gpu, Machine, Problem
from tenkaigen_worker.offers import Limits
from tenkaigen_worker.recipe import EDIT_PIXELS, MAX_PIXELS

# The most pictures that a job may ask for, and the most that one may change.
MOST_TOGETHER = 8
MOST_REFERENCES = 3


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the model's parts take as files, in bytes. ``measured`` is true where the files are present."""

    transformer: int
    text_encoder: int = TEXT_ENCODER_BYTES
    vae: int = VAE_BYTES
    measured: bool = False

    @classmethod
    def of(cls, checkpoints: Iterable[Path], model: Path) -> Sizes:
        """The sizes of files that are here: of the largest checkpoint, and of a pipeline's folder."""
        text_encoder, vae = (
            sum(file.stat().st_size for file in (model / part).glob("*.safetensors"))
            for part in ("text_encoder", "vae")
        )
        return cls(max(file.stat().st_size for file in checkpoints), text_encoder, vae, measured=True)


def published(settings: EngineSettings) -> Sizes:
    """The sizes as published: of the largest checkpoint that is configured, since one is loaded at a time."""
    return Sizes(CHECKPOINT_BYTES[_rank(settings)])


@dataclass(frozen=True, slots=True)
class Plan:
    """Where each part of the model goes. Bytes throughout.

    ``transformer`` is ``resident``, or ``blocks``: then ``blocks_on_gpu`` of its blocks stay on the GPU, the others
    come when it is their turn, and LoRAs cannot be used. Pictures of more than ``tile_above_pixels`` are decoded tile
    by tile. ``room_bytes`` are for drawing; ``lora_bytes`` beside them for LoRAs of rank ``lora_rank`` in all.
    ``largest_pixels`` can be drawn, an edit's references among them, and ``most_pixels`` may be asked for.
    ``host_peak_bytes`` is main memory, while loading.
    """

    transformer: Literal["resident", "blocks"]
    blocks_on_gpu: int
    text_encoder: Literal["nf4", "full"]
    tile_above_pixels: int
    prompt_cache_bytes: int
    lora_bytes: int
    lora_rank: int
    room_bytes: int
    largest_pixels: int
    most_pixels: int
    host_peak_bytes: int
    sizes: Sizes
    text_encoder_bytes: int
    usable_bytes: int
    problems: tuple[Problem, ...] = ()

    @property
    def limits(self) -> Limits:
        """What the engine announces: no bound where all fits that a request may ask for."""
        return Limits(None if self.largest_pixels >= self.most_pixels else self.largest_pixels)

    def batch_at(self, pixels: int) -> int:
        """How many pictures of so many pixels can be drawn together; 0 when not even one fits."""
        fitting = self.room_bytes // denoising_bytes(pixels) if pixels <= self.largest_pixels else 0
        return min(fitting, MOST_TOGETHER)

    def lines(self) -> tuple[str, ...]:
        """The plan in words, for the log and for ``tenkaigen doctor``."""
        return tuple(_lines(self))


def make_plan(settings: EngineSettings, machine: Machine, sizes: Sizes) -> Plan:
    """Plan for the GPU that the settings name. What does not fit stands in the plan's ``problems``.

    Raises ``ValueError`` when there is no GPU.
    """
    gpu = machine.gpu(settings.device)
    if gpu is None:
        raise ValueError("a plan needs a GPU")
    usable = min(gpu.total_bytes - RESERVE_BYTES, gpu.free_bytes)
    kept_as = _text_encoder(settings, usable, sizes)
    text_encoder_bytes = sizes.text_encoder if kept_as == "full" else round(sizes.text_encoder * NF4_SHARE)

    left = usable - sizes.vae - text_encoder_bytes
    usual = _usual_bytes(settings)
    blocks, taken = _transformer(left, sizes, usual)
    left -= taken
    rank, lora_bytes = _loras(settings, left) if blocks == BLOCKS else (0, 0)
    room = left - lora_bytes
    host_peak = _host_peak(settings, sizes, blocks)
    most = MAX_PIXELS + (MOST_REFERENCES * EDIT_PIXELS if settings.edit_model else 0)
    return Plan(
        transformer="resident" if blocks == BLOCKS else "blocks",
        blocks_on_gpu=blocks,
        text_encoder=kept_as,
        tile_above_pixels=_largest(room, MAX_PIXELS, tiled=False),
        prompt_cache_bytes=settings.prompt_cache_bytes,
        lora_bytes=lora_bytes,
        lora_rank=rank,
        room_bytes=room,
        largest_pixels=_largest(room, most, tiled=True),
        most_pixels=most,
        host_peak_bytes=host_peak,
        sizes=sizes,
        text_encoder_bytes=text_encoder_bytes,
        usable_bytes=usable,
        problems=(*_gpu_problems(gpu, kept_as, usual - room), *_host_problems(machine, host_peak)),
    )


def _rank(settings: EngineSettings) -> int:
    return max(checkpoint.rank for checkpoint in settings.checkpoints.values())


def _text_encoder(settings: EngineSettings, usable: int, sizes: Sizes) -> Literal["nf4", "full"]:
    """Keep it whole only where everything fits beside it."""
    wanted = settings.nunchaku.text_encoder
    if wanted != "auto":
        return wanted
    left = usable - sizes.vae - sizes.text_encoder - sizes.transformer
    return "full" if _loras(settings, left)[0] == USUAL_RANK else "nf4"


def _usual_bytes(settings: EngineSettings) -> int:
    """What the usual picture needs, which every plan leaves room for: where edits are made, with one reference."""
    return drawing_bytes(USUAL_PIXELS + (EDIT_PIXELS if settings.edit_model else 0), tiled=True)


def _transformer(left: int, sizes: Sizes, needed: int) -> tuple[int, int]:
    """How many blocks stay on the GPU, at least one, and what the transformer takes there."""
    if sizes.transformer + needed <= left:
        return BLOCKS, sizes.transformer
    block = _block(sizes)
    fitting = (left - needed - BETWEEN_BLOCKS_BYTES) // block - BUFFER_BLOCKS
    blocks = max(1, min(fitting, BLOCKS - BUFFER_BLOCKS - 1))
    return blocks, BETWEEN_BLOCKS_BYTES + (blocks + BUFFER_BLOCKS) * block


def _block(sizes: Sizes) -> int:
    return max(1, (sizes.transformer - BETWEEN_BLOCKS_BYTES) // BLOCKS)


def _loras(settings: EngineSettings, left: int) -> tuple[int, int]:
    """Which rank LoRAs may have together beside the usual picture, up to the usual one, and what that takes.

    A branch that is appended to is copied first, and the LoRA is kept besides.
    """
    spare = left - _usual_bytes(settings)
    own = _rank(settings)
    rank = max(0, min(USUAL_RANK, (spare // LORA_BYTES_PER_RANK - own) // 2))
    return rank, (own + 2 * rank) * LORA_BYTES_PER_RANK if rank else 0


def _largest(room: int, most: int, *, tiled: bool) -> int:
    """The most pixels, up to ``most``, that can be drawn in so much room."""
    sizes = range(PIXELS_PER_TOKEN, most + 1, PIXELS_PER_TOKEN)
    fitting = bisect_right(sizes, room, key=lambda pixels: drawing_bytes(pixels, tiled=tiled))
    return fitting * PIXELS_PER_TOKEN


def _host_peak(settings: EngineSettings, sizes: Sizes, blocks: int) -> int:
    """Main memory while loading.

    Files are mapped, and the system takes their pages back when it needs them; a shard of the text encoder counts all
    the same, because it is read and quantised tensor by tensor. Blocks that wait there are copied, at first all.
    """
    shard = min(sizes.text_encoder, LARGEST_SHARD_BYTES)
    base = HOST_BASE_BYTES + settings.prompt_cache_bytes
    if blocks == BLOCKS:
        return base + shard
    return base + max(sizes.transformer, (BLOCKS - blocks) * _block(sizes) + shard)


def _gpu_problems(gpu: Gpu, text_encoder: str, lacking: int) -> Iterator[Problem]:
    if lacking <= 0:
        return
    in_use = gpu.total_bytes - RESERVE_BYTES - gpu.free_bytes
    found = f"{gib(lacking)} too little on {gpu.name}, which has {gib(gpu.total_bytes)} (estimate)"
    if in_use > 0:
        yield Problem(
            "GPU memory",
            f"{found}; {gib(gpu.total_bytes - gpu.free_bytes)} of it is in use",
            "End what else uses this GPU: nvidia-smi shows it. A worker that runs on it already is one of them",
        )
    elif text_encoder == "full":
        yield Problem("GPU memory", found, "Set engine.nunchaku.text_encoder to nf4: that takes about a third")
    else:
        yield Problem(
            "GPU memory", found, "Use a GPU with 12 GB or more; engine.backend: tiny runs on this one, to try things"
        )


def _host_problems(machine: Machine, peak: int) -> Iterator[Problem]:
    takes = f"loading takes about {gib(peak)} (estimate)"
    if machine.host_bytes < peak:
        yield Problem(
            "Main memory",
            f"{gib(machine.host_bytes)} in all, and {takes}",
            "Use a machine, or a container, with more of it: 16 GB do where the GPU has 24 GB, 32 GB where it has less",
        )
    elif machine.host_available_bytes < peak:
        yield Problem(
            "Main memory",
            f"{gib(machine.host_available_bytes)} of {gib(machine.host_bytes)} are free, and {takes}",
            "End other programs. A worker that runs here already is one of them",
        )


def _lines(plan: Plan) -> Iterator[str]:
    how = "as the files here" if plan.sizes.measured else "as published"
    yield f"weights {how}, everything else an estimate; {gib(plan.usable_bytes)} of the GPU can be used"
    where = "on the GPU"
    if plan.transformer == "blocks":
        where = f"{plan.blocks_on_gpu} of {BLOCKS} blocks on the GPU, the others in main memory: slower, and no LoRAs"
    yield f"transformer: {gib(plan.sizes.transformer)}, {where}"
    kind = "whole" if plan.text_encoder == "full" else "in NF4"
    yield f"text encoder: {gib(plan.text_encoder_bytes)}, {kind}, on the GPU; VAE: {gib(plan.sizes.vae)}"
    if plan.transformer == "resident":
        yield f"LoRAs: {gib(plan.lora_bytes)}, of rank {plan.lora_rank} in all"
    edits = ", the references of an edit counted" if plan.most_pixels > MAX_PIXELS else ""
    yield (
        f"drawing: {gib(plan.room_bytes)}; up to {megapixels(plan.largest_pixels)}{edits}, "
        f"decoded in tiles above {megapixels(plan.tile_above_pixels)}; "
        f"at 1024 x 1024 up to {plan.batch_at(USUAL_PIXELS)} together"
    )
    yield f"main memory: up to {gib(plan.host_peak_bytes)} while loading, {gib(plan.prompt_cache_bytes)} of it prompts"


def gib(size: int) -> str:
    """Bytes in words."""
    return f"{size / GIB:.1f} GiB"


def megapixels(pixels: int) -> str:
    """Pixels in words, with the square that has about as many."""
    side = int(pixels**0.5) // 16 * 16
    return f"{pixels / 1e6:.1f} megapixels ({side} x {side})"
