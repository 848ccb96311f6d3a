"""Training that diverges is noticed at the step where it does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from robustft.errors import DivergedError
from robustft.train.sharded import local_of


class Watch:
    """Remembers the first step whose loss was not finite.

    Where asking costs nothing (one process on a CPU) every step is asked for; elsewhere the answer
    waits on the device until `check`, and all processes learn of it together.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.each_step = accelerator.num_processes == 1 and accelerator.device.type == "cpu"
        self._first: Tensor = torch.full((1,), _NEVER, device=accelerator.device)

    def note(self, step: int, loss: Tensor) -> None:
        """Take down the loss (0-d) of `step`."""
        now = torch.where(loss.isfinite(), _NEVER, step)
        self._first = torch.minimum(self._first, now)

    def check(self, rate: float, parameters: Iterable[Tensor] = (), step: int = 0) -> None:
        """Raise DivergedError if a loss was not finite, or if `parameters` after `step` are not.

        Called by all processes at the same steps.
        """
        first = self._first
        if self.accelerator.num_processes > 1:
            first = self.accelerator.gather(first).min()
        if int(first) < _NEVER:
            raise DivergedError("loss", int(first), rate)
        if not self._finite([local_of(tensor) for tensor in parameters]):
            raise DivergedError("model", step, rate)

    @torch.no_grad()
    def _finite(self, tensors: list[Tensor]) -> bool:
        if not tensors:
            return True
        found = torch.stack([tensor.isfinite().all() for tensor in tensors]).all()
        if self.accelerator.num_processes > 1:
            found = self.accelerator.gather(found[None].int()).min()
        return bool(found)


_NEVER = 2**62
