"""An exponential moving average of the trained weights, as the result in place of the last step's.

shadow ← m·shadow + (1−m)·weights        after each optimiser step, from a copy of the first weights

Without bias correction. Buffers (batch norm's statistics) are not averaged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from robustft.models.tensor_files import read_tensors, write_tensors
from robustft.models.weights import check_same_tensors

FILE = "average.safetensors"
_KEY = "robustft.average"


class Average:
    """The average with momentum `decay` of the parameters of `module` that ask for gradients."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        live = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._live = live
        self._shadow = {name: p.detach().clone() for name, p in live.items()}
        self._update = get_ema_multi_avg_fn(decay)

    def update(self) -> None:
        """Follow the weights by one step."""
        self._update(list(self._shadow.values()), [p.data for p in self._live.values()], 1)

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """The module has the averaged weights inside this block, and its own again after it."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def swap(self) -> None:
        """Exchange the weights and their average."""
        for name, parameter in self._live.items():
            parameter.data, self._shadow[name] = self._shadow[name], parameter.data

    def write(self, folder: Path) -> None:
        """Write the average into a checkpoint."""
        write_tensors(folder / FILE, self._shadow, _KEY, {})

    def read(self, folder: Path) -> None:
        """Take over what `write` wrote. Errors: InputError where it is of other weights."""
        tensors = read_tensors(folder / FILE, _KEY)
        check_same_tensors(self._shadow, tensors, "the trained weights", str(folder / FILE))
        for name, tensor in self._shadow.items():
            tensor.copy_(tensors[name])
