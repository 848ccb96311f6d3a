"""The second launch of dive's forward pass (kernels/dive.py): sums moved from their centres to m.

Σ|u − m|² = Σ|u − c|² − 2<Σ(u − c), δ> + n|δ|², δ = m − c, which a shift shared by all rows cannot
cancel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from robustft.kernels.dive_rows import counter_of, fields_of


@triton.jit
def forward_merge(
    scratch, mean, avl, pvl, new_mean, momentum, mean_stride, rows, dim, rows_each, programs,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, MERGES: tl.constexpr,
):  # fmt: skip
    """A strip of columns: m, and what moving the sums from the centres to m adds to AVL·B."""
    pid = tl.program_id(0)
    centres, sums, scalars, parts = fields_of(scratch, programs, dim)
    columns = pid * BLOCK_C + tl.arange(0, BLOCK_C)
    column_mask = columns < dim
    vector_sum = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for start in range(0, programs, BLOCK_P):
        program = start + tl.arange(0, BLOCK_P)
        mask = (program < programs)[:, None] & column_mask[None, :]
        count = tl.minimum(rows_each, rows - program * rows_each).to(tl.float32)[:, None]
        c = tl.load(centres + program[:, None] * dim + columns[None, :], mask=mask, other=0.0)
        s = tl.load(sums + program[:, None] * dim + columns[None, :], mask=mask, other=0.0)
        vector_sum += s + 2 * count * c
    before = tl.load(mean + columns * mean_stride, mask=column_mask, other=0.0).to(tl.float32)
    m = momentum * before + (1 - momentum) * tl.math.div_rn(tl.sum(vector_sum, 0), 2.0 * rows)
    tl.store(new_mean + columns, m, mask=column_mask)

    moved = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for start in range(0, programs, BLOCK_P):
        program = start + tl.arange(0, BLOCK_P)
        mask = (program < programs)[:, None] & column_mask[None, :]
        count = tl.minimum(rows_each, rows - program * rows_each).to(tl.float32)[:, None]
        c = tl.load(centres + program[:, None] * dim + columns[None, :], mask=mask, other=0.0)
        s = tl.load(sums + program[:, None] * dim + columns[None, :], mask=mask, other=0.0)
        delta = m[None, :] - c
        moved += tl.where(mask, 2 * delta * (count * delta - s), 0.0)
    tl.store(parts + pid, tl.sum(moved))

    # All of this program's stores come before its count.
    tl.debug_barrier()
    merges = tl.num_programs(0)
    if tl.atomic_add(counter_of(scratch), 1, sem="acq_rel") == merges - 1:
        i = tl.arange(0, MERGES)
        moves = tl.load(parts + i, mask=i < merges, other=0.0, cache_modifier=".cg")
        square_sum = tl.zeros((BLOCK_P,), tl.float32)
        pair_sum = tl.zeros((BLOCK_P,), tl.float32)
        for start in range(0, programs, BLOCK_P):
            program = start + tl.arange(0, BLOCK_P)
            square_sum += tl.load(scalars + 2 * program, mask=program < programs, other=0.0)
            pair_sum += tl.load(scalars + 2 * program + 1, mask=program < programs, other=0.0)
        tl.store(avl, tl.math.div_rn(tl.sum(square_sum) + tl.sum(moves), 1.0 * rows))
        tl.store(pvl, tl.math.div_rn(tl.sum(pair_sum), 1.0 * rows))
