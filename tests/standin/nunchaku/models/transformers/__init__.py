"""Transformers."""

from .transformer_qwenimage import NunchakuQwenImageTransformer2DModel

__all__ = ["NunchakuQwenImageTransformer2DModel"]
