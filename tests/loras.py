"""Small LoRA files for small pipelines, in every format that is understood."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from tenkaigen_worker.resources import DEMO_MODEL


@dataclass(frozen=True, slots=True)
class Sizes:
    """How wide a transformer is, what comes from its text encoder, and what a token of its latents has."""

    width: int
    text: int
    latents: int


def demo_sizes() -> Sizes:
    """Those of the demonstration model, as its configuration says."""
    config = json.loads((DEMO_MODEL / "transformer" / "config.json").read_text(encoding="utf-8"))
    width = config["num_attention_heads"] * config["attention_head_dim"]
    return Sizes(width, config["joint_attention_dim"], config["in_channels"])


RANDOM = Sizes(48, 32, 64)  # of tests/random_pipeline.py
DEMO = demo_sizes()

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
    sizes: Sizes = RANDOM,
) -> Path:
    """Write a random LoRA and answer its path; the same arguments make the same file.

    ``alpha`` is written where the format has one, and is twice the rank unless given. ``strength`` scales the whole.
    """
    prefix, (down, up), has_alpha = FORMATS[format]
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for target in targets:
        inside, outside = shape_of(target, sizes)
        name = prefix + (target.replace(".", "_") if format == "flat" else target)
        tensors[f"{name}.{down}.weight"] = torch.randn(rank, inside, generator=generator).mul(strength).to(dtype)
        tensors[f"{name}.{up}.weight"] = torch.randn(outside, rank, generator=generator).to(dtype)
        if has_alpha:
            tensors[f"{name}.alpha"] = torch.tensor(float(2 * rank if alpha is None else alpha))
    save_file(tensors, path)
    return path


def shape_of(target: str, sizes: Sizes = RANDOM) -> tuple[int, int]:
    """How many inputs and outputs a layer has."""
    width = sizes.width
    wide = {"net.0.proj": (width, 4 * width), "net.2": (4 * width, width), "mod.1": (width, 6 * width)}
    top = {
        "img_in": (sizes.latents, width),
        "txt_in": (sizes.text, width),
        "proj_out": (width, sizes.latents),
        "norm_out.linear": (width, 2 * width),
    }
    return top.get(target) or next((shape for end, shape in wide.items() if target.endswith(end)), (width, width))
