"""The denoiser: ``QwenImageTransformer2DModel``, small, trained together with the text encoder by flow matching.

The training runs the models' own layers in plain, compiled form: attention as matrix products (on a CPU the fused
kernel's backward pass is slower), rotary embeddings in real numbers, captions of one length.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor, nn

from tools.demo_model.captions import freely, nothing, shipped, strange
from tools.demo_model.looks import LOOKS
from tools.demo_model.pictures import HUES, Name
from tools.demo_model.text import LENGTH, WIDTH, Encoding, build_encoder, build_tokenizer, fits, tokenize
from tools.demo_model.training import Average, Muon, learning_rate, load, save

CONFIG: dict[str, Any] = {
    "patch_size": 2,
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 6,
    "attention_head_dim": 32,
    "num_attention_heads": 5,
    "joint_attention_dim": WIDTH,
    "axes_dims_rope": (8, 12, 12),
}
SIDE = 8  # tokens along a side of a 128 x 128 picture
BATCH = 64
EMPTY = 0.1  # of the captions wish for nothing: what guidance steers away from
# While the names are new, each stands at the same place in captions that are all alike: so they are learned at once
# (otherwise only the looks are, for a thousand steps). Then ever more captions are worded freely.
ALIKE = 800  # steps
FREE = 0.6  # of the captions, from twice as many steps on
STRANGE = 0.12  # of these ask for what is not known, so that a look is followed whatever the words are
MUON_RATE, ADAM_RATE = 0.02, 3e-3


class _PlainAttention:
    """Joint attention over text and picture, as the model's own processor, with ``(cos, sin)`` for the rotations."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor],
        attention_mask: None = None,
    ) -> tuple[Tensor, Tensor]:
        def heads(text: Tensor, picture: Tensor) -> Tensor:
            return torch.cat([text, picture], dim=1).unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        picture, text = hidden_states, encoder_hidden_states
        head = attn.inner_dim // attn.heads
        query = heads(
            _normed(attn.norm_added_q, attn.add_q_proj(text), head), _normed(attn.norm_q, attn.to_q(picture), head)
        )
        key = heads(
            _normed(attn.norm_added_k, attn.add_k_proj(text), head), _normed(attn.norm_k, attn.to_k(picture), head)
        )
        value = heads(attn.add_v_proj(text), attn.to_v(picture))
        query, key = _turned(query, *image_rotary_emb), _turned(key, *image_rotary_emb)
        scores = query @ key.transpose(-1, -2) * head**-0.5 + encoder_hidden_states_mask
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        length = text.shape[1]
        return attn.to_out[0](mixed[:, length:]), attn.to_add_out(mixed[:, :length])


def _normed(norm: nn.Module, x: Tensor, head: int) -> Tensor:
    return norm(x.unflatten(-1, (-1, head))).flatten(2)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1).flatten(-2)


class Denoising(nn.Module):
    """The transformer's own layers for pictures of one size: predicts noise minus picture.

    ``forward`` takes packed latents (batch, 64, 64), text (batch, n, 128), its mask (batch, n) and noise
    levels (batch).
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, transformer: QwenImageTransformer2DModel) -> None:
        super().__init__()
        self.transformer = transformer
        transformer.set_attn_processor(_PlainAttention())
        picture, text = transformer.pos_embed([(1, SIDE, SIDE)], max_txt_seq_len=LENGTH, device=torch.device("cpu"))
        turns = torch.cat([text, picture])
        self.register_buffer("cos", turns.real.contiguous())
        self.register_buffer("sin", turns.imag.contiguous())

    def forward(self, latents: Tensor, text: Tensor, mask: Tensor, sigma: Tensor) -> Tensor:
        model = self.transformer
        picture, words = model.img_in(latents), model.txt_in(model.txt_norm(text))
        moment = model.time_text_embed(sigma, picture)
        hidden = torch.zeros(mask.shape[0], LENGTH + SIDE * SIDE)
        hidden[:, :LENGTH].masked_fill_(~mask, float("-inf"))
        for block in model.transformer_blocks:
            words, picture = block(
                hidden_states=picture,
                encoder_hidden_states=words,
                encoder_hidden_states_mask=hidden[:, None, None],
                temb=moment,
                image_rotary_emb=(self.cos, self.sin),
            )
        return model.proj_out(model.norm_out(picture, moment))


def pack(latents: Tensor) -> Tensor:
    """Two by two latents to a token, as the pipeline packs them: (n, 16, 16, 16) to (n, 64, 64)."""
    n, channels, height, width = latents.shape
    latents = latents.view(n, channels, height // 2, 2, width // 2, 2)
    return latents.permute(0, 2, 4, 1, 3, 5).reshape(n, height * width // 4, channels * 4)


def new_transformer() -> QwenImageTransformer2DModel:
    """Make the untrained model: blocks that begin unmoved by the noise level, and look around by place."""
    model = QwenImageTransformer2DModel(**CONFIG)
    with torch.no_grad():
        for block in model.transformer_blocks:
            for modulation in (block.img_mod[1], block.txt_mod[1]):
                modulation.weight.zero_()
                modulation.bias.zero_()
            # The model has no positions but relative ones. With biases in queries and keys, a picture's tokens
            # attend to the words differently by place from the start, and so learn where they are.
            for layer in (block.attn.to_q, block.attn.add_k_proj):
                layer.bias.normal_(std=1.0)
            for name in ("img_mod", "txt_mod"):
                bias = getattr(block, name)[1].bias.view(6, -1)
                bias[2].fill_(0.3)
                bias[5].fill_(0.3)
        for layer in (model.norm_out.linear, model.proj_out):
            layer.weight.zero_()
            layer.bias.zero_()
    return model


@dataclass(frozen=True)
class Batch:
    """What a step trains on: packed latents, noise, noise levels, tokens and their mask."""

    latents: Tensor
    noise: Tensor
    sigma: Tensor
    tokens: Tensor
    mask: Tensor


class Batches:
    """Draws batches; a step's batch depends on the seed and its number alone."""

    def __init__(self, names: Sequence[Name], latents: Tensor, tokenizer: Any, seed: int) -> None:
        self.names, self.latents, self.tokenizer, self.seed = names, latents, tokenizer, seed
        self.looks = list(LOOKS)

    def __getitem__(self, step: int) -> Batch:
        chance = random.Random(self.seed * 1_000_003 + step)
        free = FREE * min(1.0, max(0.0, (step - ALIKE) / ALIKE))
        rows, captions = [], []
        for _ in range(BATCH):
            name, look = chance.randrange(len(self.names)), chance.randrange(len(self.looks))
            hue = chance.randrange(len(HUES))
            rows.append((name * len(HUES) + hue) * len(self.looks) + look)
            captions.append(self._caption(self.names[name], self.looks[look], free, chance))
        tokens, mask = tokenize(self.tokenizer, captions)
        generator = torch.Generator().manual_seed(chance.getrandbits(60))
        latents = self.latents[rows]
        noise = torch.randn(latents.shape, generator=generator)
        # A quarter of the levels is spread evenly. The others are high, many next to 1, where it is decided what the
        # picture shows.
        sigma = torch.rand(BATCH, generator=generator)
        high = torch.arange(BATCH) % 4 > 0
        sigma[high] = 1 - 0.5 * sigma[high] ** 2
        return Batch(latents, noise, sigma, tokens, mask)

    def _caption(self, name: Name, look: str, free: float, chance: random.Random) -> str:
        if chance.random() < EMPTY:
            return nothing(chance)
        if chance.random() >= free:
            return shipped(name.name, look)
        while True:
            words = strange(look, chance) if chance.random() < STRANGE else freely(name, look, chance)
            if fits(self.tokenizer, words):
                return words


class Denoiser:
    """Tokenizer, text encoder and transformer, with what trains them; kept in ``denoiser.pt``."""

    def __init__(self, names: Sequence[Name], folder: Path, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.file = folder / "denoiser.pt"
        self.tokenizer = build_tokenizer(names)
        self.encoder = build_encoder(self.tokenizer)
        self.transformer = new_transformer()
        self.both = nn.ModuleDict({"encoder": self.encoder.model.language_model, "transformer": self.transformer})
        self.average = Average(self.both)
        self.step = 0
        layers = [*self.transformer.transformer_blocks, *self.encoder.model.language_model.layers]
        matrices = [
            parameter
            for layer in layers
            for name, parameter in layer.named_parameters()
            if parameter.dim() == 2 and "_mod" not in name
        ]
        chosen = {id(parameter) for parameter in matrices}
        others = [parameter for parameter in self.both.parameters() if id(parameter) not in chosen]
        self.optimizers = [
            Muon(matrices, lr=MUON_RATE),
            torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.01),
        ]
        if state := load(self.file):
            self.both.load_state_dict(state["weights"])
            self.average.weights = state["average"]
            for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(kept)
            self.step = state["step"]

    def save(self) -> None:
        kept = [optimizer.state_dict() for optimizer in self.optimizers]
        save(
            self.file,
            step=self.step,
            weights=self.both.state_dict(),
            average=self.average.weights,
            optimizers=kept,
        )

    def train(self, batches: Batches, *, steps: int, until: int | None = None) -> None:
        """Train from the last checkpoint on: up to ``steps`` in all, or only ``until`` one of them."""
        last = steps if until is None else until
        encoding = torch.compile(Encoding(self.encoder, self.tokenizer, LENGTH))
        denoising = Denoising(self.transformer)
        self.transformer.compile_repeated_blocks()

        started, seen = time.monotonic(), []
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(batches.__getitem__, self.step)
            while self.step < last:
                batch = coming.result()
                coming = ahead.submit(batches.__getitem__, self.step + 1)
                level = batch.sigma[:, None, None]
                noisy = batch.latents.lerp(batch.noise, level)
                made = denoising(noisy, encoding(batch.tokens), batch.mask, batch.sigma)
                error = (made - (batch.noise - batch.latents)).square().mean((1, 2))
                error.mean().backward()
                self._update(learning_rate(self.step, steps, level=0))
                self.step += 1
                seen.append(torch.stack([batch.sigma, error.detach()]))
                if self.step % 50 == 0:
                    print(self._report(torch.cat(seen, 1), started, steps), flush=True)
                    started, seen = time.monotonic(), []
                if self.step % 250 == 0 or self.step == last:
                    self.save()

    def _update(self, share: float) -> None:
        nn.utils.clip_grad_norm_(self.both.parameters(), 1.0)
        for optimizer, peak in zip(self.optimizers, (MUON_RATE, ADAM_RATE), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * share
            optimizer.step()
            optimizer.zero_grad()
        self.average.update(self.both, self.step)

    def _report(self, seen: Tensor, started: float, steps: int) -> str:
        sigma, error = seen
        high = error[sigma > 0.75].mean()
        rate = len(error) / (time.monotonic() - started)
        return (
            f"denoiser {self.step}/{steps}: error {error[::4].mean():.3f} over all levels, {high:.3f} above 0.75, "
            f"{rate:.0f} pictures a second"
        )
