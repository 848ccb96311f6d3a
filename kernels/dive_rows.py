"""The kernels of dive (kernels/dive.py) that take rows: sums about a centre, and gradients.

Numerics. All arithmetic is float32. Rows are scaled by a power of two before they are squared, so
no row is too long or too short. u = (f − f0)/|f| + f0·(1/|f| − 1/|f0|), the second difference from
Σ(f − f0)(f + f0): a fine-tuned row close to f0 keeps the digits that two rounded unit vectors lose.
"""

from __future__ import annotations

import triton
import triton.language as tl

COUNTER = tl.constexpr(4)  # words before the fields of the scratch memory: they stay aligned


@triton.jit
def _power_of_two(x):
    """The largest power of two that is at most x, at least 2^-126."""
    bits = tl.maximum(x, 1.1754943508222875e-38).to(tl.int32, bitcast=True) & 0x7F800000
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _norm(x):
    """|x| of each row, as (a power of two, the norm of the row over it)."""
    scale = _power_of_two(tl.max(tl.abs(x), 1))
    y = x * tl.math.div_rn(1.0, scale)[:, None]
    return scale, tl.sqrt_rn(tl.sum(y * y, 1))


@triton.jit
def _difference(x, x0, NORMALIZE: tl.constexpr):
    """n(x) − n(x0) [R, D]; 1/|x| [R] and whether |x| is clamped to 1e-12."""
    if NORMALIZE:
        scale, length = _norm(x)
        scale0, length0 = _norm(x0)
        clamped = scale * length < 1e-12
        clamped0 = scale0 * length0 < 1e-12
        norm = tl.where(clamped, 1e-12, scale * length)
        norm0 = tl.where(clamped0, 1e-12, scale0 * length0)
        inverse = tl.math.div_rn(1.0, norm)
        inverse0 = tl.math.div_rn(1.0, norm0)
        # Between rows of like length: 1/|x| − 1/|x0|, over `scale`.
        down = tl.math.div_rn(1.0, scale)[:, None]
        a, b = x * down, x0 * down
        ratio = norm0 * tl.math.div_rn(1.0, scale)
        shift = -tl.sum((a - b) * (a + b), 1)
        shift = tl.math.div_rn(shift, (length + ratio) * length * ratio)
        shift = tl.math.div_rn(shift, scale)
        near = (norm <= 2 * norm0) & (norm0 <= 2 * norm) & (clamped == 0) & (clamped0 == 0)
        close = (x - x0) * inverse[:, None] + x0 * shift[:, None]
        plain = x * inverse[:, None] - x0 * inverse0[:, None]
        u = tl.where(near[:, None], close, plain)
    else:
        u = x - x0
        inverse = tl.full((x.shape[0],), 1.0, tl.float32)
        clamped = inverse < 0
    return u, inverse, clamped


@triton.jit
def _load_rows(x, stride, rows, columns, end, dim):
    mask = (rows < end)[:, None] & (columns < dim)[None, :]
    offsets = rows.to(tl.int64)[:, None] * stride + columns[None, :]
    return tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _moves(x, x0, stride, stride0, rows, columns, end, dim, NORMALIZE: tl.constexpr):
    """n(x) − n(x0) of some rows."""
    u, _inverse, _clamped = _difference(
        _load_rows(x, stride, rows, columns, end, dim),
        _load_rows(x0, stride0, rows, columns, end, dim),
        NORMALIZE,
    )
    return u


@triton.jit
def counter_of(scratch):
    """Of the programs of the second launch that are done: the first word."""
    return scratch.to(tl.pointer_type(tl.int32), bitcast=True)


@triton.jit
def fields_of(scratch, programs, dim):
    """Centres [programs, D], sums [programs, D], scalars [programs, 2] and parts."""
    centres = scratch + COUNTER
    sums = centres + programs * dim
    scalars = sums + programs * dim
    return centres, sums, scalars, scalars + 2 * programs


@triton.jit
def forward_rows(
    f, f0, g, g0, scratch, f_stride, f0_stride, g_stride, g0_stride, rows, dim, rows_each,
    NORMALIZE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Rows [pid·rows_each, …): their centre, Σ(u−c)+(v−c) [D], Σ|u−c|²+|v−c|² and Σ|u−v|²."""
    pid = tl.program_id(0)
    centres, sums, scalars, _parts = fields_of(scratch, tl.num_programs(0), dim)
    begin = pid * rows_each
    end = tl.minimum(begin + rows_each, rows)
    columns = tl.arange(0, BLOCK_D)

    first = begin + tl.arange(0, 1)
    u_first = _moves(f, f0, f_stride, f0_stride, first, columns, end, dim, NORMALIZE)
    v_first = _moves(g, g0, g_stride, g0_stride, first, columns, end, dim, NORMALIZE)
    centre = 0.5 * (u_first + v_first)  # [1, D]

    vector_sum = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    square_sum = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    pair_sum = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    for start in range(begin, end, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        u = _moves(f, f0, f_stride, f0_stride, r, columns, end, dim, NORMALIZE)
        v = _moves(g, g0, g_stride, g0_stride, r, columns, end, dim, NORMALIZE)
        row_mask = (r < end)[:, None]
        du = tl.where(row_mask, u - centre, 0.0)
        dv = tl.where(row_mask, v - centre, 0.0)
        vector_sum += du + dv
        square_sum += du * du + dv * dv
        pair_sum += (du - dv) * (du - dv)

    offsets = pid * dim + columns
    tl.store(centres + offsets, tl.sum(centre, 0), mask=columns < dim)
    tl.store(sums + offsets, tl.sum(vector_sum, 0), mask=columns < dim)
    tl.store(scalars + 2 * pid, tl.sum(square_sum))
    tl.store(scalars + 2 * pid + 1, tl.sum(pair_sum))
    if pid == 0:
        tl.store(counter_of(scratch), 0)


@triton.jit
def backward_rows(
    f, f0, g, g0, mean, grad_avl, grad_pvl, grad_f, grad_g,
    f_stride, f0_stride, g_stride, g0_stride, rows, dim,
    NORMALIZE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of rows: (2/B)·[∂avl·(u − m) ± ∂pvl·(u − v)], through n."""
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.arange(0, BLOCK_D)
    x = _load_rows(f, f_stride, r, columns, rows, dim)
    y = _load_rows(g, g_stride, r, columns, rows, dim)
    x0 = _load_rows(f0, f0_stride, r, columns, rows, dim)
    y0 = _load_rows(g0, g0_stride, r, columns, rows, dim)
    u, inverse_x, clamped_x = _difference(x, x0, NORMALIZE)
    v, inverse_y, clamped_y = _difference(y, y0, NORMALIZE)
    m = tl.load(mean + columns, mask=columns < dim, other=0.0)[None, :]
    per_avl = tl.math.div_rn(2 * tl.load(grad_avl).to(tl.float32), 1.0 * rows)
    per_pvl = tl.math.div_rn(2 * tl.load(grad_pvl).to(tl.float32), 1.0 * rows)
    gu = per_avl * (u - m) + per_pvl * (u - v)
    gv = per_avl * (v - m) - per_pvl * (u - v)
    if NORMALIZE:
        gu = _through_norm(gu, x, inverse_x, clamped_x)
        gv = _through_norm(gv, y, inverse_y, clamped_y)
    mask = (r < rows)[:, None] & (columns < dim)[None, :]
    offsets = r.to(tl.int64)[:, None] * dim + columns[None, :]
    tl.store(grad_f + offsets, gu.to(grad_f.dtype.element_ty), mask=mask)
    tl.store(grad_g + offsets, gv.to(grad_g.dtype.element_ty), mask=mask)


@triton.jit
def _through_norm(grad, x, inverse, clamped):
    """∂/∂x of n(x): the part of `grad` orthogonal to n(x), over |x|; all of it where clamped."""
    n = x * inverse[:, None]
    along = tl.where(clamped, 0.0, tl.sum(n * grad, 1))
    return (grad - n * along[:, None]) * inverse[:, None]
