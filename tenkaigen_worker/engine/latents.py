"""Between pictures and latents: Qwen-Image's VAE, and the scale on which its transformer sees what comes out of it."""

from __future__ import annotations

from typing import Any

import torch


@torch.no_grad()
def encode(vae: Any, pixels: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Encode pictures, N x 3 x H x W from -1 to 1, to N x channels x H/8 x W/8.

    The most likely latents are taken, as diffusers' editing pipelines do: they depend on no seed.
    """
    posterior = vae.encode(pixels.unsqueeze(2).to(device, vae.dtype)).latent_dist
    latents: torch.Tensor = posterior.mode()
    mean, std = _scale(vae, latents)
    return ((latents - mean) * (1.0 / std)).squeeze(2)


@torch.no_grad()
def decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents, N x channels x 1 x H/8 x W/8, to pictures, N x 3 x H x W from 0 to 1, as the pipelines do."""
    latents = latents.to(vae.dtype)
    mean, std = _scale(vae, latents)
    pixels: torch.Tensor = vae.decode(latents / (1.0 / std) + mean, return_dict=False)[0][:, :, 0]
    return (pixels * 0.5 + 0.5).clamp(0, 1)


def _scale(vae: Any, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1).to(latents.device, latents.dtype)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, std
