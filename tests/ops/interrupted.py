"""Run by test_interrupt.py: long calls, one after the other, each ended by Ctrl-C.

Says "begin NAME" right before the native function runs, and "stopped NAME" when KeyboardInterrupt
came out of it and a small call after it still gives what it gave before; the last one is raised
again. Uninterrupted each takes a minute or so.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from robustft import _native
from robustft.backends.cpu import dive, mpm_nce, nearest, rsa
from robustft.backends.options import MpmNceOptions, Positives

MANY = 100_000


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)
    few, rows = torch.randn(50, 16), torch.randn(MANY, 64)
    one, scale = torch.randn(1, 64), torch.tensor(1.0)
    options = MpmNceOptions(margin=0.05, label_smoothing=0.0, symmetric=True)
    mine = Positives(None, None, None, -100)
    saved = mpm_nce.saved_shapes(MANY, MANY, True, 0)
    statistics = [torch.ones(shape) for shape in saved[0:2]]

    def small() -> torch.Tensor:
        return nearest.kth_distance(few, few, nearest.pack(few), 3, True)

    packed = nearest.pack(rows)
    expected = small()
    calls: dict[str, Callable[[], Any]] = {
        "nearest_find": lambda: nearest.kth_distance(
            one.expand(20 * MANY, 64), rows, packed, 9, True
        ),
        "rsa_moments": lambda: rsa.correlation(rows, rows.flip(0), "euclidean", "pearson"),
        "rsa_count": lambda: rsa.correlation(rows, rows.flip(0), "cosine", "spearman"),
        "dive_forward": lambda: dive.forward(
            *(one.expand(2000 * MANY, 64),) * 4, torch.zeros(64), 0.9, True
        ),
        "mpm_nce_forward": lambda: mpm_nce.forward(rows, rows, mine, scale, options, 0),
        "mpm_nce_backward": lambda: mpm_nce.backward(
            rows, rows, mine, scale, *statistics, torch.empty(0), scale, options, True, True
        ),
    }
    for name, call in calls.items():
        announce(name)
        try:
            call()
        except KeyboardInterrupt as error:
            if not torch.equal(small(), expected):
                sys.exit(f"{name}: another result after it")
            print("stopped", name, flush=True)
            last = error
    raise last


def announce(name: str) -> None:
    """Have the native function say that it begins, at its next call."""
    function = getattr(_native, name)

    def announced(*arguments: Any) -> Any:
        setattr(_native, name, function)
        print("begin", name, flush=True)
        return function(*arguments)

    setattr(_native, name, announced)


if __name__ == "__main__":
    main()
