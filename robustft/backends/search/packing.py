"""What a search on a GPU packs of rows: halves, and what is known of each row.

A row less the bank's mean, c = v − μ, is rounded to ṽ = s·h with float16 h and a power of two s,
one for each tile of ROWS rows of a bank, a query's own. Beside it are known |ṽ|², ρ ≥ |c − ṽ|, and
of a bank what the test wants (screening.py).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from robustft.backends.search.plans import ROWS, up
from robustft.backends.tensors import Layout

# What `pack` makes. Another name means another format, and a saved bank is packed anew.
FORMAT = "screening-fp16-2"

COLUMNS = 64  # halves come in multiples of ROWS and of these: tiles need no masks
# Fields (rows) of Packed.numbers.
SCALE, RESIDUAL, NORM, SQUARE, NEAR, LEVEL = FIELDS = range(6)

LARGEST = 1e37  # |c|² that is trusted: float32 holds all that the test makes of two such rows
TINY = 2.0**-120  # more than underflow takes from a sum
WIDER = 2.0**-20  # share that covers a square root and a few more roundings
LOWEST = torch.finfo(torch.float32).min
SHARE = 2.0**-14  # ε of screening.py


class Packed(NamedTuple):
    """Rows as the products take them: n, d multiples of ROWS and COLUMNS, contiguous halves.

    Rows and columns beyond the true ones are zero, with numbers that no test keeps (near +inf,
    residual, norm and square 0). A field of numbers has unit stride and starts at a multiple of 16
    bytes. Rows that are not trusted have halves and residual 0, near LOWEST, and norm inf (NaN if
    they are not finite). In a bank, s and λ are those of a row's tile: ROWS rows have the same.
    """

    halves: Tensor  # [n, d] float16: entries of magnitude ≤ 1, in a bank ≤ 2¹⁵
    numbers: Tensor  # [6, n] float32: s, ρ, |ṽ|², |c|²; of a bank alone near, λ


def slack_of(dim: int) -> float:
    """σ of screening.py, which bounds what rounding takes from a sum."""
    return (1.5 * dim + 32) * 2.0**-23


def padded(count: int, dim: int, device: torch.device) -> Packed:
    """Room for `count` packed rows."""
    count, dim = up(count, ROWS), up(dim, COLUMNS)
    return Packed(
        torch.empty((count, dim), dtype=torch.float16, device=device),
        torch.empty((len(FIELDS), count), dtype=torch.float32, device=device),
    )


def layout(rows: Tensor) -> Layout:
    """What `pack` makes of these rows: dtypes and shapes."""
    count, dim = up(rows.shape[0], ROWS), up(rows.shape[1], COLUMNS)
    return [
        (rows.dtype, (rows.shape[1],)),
        (torch.float16, (count, dim)),
        (torch.float32, (len(FIELDS), count)),
    ]
