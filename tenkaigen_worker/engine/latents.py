"""Between pictures and latents: Qwen-Image's VAE, and the scale on which its transformer sees what comes out of it."""

from __future__ import annotations

from typing import Any

import torch

# A picture is a video of one frame. What vae.encode and vae.decode keep for the frames to come is half of the memory
# that they need, or more; encoder and decoder alone compute the same without it, to the bit.


@torch.no_grad()
def encode(vae: Any, pixels: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Encode pictures, N x 3 x H x W from -1 to 1, to N x channels x H/8 x W/8.

    The most likely latents are taken, as diffusers' editing pipelines do: they depend on no seed.
    """
    pixels = pixels.unsqueeze(2).to(device, vae.dtype)
    if _as_a_whole(vae):
        latents: torch.Tensor = vae.quant_conv(vae.encoder(pixels)).chunk(2, dim=1)[0]
    else:
        latents = vae.encode(pixels).latent_dist.mode()
    mean, std = _scale(vae, latents)
    return ((latents - mean) * (1.0 / std)).squeeze(2)


@torch.no_grad()
def decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents, N x channels x 1 x H/8 x W/8, to pictures, N x 3 x H x W from 0 to 1, as the pipelines do."""
    latents = latents.to(vae.dtype)
    mean, std = _scale(vae, latents)
    latents = latents / (1.0 / std) + mean
    if _as_a_whole(vae):
        pixels: torch.Tensor = vae.decoder(vae.post_quant_conv(latents)).clamp(-1, 1)
    else:
        pixels = vae.decode(latents, return_dict=False)[0]
    return (pixels[:, :, 0] * 0.5 + 0.5).clamp(0, 1)


def to_rgb_bytes(image: torch.Tensor) -> bytes:
    """Turn a picture, 3 x H x W with values from 0 to 1, into H x W x 3 bytes, rounded as diffusers does for PIL."""
    return image.float().mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy().tobytes()


def _as_a_whole(vae: Any) -> bool:
    """Whether pictures go through in one piece; not with offload, which brings the VAE when its methods are called."""
    return not vae.use_tiling and not hasattr(vae, "_hf_hook")


def _scale(vae: Any, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1).to(latents.device, latents.dtype)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, std
