"""The errors a user can cause. The command line prints them in one line and exits with code 2."""

from __future__ import annotations


class InputError(ValueError):
    """An argument, file or configuration is not usable; the message says what was expected."""


class InputTypeError(InputError, TypeError):
    """An argument has the wrong type."""
