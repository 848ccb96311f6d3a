"""What each op computes, in plain PyTorch: the truth for every test, and the fallback backend.

Each module has the definition, differentiable by autograd and exact in float64, named as the op,
and beside it `forward` and `backward`, the explicit formulas that backend="reference" runs.
"""
