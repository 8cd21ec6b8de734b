"""Multiplying a few rows with a 4-bit matrix."""

from int4_kernels.kernels import awq_gemv_w4a16_cuda

__all__ = ["awq_gemv_w4a16_cuda"]
