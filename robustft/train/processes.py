"""Which process of a launch this is, before anything has been set up."""

from __future__ import annotations

import os

from robustft.optional import require


def rank() -> int:
    """This process's number under torchrun or accelerate launch; 0 without."""
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """How many processes the launch has."""
    return int(os.environ.get("WORLD_SIZE", 1))


def part() -> None:
    """Leave the group of processes: what follows is each one's own, and nobody waits."""
    if world() > 1:
        require("accelerate", extra="train").PartialState().destroy_process_group()
