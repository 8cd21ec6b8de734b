"""The CUDA kernels by name."""
