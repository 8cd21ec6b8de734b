"""What attention modules have in common, and the MLP."""

from __future__ import annotations

from typing import Any

from diffusers.models.activations import GELU
from diffusers.models.attention import FeedForward
from torch import Tensor, nn

from ..ops.fused import fused_gelu_mlp
from .linear import SVDQW4A4Linear


class NunchakuBaseAttention(nn.Module):
    """An attention module whose processor is chosen by name."""

    def __init__(self, processor: str = "flashattn2", *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.processor: Any = None
        self.set_processor(processor)

    def set_processor(self, processor: str) -> None:
        """Choose the processor."""
        raise NotImplementedError("Subclass must implement this method")


def _patch_linear(module: nn.Module, linear_cls: type[SVDQW4A4Linear], **kwargs: Any) -> nn.Module:
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            setattr(module, name, linear_cls.from_linear(child, **kwargs))
        else:
            _patch_linear(child, linear_cls, **kwargs)
    return module


class NunchakuFeedForward(FeedForward):
    """An MLP of two quantised layers; the second takes unsigned activations."""

    def __init__(self, ff: FeedForward, **kwargs: Any) -> None:
        super(FeedForward, self).__init__()
        self.net = _patch_linear(ff.net, SVDQW4A4Linear, **kwargs)
        self.net[2].act_unsigned = self.net[2].precision != "nvfp4"

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Through the fused MLP, which calls neither layer as a module; through the layers where there is no GELU."""
        if isinstance(self.net[0], GELU):
            return fused_gelu_mlp(hidden_states, self.net[0].proj, self.net[2])
        for module in self.net:
            hidden_states = module(hidden_states)
        return hidden_states
