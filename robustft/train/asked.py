"""What signals and the clock ask of a run between two steps: to stop, and to save."""

from __future__ import annotations

import time
from typing import Any

import torch

from robustft.train.interrupt import Interrupts


class Asked:
    """Whether a run is asked to stop or to save; several processes are told the same at a step.

    save_minutes: how long after a checkpoint the clock asks for the next; 0 is never.
    """

    def __init__(self, interrupts: Interrupts, accelerator: Any, save_minutes: float) -> None:
        self.interrupts, self.accelerator = interrupts, accelerator
        self.save_minutes = save_minutes
        self.saved()

    def saved(self) -> None:
        """Count the minutes from now on."""
        self._saved_at = time.monotonic()

    def now(self, *, together: bool) -> tuple[int, bool]:
        """(signal number or 0, whether to save now).

        Several processes must stop at one step: they ask each other where `together` says so.
        """
        stop = self.interrupts.received
        late = 0 < self.save_minutes * 60 <= time.monotonic() - self._saved_at
        if self.accelerator.num_processes > 1:
            if not together:
                return 0, False
            late = late and self.accelerator.is_main_process
            mine = torch.tensor([stop, late], dtype=torch.long, device=self.accelerator.device)
            stop, late = self.accelerator.gather(mine[None]).amax(dim=0).tolist()
        return stop, bool(stop or late)
