"""Launchers of the CUDA kernels in csrc/cuda (installed as robustft.cuda.src)."""
