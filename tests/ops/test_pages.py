"""Large pages: the advice reaches the buffer, the whole pages of it alone, and changes nothing."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch

from robustft.backends.cpu import pointers

_native = pytest.importorskip("robustft._native")

PAGE = 2 << 20
SMAPS = Path("/proc/self/smaps")
KNOWN = Path("/sys/kernel/mm/transparent_hugepage").exists() and SMAPS.exists()
needs_pages = pytest.mark.skipif(not KNOWN, reason="this system has no transparent large pages")


def advised(address: int) -> bool:
    """Whether the mapping that holds an address has the flag of MADV_HUGEPAGE."""
    inside = False
    for line in SMAPS.read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if "-" in first:
            begin, end = (int(x, 16) for x in first.split("-"))
            inside = begin <= address < end
        elif inside and first == "VmFlags:":
            return "hg" in line.split()
    raise AssertionError(f"{address:#x} is not mapped")


@pytest.mark.usefixtures("native")
@needs_pages
def test_whole_pages_are_advised_and_no_others() -> None:
    # A mapping of our own: memory from an allocator may have been advised in an earlier life.
    whole = mmap.mmap(-1, 64 * PAGE)
    x = torch.frombuffer(whole, dtype=torch.uint8)
    first = -(-x.data_ptr() // PAGE) * PAGE
    _native.advise(first + 8 * PAGE + 1, 3 * PAGE)
    expected = {8: False, 9: True, 10: True, 11: False, 12: False}
    assert {k: advised(first + k * PAGE) for k in expected} == expected
    _native.advise(first + 20 * PAGE + 1, PAGE)  # no whole page
    assert not advised(first + 20 * PAGE)
    assert not advised(first + 21 * PAGE)


@pytest.mark.usefixtures("native")
def test_contents_stay() -> None:
    x = torch.arange(3 * PAGE, dtype=torch.int32)
    copy = x.clone()
    _native.advise(x.data_ptr(), x.nbytes)
    _native.advise(x.data_ptr() + 4, 0)
    assert torch.equal(x, copy)


@pytest.mark.usefixtures("native")
@needs_pages
def test_large_tensors_are_advised() -> None:
    x = pointers.empty((64, PAGE), torch.bfloat16)
    assert (x.shape, x.dtype, x.is_contiguous()) == ((64, PAGE), torch.bfloat16, True)
    assert advised(x.data_ptr() + x.nbytes // 2)
    assert pointers.empty((3, 0), torch.float32).shape == (3, 0)
