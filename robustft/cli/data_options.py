"""The options of `robustft data ls` and `robustft data check`."""

from __future__ import annotations

from dataclasses import dataclass

from robustft.cli import roots
from robustft.cli.options import setting


@dataclass(frozen=True)
class ListOptions:
    """List the registered data sets, their splits, and where each is found."""

    data_module: str | None = roots.data_module()
    data_location: str | None = setting(
        None, "The folder below which data sets lie; without one they are listed alone."
    )


@dataclass(frozen=True)
class CheckOptions:
    """Read data sets and compare them with what they should hold; exits with code 2 if one does
    not."""

    names: list[str] = setting(
        [], "Data sets to check [default: those that are found].", positional=True
    )
    data_module: str | None = roots.data_module()
    data_location: str | None = setting(None, "The folder below which data sets lie.")
