"""The errors a user can cause. The command line prints them in one line and exits with code 2."""

from __future__ import annotations

import re
import warnings


class InputError(ValueError):
    """An argument, file or configuration is not usable; the message says what was expected.

    A DataLoader raises a worker's error anew with the worker's traceback as its message: of that
    the error's own message is kept, so that it reads the same from any process.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(_own_message(arg) if isinstance(arg, str) else arg for arg in args))


_WORKERS = re.compile(r"Caught \w+ in .*\nOriginal Traceback")
_RAISED = re.compile(r"^robustft\.[\w.]+: ", re.MULTILINE)


def _own_message(text: str) -> str:
    if not _WORKERS.match(text):
        return text
    *_, last = [0, *(found.end() for found in _RAISED.finditer(text))]
    return text[last:].strip()


class InputTypeError(InputError, TypeError):
    """An argument has the wrong type."""


class SecondDerivativeError(InputError, RuntimeError):
    """A derivative of a gradient was asked for that no kernel has; autograd's own errors are
    RuntimeErrors, too."""


class DivergedError(ArithmeticError):
    """Training left the finite numbers. The command line prints it and exits with code 1."""

    def __init__(self, what: str, step: int, lr: float) -> None:
        super().__init__(
            f"training diverged: the {what} is not finite at step {step} (learning rate {lr:g}); "
            "try a smaller learning rate, a longer warm-up, or clipping the gradient"
        )
        self.step, self.lr = step, lr


class LostProcessError(RuntimeError):
    """Of several processes another one has ended, or cannot be reached. The command line prints it
    and exits with code 1."""


class InputWarning(UserWarning):
    """Something about the input that the user should know; work goes on."""


def warn(message: str) -> None:
    """Say `message` as an InputWarning. The command line prints it in one line."""
    warnings.warn(message, InputWarning, stacklevel=3)
