"""Small Qwen-Image transformers, quantised into checkpoints of Nunchaku's published format.

A checkpoint has the published keys, shapes, dtypes and element orders: SVDQuant's weights with a low-rank branch from a
real SVD and smoothing that is not all ones, the fused q, k and v, the second MLP layer's bias corrected for the shift,
and AWQ's interleaved modulation. Smoothing is random where the real one is calibrated, so it costs precision.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from diffusers import QwenImagePipeline, QwenImageTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.random_pipeline import build_pipeline
from tests.standin.int4_kernels import formats

# To be put on PYTHONPATH for a process that is to find the wheel, or on sys.path with `standin`.
STANDIN = Path(__file__).parent / "standin"

GROUP = 64
SHIFT = 0.171875
GAIN = 3.0

# Layers that are quantised together, by what they become; every other tensor is kept in 16 bits.
FUSED = {
    "attn.to_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "attn.add_qkv_proj": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "attn.to_out.0": ("attn.to_out.0",),
    "attn.to_add_out": ("attn.to_add_out",),
    "img_mlp.net.0.proj": ("img_mlp.net.0.proj",),
    "img_mlp.net.2": ("img_mlp.net.2",),
    "txt_mlp.net.0.proj": ("txt_mlp.net.0.proj",),
    "txt_mlp.net.2": ("txt_mlp.net.2",),
}
MODULATION = ("img_mod.1", "txt_mod.1")
SHIFTED = "mlp.net.2"


@contextmanager
def standin() -> Iterator[None]:
    """Let ``import nunchaku`` find the stand-in, and forget it again."""
    sys.path.insert(0, str(STANDIN))
    try:
        yield
    finally:
        sys.path.remove(str(STANDIN))
        for name in [name for name in sys.modules if name.partition(".")[0] in _packages()]:
            del sys.modules[name]


def _packages() -> set[str]:
    return {path.name for path in STANDIN.iterdir() if (path / "__init__.py").exists()}


def small_transformer(seed: int = 0, *, layers: int = 2) -> Any:
    """A dense transformer, 128 wide, that fits the random pipeline's text encoder and VAE; one for each seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = QwenImageTransformer2DModel(
            num_layers=layers,
            attention_head_dim=64,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(16, 24, 24),
        )
    with torch.no_grad():
        for parameter in transformer.parameters():
            if parameter.dim() > 1:
                parameter.mul_(GAIN)
    return transformer.eval()


def small_pipeline(transformer: Any = None) -> Any:
    """The small random pipeline around a transformer, a small dense one unless given."""
    parts = build_pipeline().components
    return QwenImagePipeline(**{**parts, "transformer": small_transformer() if transformer is None else transformer})


def write_checkpoint(
    path: Path, transformer: Any, rank: int = 32, *, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> Path:
    """Quantise a dense transformer into a safetensors file, and answer its path."""
    tensors, metadata = quantise(transformer, rank, dtype=dtype, seed=seed)
    save_file(tensors, path, metadata)
    return path


def quantise(
    transformer: Any, rank: int = 32, *, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A checkpoint's tensors and metadata. The seed is that of the smoothing."""
    with _one_thread():
        return _quantised(transformer, rank, dtype, seed)


def _quantised(transformer: Any, rank: int, dtype: torch.dtype, seed: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    dense = {name: tensor.detach().float() for name, tensor in transformer.state_dict().items()}
    tensors: dict[str, Tensor] = {}
    for number in range(len(transformer.transformer_blocks)):
        block = f"transformer_blocks.{number}."
        for target, sources in FUSED.items():
            weight = torch.cat([dense.pop(f"{block}{source}.weight") for source in sources])
            bias = torch.cat([dense.pop(f"{block}{source}.bias") for source in sources])
            smooth = _smoothing(weight.shape[1], crc32(f"{seed} {block}{target}".encode()))
            shift = SHIFT if target.endswith(SHIFTED) else 0.0
            layer = svdquant(weight, bias, smooth, rank, shift=shift, dtype=dtype)
            tensors |= {f"{block}{target}.{key}": tensor for key, tensor in layer.items()}
        for target in MODULATION:
            layer = awq(dense.pop(f"{block}{target}.weight"), dense.pop(f"{block}{target}.bias"), dtype=dtype)
            tensors |= {f"{block}{target}.{key}": tensor for key, tensor in layer.items()}
    tensors |= {name: tensor.to(dtype) for name, tensor in dense.items()}
    config = {key: value for key, value in transformer.config.items() if not key.startswith("_name")}
    metadata = {"config": json.dumps(config), "quantization_config": json.dumps(quantization_config(rank))}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}, metadata


def quantization_config(rank: int) -> dict[str, Any]:
    """What a published INT4 file says of itself."""
    return {
        "method": "svdquant",
        "weight": {"dtype": "int4", "scale_dtype": None, "group_size": GROUP},
        "activation": {"dtype": "int4", "scale_dtype": None, "group_size": GROUP},
        "rank": rank,
    }


def svdquant(
    weight: Tensor, bias: Tensor, smooth: Tensor, rank: int, *, shift: float = 0.0, dtype: torch.dtype = torch.bfloat16
) -> dict[str, Tensor]:
    """Quantise out x in: SVD of the smoothed weight, then codes for what the low-rank branch leaves.

    The branch is stored for activations that are not smoothed. With ``shift``, activations come larger by that much to
    the codes alone, and the bias takes it back.
    """
    smooth = smooth.to(dtype).float()
    left, strength, right = torch.linalg.svd(weight * smooth, full_matrices=False)
    up = (left[:, :rank] * strength[:rank]).to(dtype)
    down = (right[:rank] / smooth).to(dtype)
    residual = ((weight - up.float() @ down.float()) * smooth).unflatten(1, (-1, GROUP))
    scales = (residual.abs().amax(-1) / 7).clamp(min=1e-6).to(dtype)
    codes = (residual / scales.float()[..., None]).round().clamp(-8, 7)
    constant = shift * ((codes * scales.float()[..., None]).flatten(1) / smooth).sum(1)
    return {
        "qweight": formats.pack_codes(codes.flatten(1).to(torch.int32)),
        "wscales": formats.pack_scales(scales),
        "smooth_factor": formats.pack_scales(smooth.to(dtype)),
        "smooth_factor_orig": formats.pack_scales(smooth.to(dtype)),
        "proj_down": formats.pack_lowrank(down, down=True),
        "proj_up": formats.pack_lowrank(up, down=False),
        "bias": formats.pack_scales((bias - constant).to(dtype)),
    }


def awq(weight: Tensor, bias: Tensor, *, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """Quantise a modulation layer: six values a channel in place of six vectors, and one added to both scales."""
    weight = interleaved(weight)
    bias = bias + torch.tensor([0.0, 1, 0, 0, 1, 0]).repeat_interleave(len(bias) // 6)
    groups = weight.unflatten(1, (-1, GROUP))
    lowest = groups.amin(-1).to(dtype)
    scales = ((groups.amax(-1) - lowest.float()) / 15).clamp(min=1e-6).to(dtype)
    codes = ((groups - lowest.float()[..., None]) / scales.float()[..., None]).round().clamp(0, 15)
    return {
        "qweight": formats.pack_awq_codes(codes.flatten(1)),
        "wscales": scales.T,
        "wzeros": lowest.T,
        "bias": interleaved(bias).to(dtype),
    }


def interleaved(six: Tensor) -> Tensor:
    """From six vectors one after the other to channels of six values each, along the first dimension."""
    return six.unflatten(0, (6, -1)).transpose(0, 1).flatten(0, 1)


def dequantised(module: Any) -> nn.Linear:
    """The dense float32 layer that a quantised one stands for, its low-rank branch included.

    Rows are in the layer's own order: a modulation layer's are interleaved. A layer with unsigned activations takes
    what comes before the shift.
    """
    if hasattr(module, "wzeros"):
        weight, bias = _of_awq(module), module.bias.float()
    else:
        codes, bias = codes_of(module), formats.unpack_scales(module.bias).float()
        if module.act_unsigned:
            bias = bias + SHIFT * codes.sum(1)
        weight = codes + branch_of(module)
    dense = nn.Linear(module.in_features, module.out_features, dtype=torch.float32)
    dense.weight.data, dense.bias.data = weight.detach(), bias.detach()
    return dense.requires_grad_(False)


def codes_of(module: Any) -> Tensor:
    """What a layer's codes alone stand for: out x in, float32, for activations before smoothing."""
    codes = formats.unpack_codes(module.qweight).float().unflatten(1, (-1, GROUP))
    scales = formats.unpack_scales(module.wscales).float()
    return (codes * scales[..., None]).flatten(1) / formats.unpack_scales(module.smooth_factor).float()


def branch_of(module: Any) -> Tensor:
    """What a layer's low-rank branch stands for: out x in, float32."""
    down = formats.unpack_lowrank(module.proj_down, down=True).float()
    return formats.unpack_lowrank(module.proj_up, down=False).float() @ down


def _of_awq(module: Any) -> Tensor:
    codes = formats.unpack_awq_codes(module.qweight).float().unflatten(1, (-1, GROUP))
    return (codes * module.wscales.T.float()[..., None] + module.wzeros.T.float()[..., None]).flatten(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Many threads wait for each other longer than matrices of this size take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _smoothing(channels: int, seed: int) -> Tensor:
    """Factors between 0.5 and 2."""
    return 2 ** (torch.rand(channels, generator=torch.Generator().manual_seed(seed)) * 2 - 1)
