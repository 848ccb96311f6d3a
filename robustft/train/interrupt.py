"""Ctrl-C, SIGTERM and SIGHUP: the step in progress is finished and saved, then the program ends."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

#: What asks a run to end. Windows has no SIGHUP.
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C stopped a run after step `step`, whose checkpoint is `saved`; `status` is 130."""

    def __init__(self, number: int, step: int, saved: Path) -> None:
        super().__init__(f"stopped at step {step}, saved in {saved}")
        self.status, self.step, self.saved = 128 + number, step, saved


class Terminated(SystemExit):
    """As `Interrupted`, by another signal: `status` is 128 plus its number."""

    def __init__(self, number: int, step: int, saved: Path) -> None:
        super().__init__(128 + number)
        self.status, self.step, self.saved = 128 + number, step, saved


class Interrupts:
    """Notes the first signal for the loop to act upon; a second one has its usual effect at once.

    A signal that the program was started to ignore (nohup) stays ignored. Handlers can be set in
    the main thread only; elsewhere, and with `active` False, this does nothing.
    """

    def __init__(self, active: bool) -> None:
        self.active = active and threading.current_thread() is threading.main_thread()
        self.received: int = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if self.active:
            found = {number: signal.getsignal(number) for number in SIGNALS}
            self._before = {n: h for n, h in found.items() if h is not signal.SIG_IGN}
            for number in self._before:
                signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def leave(number: int, step: int, saved: Path) -> None:
    """End the program as signal `number` asked for, after `step` was saved."""
    raise (Interrupted if number == signal.SIGINT else Terminated)(number, step, saved)
