"""Models."""

from .transformers import NunchakuQwenImageTransformer2DModel

__all__ = ["NunchakuQwenImageTransformer2DModel"]
