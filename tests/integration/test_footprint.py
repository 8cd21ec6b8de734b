"""The memory plan's numbers against the full-size models: real shapes and modules, tensors without data.

Proven is what diffusers' and transformers' own code allocates, tensor by tensor. Not proven is what kernels take for
themselves and what the allocator loses: that is in the plan's reserve, and only a real card can say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional
from diffusers import AutoencoderKLQwenImage
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformerBlock
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tenkaigen_worker.engine import footprint, latents

SIDE = 384
QWEN = Qwen2_5_VLConfig(
    text_config={
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    vision_config={
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
    },
)


class Allocations(TorchDispatchMode):
    """Adds up the storages that are alive, and keeps the most; parameters that are given do not count."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[Any, tuple[StorageWeakRef, int]] = {}
        self._given = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in module.parameters()}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(answer):
            if isinstance(tensor, torch.Tensor):
                reference = StorageWeakRef(tensor.untyped_storage())
                if reference.cdata not in self._given:
                    self._alive[reference.cdata] = (reference, tensor.untyped_storage().nbytes())
        self._alive = {key: alive for key, alive in self._alive.items() if not alive[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return answer


@pytest.fixture
def vae(monkeypatch: pytest.MonkeyPatch) -> AutoencoderKLQwenImage:
    # A GPU's attention never writes down all of its weights.
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda query, *_, **__: torch.empty_like(query)
    )
    with torch.device("meta"):
        vae = AutoencoderKLQwenImage()
        for parameter in vae.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    return vae


def peak(module: torch.nn.Module, call: Callable[[], Any]) -> int:
    with torch.no_grad(), Allocations(module) as allocations:
        call()
    return allocations.peak


def test_the_vaes_bytes(vae: AutoencoderKLQwenImage) -> None:
    drawn = torch.empty(1, 16, 1, SIDE // 8, SIDE // 8, dtype=torch.bfloat16, device="meta")
    pixels = torch.empty(1, 3, SIDE, SIDE, dtype=torch.bfloat16, device="meta")
    decoding = peak(vae, lambda: latents.decode(vae, drawn)) / SIDE**2
    encoding = peak(vae, lambda: latents.encode(vae, pixels, torch.device("meta"))) / SIDE**2
    assert pytest.approx(decoding, rel=0.02) == footprint.DECODE_BYTES_PER_PIXEL
    assert encoding < decoding

    vae.enable_tiling()
    tiled = peak(vae, lambda: latents.decode(vae, drawn))
    assert pytest.approx(tiled, rel=0.1) == footprint.TILE_BYTES + SIDE**2 * footprint.TILED_BYTES_PER_PIXEL
    assert 2 * sum(parameter.numel() for parameter in vae.parameters()) == pytest.approx(footprint.VAE_BYTES, rel=0.01)


def test_a_picture_needs_no_memory_of_other_frames() -> None:
    torch.manual_seed(1)
    vae = AutoencoderKLQwenImage(base_dim=8).eval()
    drawn, pixels = torch.randn(2, 16, 1, 8, 16), torch.rand(2, 3, 64, 128) * 2 - 1
    decoded, encoded = latents.decode(vae, drawn), latents.encode(vae, pixels, torch.device("cpu"))
    vae.enable_tiling()  # through diffusers' own methods; a picture of this size is one tile
    assert torch.equal(decoded, latents.decode(vae, drawn))
    assert torch.equal(encoded, latents.encode(vae, pixels, torch.device("cpu")))


def test_the_text_encoders_bytes() -> None:
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(QWEN)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    quantised = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"  # as transformers chooses for bitsandbytes
    )
    whole = 2 * parameters
    in_nf4 = quantised * (1 / 2 + 4 / 64) + 2 * (parameters - quantised)
    assert whole == pytest.approx(footprint.TEXT_ENCODER_BYTES, rel=0.01)
    assert pytest.approx(in_nf4 / whole, rel=0.01) == footprint.NF4_SHARE


@pytest.mark.parametrize("rank", [32, 128])
def test_a_checkpoints_bytes_follow_from_its_layers(rank: int) -> None:
    """4 bits a weight; for every 64 a scale, and with AWQ a zero, too; the branch, the bias and two smoothings."""
    with torch.device("meta"):
        block = QwenImageTransformerBlock(footprint.WIDTH, 24, 128)
    total, branch = 0.0, 0
    for name, layer in block.named_modules():
        if not isinstance(layer, torch.nn.Linear):
            continue
        each = layer.in_features * layer.out_features
        sides = layer.in_features + layer.out_features
        is_modulation = "mod" in name
        total += each / 2 + 2 * layer.out_features + 2 * each / 64 * (2 if is_modulation else 1)
        if not is_modulation:
            total += 2 * 2 * layer.in_features + 2 * sides * rank
            branch += 2 * sides
    assert total * footprint.BLOCKS + footprint.BETWEEN_BLOCKS_BYTES == pytest.approx(
        footprint.CHECKPOINT_BYTES[rank], rel=0.02
    )
    assert branch * footprint.BLOCKS == footprint.LORA_BYTES_PER_RANK
