"""A stand-in for the Nunchaku wheel, as far as Qwen-Image needs it: real names and formats, no CUDA kernel.

Facts are those of release 1.2.1. Its faults are here too, because code that uses the wheel has to live with them:
importing it sets up the root logger; the transformer's forward fails on diffusers 0.37 and later, does not look at the
text mask, empties the CUDA cache each time and needs CUDA streams; another dtype is refused. What the kernels do is
computed in ``int4_kernels``.
"""

from .models import NunchakuQwenImageTransformer2DModel

__all__ = ["NunchakuQwenImageTransformer2DModel"]
