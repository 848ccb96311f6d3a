"""Rows that lie on the host, on a device chunk by chunk: a copy runs under the work before it.

Two pinned buffers and two on the device. For each chunk the host fills a pinned buffer, a second
stream copies it, and the current stream waits for that; what the caller then queues runs while the
host fills and copies the next chunk. The host waits only for a pinned buffer that is still being
copied, never for the caller's work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

_BUFFER = 1 << 26  # bytes: a millisecond of a PCIe 5 link, to which a launch adds little
_SHARE = 16  # of the free memory, for one of the two buffers on a device


def chunk_rows(row_bytes: int, device: torch.device) -> int:
    """Rows of a chunk."""
    return max(1, min(_BUFFER, free_bytes(device) // _SHARE) // row_bytes)


def free_bytes(device: torch.device) -> int:
    """Memory that a device has left; of a CPU, as if it had plenty."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 1 << 40


def stream(
    fill: Callable[[int, int, Tensor], Any],
    count: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
    size: int,
) -> Iterator[tuple[int, Tensor]]:
    """(first, the rows first … first + size − 1 on the device), for `count` rows of `width`.

    fill(first, last, out) writes rows first … last − 1 to `out` on the host. A chunk is good until
    the next is asked for; what reads it is queued on the current stream.
    """
    size = min(size, count)
    lane = _Lane(device)
    staged = [lane.pinned((size, width), dtype) for _ in range(2)]
    there = [torch.empty((size, width), dtype=dtype, device=device) for _ in range(2)]
    used = [lane.record(), lane.record()]  # memory may still serve work that is queued
    copied: list[Any] = [None, None]
    try:
        for number, first in enumerate(range(0, count, size)):
            slot, length = number % 2, min(size, count - first)
            host, chunk = staged[slot][:length], there[slot][:length]
            lane.synchronize(copied[slot])
            fill(first, first + length, host)
            copied[slot] = lane.copy(host, chunk, after=used[slot])
            lane.wait(copied[slot])
            yield first, chunk
            used[slot] = lane.record()
    finally:
        for event in copied:
            lane.wait(event)  # a caller that stops early gives back buffers that are at rest


class _Lane:
    """A stream for copies beside the current one; on a CPU, where nothing is queued, no stream."""

    def __init__(self, device: torch.device) -> None:
        self._work = torch.cuda.current_stream(device) if device.type == "cuda" else None
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def pinned(self, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=self._work is not None)

    def record(self) -> Any:
        """An event after all work that is queued now."""
        return self._work and self._work.record_event()

    def copy(self, host: Tensor, chunk: Tensor, after: Any) -> Any:
        """Queue a copy, and an event after it."""
        if self._copies is None:
            chunk.copy_(host)
            return None
        self._copies.wait_event(after)
        with torch.cuda.stream(self._copies):
            chunk.copy_(host, non_blocking=True)
        return self._copies.record_event()

    def wait(self, event: Any) -> None:
        """Work queued from now on starts after the event."""
        if self._work is not None and event is not None:
            self._work.wait_event(event)

    def synchronize(self, event: Any) -> None:
        """The host waits."""
        if event is not None:
            event.synchronize()
