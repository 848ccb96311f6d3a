"""The drop-in ops: arguments are checked, a backend is chosen, autograd is tied to it."""

from robustft.ops.dive import dive_loss

__all__ = ["dive_loss"]
