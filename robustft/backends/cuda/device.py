"""What the shape of a launch depends on."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

from robustft.backends.simulation import emulating


class Card(NamedTuple):
    """A device."""

    processors: int
    shared: int  # bytes that a block may have
    wgmma: bool  # whether it has such instructions


@functools.cache
def card_of(device: torch.device) -> Card:
    """Of a device; the emulator plays a small one of sm_90."""
    if emulating():
        return Card(4, 227 << 10, True)
    of: Any = torch.cuda.get_device_properties(device)  # older torch does not type all of it
    wgmma = (of.major, of.minor) == (9, 0)
    return Card(of.multi_processor_count, of.shared_memory_per_block_optin, wgmma)
