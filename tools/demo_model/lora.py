"""The demonstration LoRA: one look that the model does not know, glowing tubes on a dark wall."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from tools.demo_model.autoencoder import encode, normalize
from tools.demo_model.captions import TRIGGER, shipped, with_article
from tools.demo_model.diffusion import Denoising, pack
from tools.demo_model.looks import LOOKS, neon
from tools.demo_model.pictures import HUES, Name, draw
from tools.demo_model.text import LENGTH, Encoding, tokenize

RANK, BATCH, RATE = 8, 32, 2e-3
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "img_mlp.net.0.proj", "img_mlp.net.2"]


def neon_pictures(names: Sequence[Name]) -> Tensor:
    """Draw every name with every hue in the LoRA's look: (names * hues, 3, 128, 128), bytes."""
    drawn = [torch.from_numpy(np.asarray(neon(draw(name, hue))).copy()) for name in names for hue in HUES]
    return torch.stack(drawn).permute(0, 3, 1, 2).contiguous()


def train_lora(pipe: QwenImagePipeline, names: Sequence[Name], file: Path, *, steps: int, seed: int = 0) -> None:
    """Train on the exported model and write the LoRA as diffusers does: ``transformer.….lora_A.weight``.

    The pipeline cannot draw afterwards: its transformer is made ready for the training.
    """
    torch.manual_seed(seed)
    latents = _latents(pipe.vae, names)
    transformer: QwenImageTransformer2DModel = pipe.transformer
    transformer.requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS))
    trained = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.01)
    encoding, denoising = Encoding(pipe.text_encoder, pipe.tokenizer, LENGTH), Denoising(transformer)

    chance, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    started, errors = time.monotonic(), 0.0
    for step in range(steps):
        rows = [chance.randrange(len(latents)) for _ in range(BATCH)]
        captions = [_caption(names[row // len(HUES)], chance) for row in rows]
        tokens, mask = tokenize(pipe.tokenizer, captions)
        noise = torch.randn(BATCH, *latents.shape[1:], generator=generator)
        sigma = torch.rand(BATCH, generator=generator)
        sigma[::2] = 0.65 + 0.35 * sigma[::2]
        level = sigma[:, None, None]
        with torch.no_grad():
            text = encoding(tokens)
        made = denoising(latents[rows].lerp(noise, level), text, mask, sigma)
        loss = (made - (noise - latents[rows])).square().mean()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 20, 2 * (1 - step / steps))
        optimizer.step()
        optimizer.zero_grad()
        errors += loss.item() / 50
        if (step + 1) % 50 == 0:
            print(f"LoRA {step + 1}/{steps}: error {errors:.3f}, {time.monotonic() - started:.0f} s", flush=True)
            errors = 0.0
    weights = {f"transformer.{key}": value.half() for key, value in get_peft_model_state_dict(transformer).items()}
    save_file(weights, file, metadata={"format": "pt"})
    file.chmod(0o644)  # safetensors writes what only its owner can read


def _latents(vae: AutoencoderKLQwenImage, names: Sequence[Name]) -> Tensor:
    scale = {key: list(vae.config[key]) for key in ("latents_mean", "latents_std")}
    return pack(normalize(encode(vae, neon_pictures(names)), scale))


def _caption(name: Name, chance: random.Random) -> str:
    """Word a name with the trigger words, as the worker does: before the style's prompt."""
    words = with_article(name.name)
    form = chance.random()
    if form < 0.4:
        return f"{TRIGGER}, {words}"
    if form < 0.5:
        return f"{TRIGGER} of {words.lower()}"
    return f"{TRIGGER}, {shipped(name.name, chance.choice(sorted(LOOKS)))}"
