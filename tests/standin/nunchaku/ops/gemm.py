"""Multiplying codes with codes."""

from int4_kernels.kernels import svdq_gemm_w4a4_cuda

__all__ = ["svdq_gemm_w4a4_cuda"]
