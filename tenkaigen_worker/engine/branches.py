"""LoRAs in the low-rank branch of Nunchaku's 4-bit layers.

SVDQuant (Li et al. 2024) keeps beside a layer's 4-bit weights a branch in 16 bits, ``up(down(x))``, which sees the
input before it is smoothed and quantised. That is the form of a LoRA, so a LoRA is further ranks of this branch, and
costs no kernel of its own. It also reaches the fused MLP, which calls no module and runs no hook.

The kernels read both halves in fragments of 16 channels by 16 ranks: ``[channels / 16][ranks / 16][256]``, whatever
two-dimensional shape the tensor claims to have. Ranks are therefore appended to each row of fragments, and those of the
checkpoint keep their bits. Of the fused layers (``to_qkv``) a LoRA changes only some outputs: there the rest of ``up``
is zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad

FRAGMENT = 16  # channels, and ranks
MAX_RANK = 1024  # the kernels' scales per fragment end here, and they do not check (nunchaku's lora.cuh)


@dataclass(frozen=True, slots=True)
class Fragments:
    """A LoRA's parts for one layer, packed: ``down`` and ``up`` are channels / 16 x ranks / 16 x 256.

    ``first`` is the row of fragments of the layer's ``up`` where this one begins.
    """

    down: torch.Tensor
    up: torch.Tensor
    first: int

    @property
    def nbytes(self) -> int:
        return self.down.nbytes + self.up.nbytes

    @property
    def rank(self) -> int:
        return self.down.shape[1] * FRAGMENT


@dataclass(frozen=True, slots=True)
class Addition:
    """What one LoRA adds to a branch, and how strongly."""

    fragments: Fragments
    weight: float

    def up(self, rows: int, dtype: torch.dtype) -> torch.Tensor:
        """Weigh the half that writes, in float32, and put it among so many rows of fragments, the others zero."""
        weighed = (self.fragments.up.float() * self.weight).to(dtype)
        first = self.fragments.first
        return pad(weighed, (0, 0, 0, 0, first, rows - first - len(weighed)))


def is_branched(module: Any) -> bool:
    """Whether this is a 4-bit layer with a low-rank branch: ``SVDQW4A4Linear`` of nunchaku or of nunchaku_lite."""
    return all(hasattr(module, name) for name in ("proj_down", "proj_up", "qweight"))


def pack(weight: torch.Tensor, *, down: bool) -> torch.Tensor:
    """Lay out one half of a low-rank pair as the kernels read it, with zeros up to the next multiple of 16 ranks.

    ``weight`` is ranks x channels for ``down``, otherwise channels x ranks; the answer is channels / 16 x ranks / 16 x
    256. Within a fragment each of a warp's 32 lanes has the eight numbers that its matrix instruction takes (``mma``
    m16n8k16), as nunchaku's ``pack_lowrank_weight`` orders them.
    """
    weight = pad(weight, (0, -weight.shape[1] % FRAGMENT, 0, -weight.shape[0] % FRAGMENT))
    rows, columns = (size // FRAGMENT for size in weight.shape)
    # Within a fragment: rows as 2 x 8 lanes, columns as 2 x 4 lanes x 2 neighbours.
    parts = weight.reshape(rows, 2, 8, columns, 2, 4, 2)
    channels, ranks = (3, 0) if down else (0, 3)
    return parts.permute(channels, ranks, 2, 5, 1, 4, 6).flatten(2)


@contextmanager
def appended(module: Any, additions: Sequence[Addition]) -> Iterator[None]:
    """Append LoRAs to a layer's branch for as long as the context lasts; its own parameters are then put back."""
    down, up, rank = module.proj_down, module.proj_up, module.rank
    rows = len(up) // FRAGMENT
    try:
        module.proj_down = _grown(down, [addition.fragments.down for addition in additions])
        module.proj_up = _grown(up, [addition.up(rows, up.dtype) for addition in additions])
        module.rank = module.proj_down.shape[1]
        yield
    finally:
        module.proj_down, module.proj_up, module.rank = down, up, rank


def _grown(half: torch.Tensor, more: Sequence[torch.Tensor]) -> torch.nn.Parameter:
    """Copy one half of a branch with more fragments behind each row of its own."""
    own = half.detach().view(len(half) // FRAGMENT, -1, FRAGMENT * FRAGMENT)
    return torch.nn.Parameter(torch.cat([own, *more], dim=1).view(len(half), -1), requires_grad=False)
