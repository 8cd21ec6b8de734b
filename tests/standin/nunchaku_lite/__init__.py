"""A stand-in for nunchaku_lite, as far as Qwen-Image needs it: real names and ways of loading, no CUDA kernel.

It patches diffusers' own transformer in place, honours the text mask, and runs where there is no CUDA. Its run-time
LoRAs are not modelled; the parameters that they would change are.
"""

from .__version__ import __version__
from .core import TransformerAdapter, list_adapters, load_nunchaku_pipeline, patch_transformer, register_adapter

__all__ = [
    "TransformerAdapter",
    "__version__",
    "list_adapters",
    "load_nunchaku_pipeline",
    "patch_transformer",
    "register_adapter",
]
