"""The fused MLP."""

from int4_kernels.layers import fused_gelu_mlp

__all__ = ["fused_gelu_mlp"]
