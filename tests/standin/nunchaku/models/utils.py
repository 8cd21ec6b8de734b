"""Fused projections and offloading."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def fuse_linears(linears: list[nn.Linear]) -> nn.Linear:
    """One layer that is as wide as all together; its weights are not those of the parts."""
    first = linears[0]
    if len(linears) == 1:
        return first
    assert all(linear.in_features == first.in_features for linear in linears)
    return nn.Linear(
        first.in_features,
        sum(linear.out_features for linear in linears),
        bias=all(linear.bias is not None for linear in linears),
        dtype=first.weight.dtype,
        device=first.weight.device,
    )


class CPUOffloadManager:
    """Keeps some blocks on the GPU and copies the others in turn. The stand-in has only its beginning."""

    def __init__(
        self,
        blocks: list[nn.Module],
        device: str | torch.device = "cuda",
        use_pin_memory: bool = True,
        on_gpu_modules: list[nn.Module] | None = None,
        num_blocks_on_gpu: int = 1,
        empty_cache_freq: int = 0,
        **kwargs: Any,
    ) -> None:
        assert num_blocks_on_gpu > 0
        if not torch.cuda.is_available():
            raise RuntimeError("offloading copies blocks over CUDA streams, and there is no CUDA here")
        raise NotImplementedError("the stand-in does not model offloading")
