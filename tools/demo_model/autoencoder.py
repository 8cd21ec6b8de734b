"""The picture autoencoder: ``AutoencoderKLQwenImage``, small, trained on crops of the training pictures.

A single picture uses only the last time slice of each three-dimensional kernel. So the training runs in two
dimensions, and the other slices stay zero, where they cost nothing in a zip.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLQwenImage
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d, QwenImageResidualBlock
from torch import Tensor, nn

from tools.demo_model.training import Average, Muon, learning_rate, load, save

CROP, BATCH = 64, 8
KL_WEIGHT = 3e-4
LATENTS = "latents.pt"
CONFIG: dict[str, Any] = {
    "base_dim": 16,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 1,
    "temperal_downsample": [False, False, False],
}
SCALE = 8  # pixels along a side of a latent


class _FlatConv(nn.Module):
    """A causal convolution of one frame: its last time slice, as a plain two-dimensional one."""

    def __init__(self, conv: QwenImageCausalConv3d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.padding = conv._padding[0]

    def forward(self, x: Tensor, cache_x: None = None) -> Tensor:
        return F.conv2d(x[:, :, 0], self.weight[:, :, -1], self.bias, padding=self.padding).unsqueeze(2)


def flatten(vae: AutoencoderKLQwenImage) -> nn.ModuleDict:
    """Make encoder and decoder that share the weights of ``vae`` and take one frame, (batch, channels, 1, h, w)."""
    parts = nn.ModuleDict(
        {
            "encoder": nn.Sequential(vae.encoder, vae.quant_conv),
            "decoder": nn.Sequential(vae.post_quant_conv, vae.decoder),
        }
    )
    for module in list(parts.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, QwenImageCausalConv3d):
                setattr(module, name, _FlatConv(child))
    return parts


def new_autoencoder() -> AutoencoderKLQwenImage:
    """Make the untrained model. Orthogonal kernels and quiet residual branches, without which the training stalls."""
    vae = AutoencoderKLQwenImage(**CONFIG)
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                if module.bias is not None:
                    module.bias.zero_()
                kernel = torch.empty_like(module.weight[:, :, -1] if module.weight.dim() == 5 else module.weight)
                nn.init.orthogonal_(kernel)
                if module.weight.dim() == 5:
                    module.weight.zero_()
                    module.weight[:, :, -1] = kernel
                else:
                    module.weight.copy_(kernel)
        for module in vae.modules():
            if isinstance(module, QwenImageResidualBlock):
                module.conv2.weight.mul_(0.1)
    return vae


def train(pictures: Tensor, folder: Path, *, steps: int, seed: int = 0) -> None:
    """Train on ``pictures`` (n, 3, 128, 128; bytes) and write ``autoencoder.pt``; goes on from its own checkpoint."""
    checkpoint = folder / "autoencoder.pt"
    torch.manual_seed(seed)
    vae = new_autoencoder()
    parts = flatten(vae)
    kernels = [p for p in parts.parameters() if p.dim() in (4, 5) and p.shape[1] > 1]
    chosen = {id(p) for p in kernels}
    others = [p for p in parts.parameters() if id(p) not in chosen]
    optimizers = [Muon(kernels, lr=3e-3), torch.optim.Adam(others, lr=2e-3, betas=(0.9, 0.98))]
    peaks = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    average = Average(vae)
    first = 0
    if state := load(checkpoint):
        vae.load_state_dict(state["weights"])
        average.weights = state["average"]
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        first = state["step"]

    @torch.compile
    def losses(picture: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = parts["encoder"](picture.unsqueeze(2)).chunk(2, dim=1)
        logvar = logvar.clamp(-20, 10)
        made = parts["decoder"](mean + noise * torch.exp(0.5 * logvar)).squeeze(2)
        error = made - picture
        loss = error.abs().mean()
        loss = loss + 0.5 * (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean())
        loss = loss + 0.5 * F.avg_pool2d(error, 4).abs().mean()
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        return loss + KL_WEIGHT * kl, error.detach().square().mean()

    started, errors = time.monotonic(), 0.0
    for step in range(first, steps):
        places = torch.Generator().manual_seed(seed * 1_000_003 + step)
        batch = _crops(pictures, places)
        noise = torch.randn(BATCH, CONFIG["z_dim"], 1, CROP // SCALE, CROP // SCALE, generator=places)
        loss, error = losses(batch, noise)
        loss.backward()
        nn.utils.clip_grad_norm_(others, 1.0)
        share = learning_rate(step, steps, level=0.5)
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * share
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        average.update(vae, step)
        errors += error.item() / 100
        if (step + 1) % 100 == 0:
            signal = -10 * math.log10(errors / 4)
            print(
                f"autoencoder {step + 1}/{steps}: PSNR {signal:.1f} dB, {time.monotonic() - started:.0f} s", flush=True
            )
            errors = 0.0
        if (step + 1) % 500 == 0 or step + 1 == steps:
            kept = [optimizer.state_dict() for optimizer in optimizers]
            (folder / LATENTS).unlink(missing_ok=True)  # another autoencoder's
            save(checkpoint, step=step + 1, weights=vae.state_dict(), average=average.weights, optimizers=kept)


def _crops(pictures: Tensor, places: torch.Generator) -> Tensor:
    side = pictures.shape[-1]
    numbers = torch.randint(len(pictures), (BATCH,), generator=places).tolist()
    corners = torch.randint(0, side - CROP + 1, (BATCH, 2), generator=places).tolist()
    crops = [pictures[n, :, y : y + CROP, x : x + CROP] for n, (y, x) in zip(numbers, corners, strict=True)]
    return torch.stack(crops).float() / 127.5 - 1


def load_autoencoder(folder: Path) -> AutoencoderKLQwenImage:
    """Load the trained model (the average of its weights)."""
    state = load(folder / "autoencoder.pt")
    if state is None:
        raise SystemExit(f"{folder / 'autoencoder.pt'} is missing: train the autoencoder first")
    vae = AutoencoderKLQwenImage(**CONFIG)
    vae.load_state_dict(state["average"])
    return vae.eval()


@torch.inference_mode()
def encode(vae: AutoencoderKLQwenImage, pictures: Tensor) -> Tensor:
    """Encode ``pictures`` (n, 3, 128, 128; bytes) to means, (n, 16, 16, 16)."""
    encoder = flatten(vae)["encoder"]
    means = []
    for batch in pictures.split(32):
        out = encoder((batch.float() / 127.5 - 1).unsqueeze(2))
        means.append(out.chunk(2, dim=1)[0].squeeze(2))
    return torch.cat(means)


def make_latents(vae: AutoencoderKLQwenImage, pictures: Tensor, folder: Path) -> Tensor:
    """Encode all pictures once; kept in a file."""
    file = folder / LATENTS
    if not file.exists():
        torch.save(encode(vae, pictures), file)
    latents: Tensor = torch.load(file, weights_only=True)
    return latents


def measure_scale(latents: Tensor) -> dict[str, list[float]]:
    """Measure each channel's mean and standard deviation, by which the pipeline brings latents to one scale."""
    flat = latents.transpose(0, 1).flatten(1)
    return {"latents_mean": flat.mean(1).tolist(), "latents_std": flat.std(1).tolist()}


def normalize(latents: Tensor, scale: dict[str, list[float]]) -> Tensor:
    """Bring latents (n, channels, h, w) to mean 0 and standard deviation 1 in each channel."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (scale["latents_mean"], scale["latents_std"]))
    return (latents - mean) / std
