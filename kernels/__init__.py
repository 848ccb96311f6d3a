"""Triton kernels, one file an op; installed as robustft.kernels."""
