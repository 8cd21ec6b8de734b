"""Quantising activations."""

from int4_kernels.kernels import svdq_quantize_w4a4_act_fuse_lora_cuda

__all__ = ["svdq_quantize_w4a4_act_fuse_lora_cuda"]
