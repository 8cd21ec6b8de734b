"""Which device a model runs on, with which number type, and how it fits into the device's memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from tenkaigen_worker.config_engine import EngineSettings
from tenkaigen_worker.errors import Code, EngineError

GIB = 1024**3

# Room for activations besides the weights: a picture of 1024 x 1024 with guidance, and its decoding.
HEADROOM_BYTES = 4 * GIB

Offload = Literal["none", "model", "sequential"]


def choose_device(wanted: str) -> torch.device:
    """Find the device that ``engine.device`` names; ``auto`` is the first GPU where there is one.

    Raises ``EngineError`` when it is not there.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise EngineError(
            Code.ENGINE_FAILED,
            f"engine.device: {wanted}, but torch {torch.__version__} sees no CUDA GPU; check nvidia-smi and that torch "
            "is a CUDA build, or use engine.device: cpu",
        )

    index = torch.device(wanted).index or 0 if wanted != "auto" else 0
    if index >= torch.cuda.device_count():
        raise EngineError(
            Code.ENGINE_FAILED,
            f"engine.device: {wanted}, but the last GPU here is cuda:{torch.cuda.device_count() - 1}",
        )
    return torch.device("cuda", index)


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """Find the number type that ``engine.dtype`` names; ``auto`` is bfloat16 where the GPU has it, else float32."""
    if wanted == "auto":
        has_bfloat16 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if has_bfloat16 else torch.float32
    return torch.bfloat16 if wanted == "bfloat16" else torch.float32


def limit_threads(settings: EngineSettings) -> None:
    """Hold torch to ``engine.threads`` CPU threads, if that is set."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a model's weights take, in bytes: all of them, and the largest of its components."""

    total: int
    largest: int


def choose_offload(wanted: Offload | Literal["auto"], footprint: Footprint, free_bytes: int) -> tuple[Offload, str]:
    """Decide what stays on the GPU, from the memory free there; also answer why, in words."""
    if wanted != "auto":
        return wanted, "as configured"

    have = f"{free_bytes / GIB:.1f} GiB free"
    if footprint.total + HEADROOM_BYTES <= free_bytes:
        return "none", f"all weights ({footprint.total / GIB:.1f} GiB) fit, {have}"
    if footprint.largest + HEADROOM_BYTES <= free_bytes:
        return "model", f"only one component at a time fits (the largest has {footprint.largest / GIB:.1f} GiB), {have}"
    return "sequential", f"the largest component ({footprint.largest / GIB:.1f} GiB) does not fit, {have}; this is slow"


# What one token takes while it passes a block of the transformer, in multiples of the block's width: the residual
# stream, its modulated copy, queries, keys, values and attention's output for picture and text, and twice the hidden
# layer of the MLP, which is four times as wide. An estimate: a batch that does not fit after all is drawn one by one.
WIDTHS_PER_TOKEN = 24


def fitting_batch(most: int, tokens: int, transformer: Any, device: torch.device) -> int:
    """How many pictures of so many tokens, at most ``most``, the transformer can draw together in the free GPU memory.

    Guidance makes no difference: its two forwards run one after the other.
    """
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    weights = list(transformer.parameters())
    if weights[0].device != device:  # offloaded: it must come first
        free -= sum(tensor.nbytes for tensor in weights)
    width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    each = tokens * width * WIDTHS_PER_TOKEN * transformer.dtype.itemsize
    return max(1, min(most, int(free // each)))
