"""The packed layout of the low-rank branch."""

from __future__ import annotations

import torch
from int4_kernels.formats import pack_lowrank, unpack_lowrank
from torch import Tensor


def pack_lowrank_weight(weight: Tensor, down: bool) -> Tensor:
    """Pack rank x in (``down``) or out x rank; float32 becomes bfloat16."""
    return pack_lowrank(weight.to(torch.bfloat16) if weight.dtype == torch.float32 else weight, down)


def unpack_lowrank_weight(weight: Tensor, down: bool) -> Tensor:
    """The inverse."""
    return unpack_lowrank(weight, down)
