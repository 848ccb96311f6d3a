"""Launchers of the C++ kernels: they hand addresses, strides and sizes to robustft._native."""
