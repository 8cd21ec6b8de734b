"""Nunchaku's three CUDA kernels of the Qwen-Image path, step by step in plain tensors, with their own signatures.

The order of steps and the places where a number is rounded to 16 bits are the kernels'. What is not modelled: how a
sum over 64 products is ordered, the order of activation codes in memory, and everything of NVFP4.
"""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor

from .formats import nibbles_of, pack_nibbles, signed, unpack_awq_codes, unpack_codes, unpack_lowrank, unpack_scales

GROUP = 64
BLOCK_ROWS = 256
SHIFT = 0.171875
MAX_RANK = 1024
MAX_GEMV_ROWS = 8


def svdq_quantize_w4a4_act_fuse_lora_cuda(
    input: Tensor,
    output: Tensor | None = None,
    oscales: Tensor | None = None,
    lora_down: Tensor | None = None,
    lora_act_out: Tensor | None = None,
    smooth: Tensor | None = None,
    fuse_glu: bool = False,
    fp4: bool = False,
    pad_size: int = BLOCK_ROWS,
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise activations M x K, and take them down the low-rank branch before that.

    Returns codes (P x K/2, uint8), scales (K/64 x P) and the branch's float32 activation (P x rank), where P is M
    rounded up to a multiple of ``pad_size``.
    """
    if fuse_glu or fp4 or lora_down is None or smooth is None:
        raise NotImplementedError("the stand-in models INT4 with a low-rank branch and smoothing, without GLU")
    rows, channels = input.shape
    if lora_down.shape[0] != channels or lora_down.shape[1] % 16:
        raise RuntimeError(f"a branch of {tuple(lora_down.shape)} does not fit {channels} channels")
    padded = torch.nn.functional.pad(input, (0, 0, 0, -rows % pad_size))
    act = padded.float() @ unpack_lowrank(lora_down, down=True).float().T
    codes, scales = _quantised(padded / unpack_scales(smooth), unsigned=False)
    return _into(output, codes), _into(oscales, scales), _into(lora_act_out, act)


def svdq_gemm_w4a4_cuda(
    act: Tensor,
    wgt: Tensor,
    out: Tensor | None = None,
    qout: Tensor | None = None,
    ascales: Tensor | None = None,
    wscales: Tensor | None = None,
    oscales: Tensor | None = None,
    poolout: Tensor | None = None,
    lora_act_in: Tensor | None = None,
    lora_up: Tensor | None = None,
    lora_down: Tensor | None = None,
    lora_act_out: Tensor | None = None,
    norm_q: Tensor | None = None,
    norm_k: Tensor | None = None,
    rotary_emb: Tensor | None = None,
    bias: Tensor | None = None,
    smooth_factor: Tensor | None = None,
    out_vk: Tensor | None = None,
    out_linearattn: Tensor | None = None,
    act_unsigned: bool = False,
    lora_scales: list[float] | None = None,
    fuse_silu: bool = False,
    fp4: bool = False,
    alpha: float | None = 1.0,
    wcscales: Tensor | None = None,
    out_q: Tensor | None = None,
    out_k: Tensor | None = None,
    out_v: Tensor | None = None,
    attn_tokens: int = 0,
) -> None:
    """Multiply codes with codes, add bias and low-rank branch, and write the result, or the next layer's codes.

    With ``out``: the linear layer's output. With ``qout`` and ``oscales``: GELU, then the next layer's branch on what
    GELU gave, then shift, smoothing and unsigned codes.
    """
    beyond = (poolout, norm_q, norm_k, rotary_emb, out_vk, out_linearattn, wcscales, out_q, out_k, out_v)
    if fp4 or fuse_silu or attn_tokens or any(tensor is not None for tensor in beyond):
        raise NotImplementedError("the stand-in models the linear layer and the fused GELU MLP of INT4, nothing else")
    assert ascales is not None
    assert wscales is not None
    assert lora_act_in is not None
    assert lora_up is not None
    total = _multiplied(act, ascales, wgt, wscales, act_unsigned)
    if bias is not None:
        total = total + unpack_scales(bias)
    total = _with_branch(total, lora_act_in, lora_up, lora_scales)
    if qout is not None and oscales is not None:
        assert out is None
        assert lora_down is not None
        assert lora_act_out is not None
        assert smooth_factor is not None
        hidden = torch.nn.functional.gelu(total.float(), approximate="tanh").to(total.dtype)
        lora_act_out.copy_(hidden.float() @ unpack_lowrank(lora_down, down=True).float().T)
        codes, scales = _quantised((hidden + SHIFT) / unpack_scales(smooth_factor), unsigned=True)
        qout.copy_(codes)
        oscales.copy_(scales)
        return
    assert out is not None
    if not 0 <= len(total) - len(out) < BLOCK_ROWS:
        raise RuntimeError(f"{len(total)} rows of codes do not fit {len(out)} rows of output")
    out.copy_(total[: len(out)])


def awq_gemv_w4a16_cuda(
    in_feats: Tensor,
    kernel: Tensor,
    scaling_factors: Tensor,
    zeros: Tensor,
    m: int,
    n: int,
    k: int,
    group_size: int = GROUP,
) -> Tensor:
    """Multiply up to eight 16-bit rows (m x k) with a 4-bit matrix (n x k) whose values are code * scale + zero."""
    if not 0 < m <= MAX_GEMV_ROWS or group_size != GROUP:
        raise RuntimeError(f"Assertion failed: m > 0 && m <= 8 (m = {m}, group_size = {group_size})")
    if in_feats.dtype != scaling_factors.dtype:
        raise RuntimeError(f"Assertion failed: activations are {in_feats.dtype}, scales {scaling_factors.dtype}")
    codes = unpack_awq_codes(kernel).to(in_feats.dtype).reshape(n, k // GROUP, GROUP)
    weight = codes.float() * scaling_factors.T[..., None].float() + zeros.T[..., None].float()
    return (in_feats.float() @ weight.to(in_feats.dtype).reshape(n, k).float().T).to(in_feats.dtype)


def _quantised(values: Tensor, *, unsigned: bool) -> tuple[Tensor, Tensor]:
    """One scale per row and group of 64, its largest value mapped to 7, or 15 where only codes from 0 are left."""
    lowest, highest = (0, 15) if unsigned else (-8, 7)
    groups = values.reshape(len(values), -1, GROUP)
    scales = groups.abs().amax(dim=-1).float() / highest
    codes = torch.nan_to_num(groups.float() / scales[..., None]).round().clamp(lowest, highest)
    return pack_nibbles(codes.to(torch.int32).reshape(values.shape)), scales.T.to(values.dtype)


def _multiplied(act: Tensor, ascales: Tensor, wgt: Tensor, wscales: Tensor, act_unsigned: bool) -> Tensor:
    """Exact integer sums per group; scaled, and added up over the groups, in 16 bits."""
    nibbles = nibbles_of(act)
    left = (nibbles if act_unsigned else signed(nibbles)).float().reshape(len(act), -1, GROUP)
    right = unpack_codes(wgt).float().reshape(len(wgt), -1, GROUP)
    scales = unpack_scales(wscales)
    total = torch.zeros(len(act), len(wgt), dtype=ascales.dtype, device=act.device)
    for group in range(left.shape[1]):
        product = (left[:, group] @ right[:, group].T).to(total.dtype)
        scale = torch.outer(ascales[group], scales[:, group])
        total = (product.float() * scale.float() + total.float()).to(total.dtype)
    return total


def _with_branch(total: Tensor, act: Tensor, up: Tensor, scales: list[float] | None) -> Tensor:
    rank = up.shape[1]
    if rank % 16 or rank > MAX_RANK or act.shape[1] != rank:
        raise RuntimeError(f"a branch of rank {rank} needs a multiple of 16 up to {MAX_RANK}, got {act.shape[1]}")
    each = torch.tensor([1.0] * ceil(rank / 16) if scales is None else scales, device=act.device)
    halved = (act * each.repeat_interleave(16)).to(total.dtype)
    return (total.float() + halved.float() @ unpack_lowrank(up, down=False).float().T).to(total.dtype)


def _into(given: Tensor | None, values: Tensor) -> Tensor:
    return values if given is None else given.copy_(values)
