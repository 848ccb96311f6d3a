"""Every op at shapes, strides, dtypes and labels that hypothesis chooses, against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustft import backends, ops
from robustft.backends.reference import dive, mpm_nce, nearest, rsa, vrf

# The interpreter is slow, and truncates to bfloat16 where a card rounds.
INTERPRETING, EMULATING = backends.interpreting(), backends.emulating()
ON_CARD = torch.cuda.is_available()
ON_A_CARD = [pytest.param(name, marks=pytest.mark.gpu) for name in ("triton", "cuda")]
BACKENDS = (
    ("triton",) if INTERPRETING else ("cuda",) if EMULATING else ("reference", "cpu", *ON_A_CARD)
)
DTYPES = (torch.float32, torch.float16) + (() if INTERPRETING else (torch.bfloat16,))
# Of a result rounded to the dtype, relative to its largest entry.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}

sizes = st.integers(1, 70)
few_or_many = st.one_of(sizes, st.sampled_from((127, 129, 257)))
seeds = st.integers(0, 2**31 - 1)
layouts = st.sampled_from(("contiguous", "transposed", "every other row", "every other column"))
# The same examples every time: a failure in CI is a failure here.
examples = settings(
    # On a card most examples compile a kernel of their own.
    max_examples=8
    if INTERPRETING
    else 20
    if torch.cuda.is_available()
    else 30
    if EMULATING
    else 60,
    deadline=None,
    derandomize=True,
    database=None,
)
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same numbers with other strides."""
    if layout == "transposed":
        return x.T.contiguous().T
    if layout == "every other row":
        return x.repeat_interleave(2, 0)[::2]
    if layout == "every other column":
        return x.repeat_interleave(2, 1)[:, ::2]
    return x


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_near(result: Tensor, truth: Tensor, tolerance: float, floor: float = 1e-30) -> None:
    assert result.shape == truth.shape
    error = (result.double() - truth).abs().max()
    assert error <= tolerance * truth.abs().max() + floor


@each_backend
@examples
@given(
    rows=few_or_many,
    columns=few_or_many,
    dim=sizes,
    classes=st.integers(1, 12),
    seed=seeds,
    dtype=st.sampled_from(DTYPES),
    layout=layouts,
    pairs=st.sampled_from(("labels", "mask", "diagonal")),
    scale=st.floats(0.5, 100),
    margin=st.floats(0, 0.3),
    smoothing=st.floats(0, 0.5),
    symmetric=st.booleans(),
    ignored=st.booleans(),
    exclude_self=st.booleans(),
)
def test_mpm_nce(
    backend,
    rows,
    columns,
    dim,
    classes,
    seed,
    dtype,
    layout,
    pairs,
    scale,
    margin,
    smoothing,
    symmetric,
    ignored,
    exclude_self,
):
    exclude_self &= pairs != "diagonal" and rows > 1
    if pairs == "diagonal" or (exclude_self and symmetric):
        columns = rows
    elif exclude_self:
        columns = max(rows, columns)
    unit = torch.nn.functional.normalize
    x = laid_out(unit(normal(seed, rows, dim)).to(dtype), layout).detach().requires_grad_()
    y = laid_out(unit(normal(seed + 1, columns, dim)).to(dtype), layout).detach().requires_grad_()
    s = torch.tensor(scale, requires_grad=True)
    image_labels = text_labels = mask = None
    generator = torch.Generator().manual_seed(seed)
    if pairs == "labels":
        # Any integers: not dense, not small.
        names = torch.randint(-(2**62), 2**62, (classes,), generator=generator)
        image_labels = names[torch.randint(classes, (rows,), generator=generator)]
        text_labels = names[torch.randint(classes, (columns,), generator=generator)]
        text_labels[0] = image_labels[-1]
        if ignored:
            image_labels[:-1:3] = -100
    elif pairs == "mask":
        mask = torch.rand(rows, columns, generator=generator) < 0.2
        mask[-1, 0] = True
    options = {"margin": margin, "label_smoothing": smoothing, "symmetric": symmetric}
    options |= {"exclude_self": exclude_self}
    loss = ops.mpm_nce(
        x, y, image_labels, text_labels, logit_scale=s, mask=mask, backend=backend, **options
    )
    grads = torch.autograd.grad(loss, (x, y, s))

    wide = [v.detach().double().requires_grad_() for v in (x, y, s)]
    truth = mpm_nce.mpm_nce(
        wide[0], wide[1], image_labels, text_labels, logit_scale=wide[2], mask=mask, **options
    )
    true_grads = torch.autograd.grad(truth, wide)
    assert loss.dtype == torch.float32
    # Logits near `scale` are held to half an ulp of theirs.
    assert_near(loss.detach(), truth.detach(), 2e-6, floor=2e-6 * scale)
    for grad, true, v in zip(grads, true_grads, (x, y, s), strict=True):
        assert grad.dtype == v.dtype
        # p − w vanishes when nothing is left to learn: the floor is rounding of p times s.
        assert_near(grad, true, TOLERANCE[v.dtype], floor=3e-6 * max(1.0, scale))


@each_backend
@examples
@given(
    rows=few_or_many,
    dim=few_or_many,
    seed=seeds,
    dtype=st.sampled_from(DTYPES),
    layout=layouts,
    momentum=st.floats(0, 1),
    normalize=st.booleans(),
)
def test_dive(backend, rows, dim, seed, dtype, layout, momentum, normalize):
    f0, g0 = normal(seed, rows, dim), normal(seed + 1, rows, dim)
    f, g = f0 + 0.3 * normal(seed + 2, rows, dim), g0 + 0.3 * normal(seed + 3, rows, dim)
    f, f0, g, g0 = (laid_out(x.to(dtype), layout) for x in (f, f0, g, g0))
    mean = 0.01 * normal(seed + 4, dim)
    f.requires_grad_()
    g.requires_grad_()
    options = {"momentum": momentum, "normalize": normalize}
    avl, pvl, new_mean = ops.dive_loss(f, f0, g, g0, mean, backend=backend, **options)
    grads = torch.autograd.grad(avl - 0.5 * pvl, (f, g))

    wide = [x.detach().double() for x in (f, f0, g, g0, mean)]
    wide[0].requires_grad_()
    wide[2].requires_grad_()
    truth = dive.dive_loss(*wide, **options)
    true_grads = torch.autograd.grad(truth[0] - 0.5 * truth[1], (wide[0], wide[2]))
    for result, true in zip((avl, pvl, new_mean), truth, strict=True):
        assert_near(result.detach(), true.detach(), 1e-5, floor=1e-7)
    # ∂u = (2/B)·[(u - m) - ½(u - v)] is known to a float32 rounding of itself and of the rows that
    # u and v are differences of; what is left along x of that is divided by |x| with the rest.
    with torch.no_grad():
        f, f0, g, g0 = wide[:4]
        ends = [x / x.norm(dim=1, keepdim=True) if normalize else x for x in (f, f0, g, g0)]
        u, v = ends[0] - ends[1], ends[2] - ends[3]
        largest = torch.stack([x.norm(dim=1) for x in ends]).amax(0)
        apart = 0.5 * (u - v).norm(dim=1) + 1.5 * largest
        for grad, true, x, move in zip(grads, true_grads, (f, g), (u, v), strict=True):
            known = (2 / rows) * ((move - truth[2]).norm(dim=1) + apart) * 2.0**-24
            bound = 4 * known / x.norm(dim=1) if normalize else 4 * known
            stored = torch.finfo(dtype).eps / 2 * (true.abs().amax(1) + torch.finfo(dtype).tiny)
            assert ((grad.double() - true).abs().amax(1) <= bound + stored).all()


@each_backend
@examples
@given(
    queries=sizes,
    rows=few_or_many,
    dim=few_or_many,
    k=st.integers(1, 257),
    seed=seeds,
    layout=layouts,
    spread=st.sampled_from((1e-6, 1e-3, 1.0, 1e4)),
    offset=st.sampled_from((0.0, 1.0, 100.0)),
    distinct=st.integers(1, 257),
    packed=st.booleans(),
)
def test_nearest(backend, queries, rows, dim, k, seed, layout, spread, offset, distinct, packed):
    k = 1 + k % rows
    # `distinct` rows repeated: ties, up to all rows equal.
    bank = spread * normal(seed, distinct, dim)[torch.arange(rows) % distinct] + offset
    q = laid_out(spread * normal(seed + 1, queries, dim) + offset, layout)
    q[0] = bank[-1]
    bank = laid_out(bank, layout)
    given_bank = ops.FeatureBank(bank) if packed else bank
    values, indices = ops.knn(q, given_bank, k, backend=backend)
    kth = ops.kth_distance(q, given_bank, k, backend=backend)
    truth, _ = nearest.nearest(q.double(), bank.double(), k)
    assert torch.equal(kth, values[:, -1])
    torch.testing.assert_close(values.double(), truth, rtol=1e-5, atol=1e-37)
    # Indices: each one's own distance is the one beside it, and none comes twice.
    own = (q.double()[:, None] - bank.double()[indices]).square().sum(-1)
    torch.testing.assert_close(own, values.double(), rtol=1e-5, atol=1e-37)
    assert all(len(set(row)) == k for row in indices.tolist())


@each_backend
@examples
@given(
    rows=few_or_many,
    classes=few_or_many,
    seed=seeds,
    dtype=st.sampled_from(DTYPES),
    layout=layouts,
    log=st.booleans(),
    a=st.floats(-2, 2),
    b=st.floats(0.05, 5),
    temperature=st.floats(0.05, 10),
)
def test_vrf(backend, rows, classes, seed, dtype, layout, log, a, b, temperature):
    ft, zs = (
        laid_out((3 * normal(seed + i, rows, classes)).to(dtype), layout).detach() for i in (0, 1)
    )
    distance = normal(seed + 2, rows).square()
    leaves = [v.requires_grad_() for v in (ft, zs, distance)]
    weights = normal(seed + 3, rows, classes)
    options = {"temperature_finetuned": temperature, "log": log}
    out = ops.vrf_mix(*leaves, a, b, backend=backend, **options)
    grads = torch.autograd.grad((out.float() * weights).sum(), leaves)

    wide = [v.detach().double().requires_grad_() for v in leaves]
    truth = vrf.vrf_mix(*wide, a, b, **options)
    upstream = weights.to(dtype).double()  # the gradient passes through the result's dtype
    true_grads = torch.autograd.grad((truth * upstream).sum(), wide)
    assert out.dtype == dtype
    assert_near(out.detach(), truth.detach(), TOLERANCE[dtype], floor=1e-6 if log else 1e-30)
    for grad, true, v in zip(grads, true_grads, leaves, strict=True):
        assert_near(grad, true, 2 * TOLERANCE[v.dtype], floor=1e-5 / (temperature * b))


@each_backend
@examples
@given(
    rows=st.integers(3, 150),
    dims=st.tuples(sizes, sizes),
    seed=seeds,
    layout=layouts,
    dtype=st.sampled_from(DTYPES),
    metric=st.sampled_from(("euclidean", "cosine")),
    method=st.sampled_from(("pearson", "spearman")),
    offset=st.sampled_from((0.0, 3.0)),
)
def test_rsa(backend, rows, dims, seed, layout, dtype, metric, method, offset):
    a = laid_out((normal(seed, rows, dims[0]) + offset).to(dtype), layout)
    mixed = normal(seed, rows, dims[0]) @ normal(seed + 1, dims[0], dims[1])
    b = laid_out((mixed + normal(seed + 2, rows, dims[1])).to(dtype), layout)
    result = ops.rsa(a, b, metric=metric, method=method, backend=backend)
    truth = rsa.rsa(a.double(), b.double(), metric=metric, method=method)
    assert result.dtype == torch.float64
    if truth.isnan():
        return  # one-dimensional cosines can all be equal: no correlation
    # Ranks jump where float32 cannot tell two distances apart.
    assert abs(result - truth) < (1e-5 if method == "pearson" else 2e-3)
