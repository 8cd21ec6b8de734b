"""The quantised layers: as in the wheel, but an empty layer is made where the dense one is."""

from __future__ import annotations

from typing import Any, Self

import torch
from int4_kernels import layers
from torch import nn


class SVDQW4A4Linear(layers.SVDQW4A4Linear):
    """4-bit weights and activations with a low-rank branch."""

    @classmethod
    def from_linear(cls, linear: nn.Linear, **kwargs: Any) -> Self:
        """An empty layer of the same shape, on the given device."""
        layer = super().from_linear(linear, **{key: value for key, value in kwargs.items() if key != "device"})
        return layer.to_empty(device=kwargs.get("device", linear.weight.device))


class AWQW4A16Linear(layers.AWQW4A16Linear):
    """4-bit weights and 16-bit activations."""

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        group_size: int = 64,
        torch_dtype: torch.dtype = torch.bfloat16,
        device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> Self:
        """An empty layer of the same shape."""
        where = linear.weight.device if device is None else device
        return super().from_linear(linear, group_size, torch_dtype, where, **kwargs)
