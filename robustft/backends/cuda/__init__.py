"""Launchers of the CUDA kernels in csrc/cuda (installed as robustft/csrc/cuda)."""
