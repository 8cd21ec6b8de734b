"""The two quantised layers and the fused MLP: names, shapes and dtypes of their parameters are the real ones'."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from .kernels import (
    BLOCK_ROWS,
    awq_gemv_w4a16_cuda,
    svdq_gemm_w4a4_cuda,
    svdq_quantize_w4a4_act_fuse_lora_cuda,
)

GROUPS = {"int4": 64, "nvfp4": 16}


class SVDQW4A4Linear(nn.Module):
    """4-bit weights and activations with a 16-bit low-rank branch beside them (SVDQuant)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int = 32,
        bias: bool = True,
        precision: str = "int4",
        act_unsigned: bool = False,
        torch_dtype: torch.dtype = torch.bfloat16,
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__()
        if precision not in GROUPS:
            raise ValueError(f"Invalid precision: {precision}")
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.precision, self.torch_dtype, self.act_unsigned = precision, torch_dtype, act_unsigned
        self.group_size = GROUPS[precision]
        four_bit_floats = precision == "nvfp4"
        scale_dtype = torch.float8_e4m3fn if four_bit_floats else torch_dtype

        def parameter(*shape: int, dtype: torch.dtype = torch_dtype, trained: bool = False) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, dtype=dtype, device=device or "cpu"), requires_grad=trained)

        self.qweight = parameter(out_features, in_features // 2, dtype=torch.int8)
        self.bias = parameter(out_features, trained=True) if bias else None
        self.wscales = parameter(in_features // self.group_size, out_features, dtype=scale_dtype)
        self.smooth_factor = parameter(in_features)
        self.smooth_factor_orig = parameter(in_features)
        self.proj_down = parameter(in_features, rank, trained=True)
        self.proj_up = parameter(out_features, rank, trained=True)
        self.wcscales = parameter(out_features) if four_bit_floats else None
        self.wtscale = 1.0 if four_bit_floats else None

    @classmethod
    def from_linear(cls, linear: nn.Linear, **kwargs: Any) -> Self:
        """An empty layer of the same shape; ``in_features`` and ``torch_dtype`` may be given."""
        return cls(
            in_features=kwargs.pop("in_features", linear.in_features),
            out_features=linear.out_features,
            bias=linear.bias is not None,
            torch_dtype=kwargs.pop("torch_dtype", linear.weight.dtype),
            device=linear.weight.device,
            **kwargs,
        )

    def forward(self, x: Tensor, output: Tensor | None = None) -> Tensor:
        """From batch x tokens x in to batch x tokens x out."""
        batch, tokens, channels = x.shape
        rows = x.reshape(batch * tokens, channels)
        if output is None:
            output = rows.new_empty(len(rows), self.out_features)
        return self.forward_quant(*self.quantize(rows), output).reshape(batch, tokens, -1)

    def quantize(self, x: Tensor, pad_size: int = BLOCK_ROWS) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, scales and low-rank activation of tokens x in."""
        return svdq_quantize_w4a4_act_fuse_lora_cuda(
            x, lora_down=self.proj_down, smooth=self.smooth_factor, fp4=self.precision == "nvfp4", pad_size=pad_size
        )

    def forward_quant(
        self, quantized_x: Tensor, ascales: Tensor, lora_act: Tensor, output: Tensor | None = None
    ) -> Tensor:
        """Go on from what :meth:`quantize` gave."""
        if output is None:
            shape = len(quantized_x), self.out_features
            output = torch.empty(shape, dtype=self.proj_up.dtype, device=quantized_x.device)
        svdq_gemm_w4a4_cuda(
            act=quantized_x,
            wgt=self.qweight,
            out=output,
            ascales=ascales,
            wscales=self.wscales,
            lora_act_in=lora_act,
            lora_up=self.proj_up,
            bias=self.bias,
            fp4=self.precision == "nvfp4",
            alpha=self.wtscale,
            wcscales=self.wcscales,
            act_unsigned=self.act_unsigned,
        )
        return output


class AWQW4A16Linear(nn.Module):
    """4-bit weights and 16-bit activations, for a handful of rows; without a low-rank branch."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        group_size: int = 64,
        torch_dtype: torch.dtype = torch.bfloat16,
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.group_size = in_features, out_features, group_size

        def parameter(*shape: int, dtype: torch.dtype = torch_dtype, trained: bool = False) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, dtype=dtype, device=device or "cpu"), requires_grad=trained)

        self.qweight = parameter(out_features // 4, in_features // 2, dtype=torch.int32)
        self.bias = parameter(out_features, trained=True) if bias else None
        self.wscales = parameter(in_features // group_size, out_features)
        self.wzeros = parameter(in_features // group_size, out_features)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        group_size: int = 64,
        torch_dtype: torch.dtype = torch.bfloat16,
        device: str | torch.device = "cpu",
        **kwargs: Any,
    ) -> Self:
        """An empty layer of the same shape. It is on the CPU in bfloat16 unless told otherwise; the rest is ignored."""
        return cls(
            in_features=linear.in_features,
            out_features=linear.out_features,
            bias=linear.bias is not None,
            group_size=group_size,
            torch_dtype=torch_dtype,
            device=device,
        )

    def forward(self, x: Tensor) -> Tensor:
        """From rows x in to rows x out."""
        output = awq_gemv_w4a16_cuda(
            in_feats=x,
            kernel=self.qweight,
            scaling_factors=self.wscales,
            zeros=self.wzeros,
            m=x.shape[0],
            n=self.out_features,
            k=self.in_features,
            group_size=self.group_size,
        )
        return output if self.bias is None else output.add_(self.bias)


def fused_gelu_mlp(x: Tensor, fc1: SVDQW4A4Linear, fc2: SVDQW4A4Linear, pad_size: int = BLOCK_ROWS) -> Tensor:
    """Both layers of an MLP on batch x tokens x in; the second is never called as a module."""
    batch, tokens, channels = x.shape
    rows = x.view(batch * tokens, channels)
    codes, scales, act = fc1.quantize(rows)
    hidden_codes = codes.new_empty(len(codes), fc1.out_features // 2)
    hidden_scales = x.new_empty(fc1.out_features // fc2.group_size, len(codes))
    hidden_act = act.new_empty(len(codes), fc2.proj_down.shape[1])
    svdq_gemm_w4a4_cuda(
        act=codes,
        wgt=fc1.qweight,
        qout=hidden_codes,
        ascales=scales,
        wscales=fc1.wscales,
        oscales=hidden_scales,
        lora_act_in=act,
        lora_up=fc1.proj_up,
        lora_down=fc2.proj_down,
        lora_act_out=hidden_act,
        bias=fc1.bias,
        smooth_factor=fc2.smooth_factor,
        fp4=fc1.precision == "nvfp4",
        alpha=fc1.wtscale,
        wcscales=fc1.wcscales,
    )
    output = rows.new_empty(len(rows), fc2.out_features)
    return fc2.forward_quant(hidden_codes, hidden_scales, hidden_act, output).view(batch, tokens, -1)
