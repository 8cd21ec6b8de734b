"""Small LoRA files for the tiny pipeline, in every format that is understood."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

WIDTH = 48
TARGETS = ("transformer_blocks.0.attn.to_q", "transformer_blocks.1.attn.to_out.0", "transformer_blocks.1.img_mlp.net.2")

# A target's prefix, the names of its two parts, and whether an alpha goes with them.
FORMATS = {
    "diffusers": ("transformer.", ("lora_A", "lora_B"), False),
    "bare": ("", ("lora_A", "lora_B"), False),
    "kohya": ("", ("lora_down", "lora_up"), True),
    "comfy": ("diffusion_model.", ("lora_A", "lora_B"), False),
    "flat": ("lora_unet_", ("lora_down", "lora_up"), True),
}


def make_lora(
    path: Path,
    *,
    rank: int = 4,
    targets: Sequence[str] = TARGETS,
    seed: int = 0,
    format: str = "diffusers",
    alpha: float | None = None,
    strength: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a random LoRA for the tiny transformer and answer its path; the same arguments make the same file.

    ``alpha`` is written where the format has one, and is twice the rank unless given. ``strength`` scales the whole.
    """
    prefix, (down, up), has_alpha = FORMATS[format]
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for target in targets:
        inside, outside = shape_of(target)
        name = prefix + (target.replace(".", "_") if format == "flat" else target)
        tensors[f"{name}.{down}.weight"] = torch.randn(rank, inside, generator=generator).mul(strength).to(dtype)
        tensors[f"{name}.{up}.weight"] = torch.randn(outside, rank, generator=generator).to(dtype)
        if has_alpha:
            tensors[f"{name}.alpha"] = torch.tensor(float(2 * rank if alpha is None else alpha))
    save_file(tensors, path)
    return path


def shape_of(target: str) -> tuple[int, int]:
    """How many inputs and outputs a layer of the tiny transformer has."""
    wide = {"net.0.proj": (WIDTH, 4 * WIDTH), "net.2": (4 * WIDTH, WIDTH), "mod.1": (WIDTH, 6 * WIDTH)}
    top = {"img_in": (64, WIDTH), "txt_in": (32, WIDTH), "proj_out": (WIDTH, 64), "norm_out.linear": (WIDTH, 2 * WIDTH)}
    return top.get(target) or next((shape for end, shape in wide.items() if target.endswith(end)), (WIDTH, WIDTH))
