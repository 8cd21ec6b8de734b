"""The layers of a transformer that a LoRA can name, and how each of them takes one.

The names are those of diffusers, also where the model has fused three layers into one: a LoRA for ``attn.to_q`` goes
into the first third of Nunchaku's ``attn.to_qkv``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch.nn.functional import linear

from tenkaigen_worker.engine.branches import FRAGMENT, Fragments, is_branched, pack

_FUSED = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "add_qkv_proj": ("add_q_proj", "add_k_proj", "add_v_proj"),
}
_BLOCKS = "transformer_blocks."
_MODULATION = ("img_mod.1", "txt_mod.1")
_MODULATIONS = 6  # shift, scale and gate, each before the attention and before the MLP


@dataclass(frozen=True, slots=True)
class LowRank:
    """What a LoRA adds to one layer: ``down`` (A) is rank x in, ``up`` (B) is out x rank, with its alpha."""

    down: torch.Tensor
    up: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.down.nbytes + self.up.nbytes

    def to(self, device: torch.device, dtype: torch.dtype) -> LowRank:
        """Copy both parts to where and how the model computes."""
        return LowRank(self.down.to(device, dtype), self.up.to(device, dtype))

    def hook(self, weight: float) -> Callable[..., torch.Tensor]:
        """Make the forward hook that adds this to a layer's output."""

        def add(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            return output + linear(linear(inputs[0].to(self.down), self.down), self.up) * weight

        return add


class Way(Enum):
    """How a layer takes a LoRA."""

    HOOK = "added to its output"
    INTERLEAVED_HOOK = "added to its output, whose order is not that of diffusers"
    BRANCH = "appended to its low-rank branch"
    QUANTISED = "is quantised in a way that holds no LoRA"
    WAITING = "waits in main memory, and holds no LoRA there"


CLOSED = (Way.QUANTISED, Way.WAITING)


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer as a LoRA names it.

    ``name`` and ``module`` are the model's own; ``first`` is the output of that module where this layer begins.
    """

    name: str
    module: Any
    way: Way
    in_features: int
    out_features: int
    first: int = 0

    def keep(self, low_rank: LowRank, device: torch.device, dtype: torch.dtype) -> LowRank | Fragments:
        """Put a LoRA's parts for this layer on the device, in the order and the number type that it needs there."""
        match self.way:
            case Way.BRANCH:
                low_rank = low_rank.to(device, self.module.proj_down.dtype)
                first = self.first // FRAGMENT
                return Fragments(pack(low_rank.down, down=True), pack(low_rank.up, down=False), first)
            case Way.INTERLEAVED_HOOK:
                # Nunchaku's block turns dim x 6 into the 6 x dim of diffusers, after the layer.
                up = low_rank.up.view(_MODULATIONS, -1, low_rank.up.shape[1]).transpose(0, 1).flatten(0, 1)
                return LowRank(low_rank.down, up).to(device, dtype)
            case _:
                return low_rank.to(device, dtype)


def find_layers(transformer: torch.nn.Module) -> dict[str, Layer]:
    """Find every linear layer of a transformer, by the name that a LoRA has for it."""
    # Nunchaku's offload moves blocks through buffers of fixed shapes, and runs copies of the modules.
    waiting = bool(getattr(transformer, "offload", False))
    layers: dict[str, Layer] = {}
    for name, module in transformer.named_modules():
        if not is_linear(module):
            continue
        way = Way.WAITING if waiting and name.startswith(_BLOCKS) else _way(name, module)
        parent, _, last = name.rpartition(".")
        names = [f"{parent}.{part}" for part in _FUSED[last]] if last in _FUSED and is_branched(module) else [name]
        size = module.out_features // len(names)
        layers |= {
            target: Layer(name, module, way, module.in_features, size, number * size)
            for number, target in enumerate(names)
        }
    return layers


def is_linear(module: Any) -> bool:
    """Whether a module is a linear layer, quantised or not."""
    # Quantised layers hold their weights in other shapes, but still say what goes in and out.
    return isinstance(module, torch.nn.Linear) or (hasattr(module, "in_features") and hasattr(module, "out_features"))


def _way(name: str, module: Any) -> Way:
    if is_branched(module):
        return Way.BRANCH
    if hasattr(module, "qweight"):
        return Way.INTERLEAVED_HOOK if name.endswith(_MODULATION) else Way.QUANTISED
    return Way.HOOK
