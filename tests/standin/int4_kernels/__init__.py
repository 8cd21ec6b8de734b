"""The arithmetic of Nunchaku's 4-bit kernels in plain tensors, shared by the two stand-ins beside this package."""
