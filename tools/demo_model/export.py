"""The finished model as a pipeline folder: float16, with little to store where nothing was learned."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImagePipeline
from torch import Tensor, nn

from tools.demo_model.diffusion import Denoiser

# The real model's scheduler, but with a shift for 64 tokens instead of thousands.
SCHEDULER: dict[str, Any] = {
    "base_shift": 0.9,
    "max_shift": 0.9,
    "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
    "use_dynamic_shifting": True,
}


def export(denoiser: Denoiser, vae: AutoencoderKLQwenImage, scale: Mapping[str, list[float]], folder: Path) -> None:
    """Write the pipeline, with the averaged weights, so that ``QwenImagePipeline.from_pretrained`` reads it."""
    vae.register_to_config(**scale)
    denoiser.both.load_state_dict(denoiser.average.weights)
    _forget_unused(denoiser)
    pipe = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER),
        vae=vae,
        text_encoder=denoiser.encoder,
        tokenizer=denoiser.tokenizer,
        transformer=denoiser.transformer,
    )
    for part in (vae, denoiser.encoder, denoiser.transformer):
        _round(part)
    shutil.rmtree(folder, ignore_errors=True)
    pipe.save_pretrained(folder, safe_serialization=True)
    for config in folder.rglob("config.json"):
        _without_paths(config)
    for weights in folder.rglob("*.safetensors"):
        weights.chmod(0o644)  # safetensors writes what only its owner can read


def load_pipeline(folder: Path) -> QwenImagePipeline:
    """Load an exported folder, in float32, quietly."""
    pipe = QwenImagePipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _forget_unused(denoiser: Denoiser) -> None:
    """Zero what no output depends on: how the last block's text goes on, of which only keys and values are used."""
    block = denoiser.transformer.transformer_blocks[-1]
    width = denoiser.transformer.inner_dim
    unused: list[Tensor] = [block.txt_mod[1].weight[2 * width :], block.txt_mod[1].bias[2 * width :]]
    for part in (block.txt_mlp, block.attn.to_add_out, block.attn.add_q_proj):
        unused += list(part.parameters())
    with torch.no_grad():
        for weights in unused:
            weights.zero_()


@torch.no_grad()
def _round(module: nn.Module) -> None:
    """Store eight significant bits as float16: more than the training's noise, and they zip to two thirds."""
    for parameter in module.parameters():
        parameter.copy_(parameter.bfloat16().float())
    module.half()


def _without_paths(config: Path) -> None:
    content = json.loads(config.read_text(encoding="utf-8"))
    content.pop("_name_or_path", None)
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
