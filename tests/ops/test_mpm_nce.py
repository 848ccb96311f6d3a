"""mpm_nce against a float64 loop over anchors, torch's cross-entropy and open_clip's loss."""

import math

import pytest
import torch
import torch.nn.functional as F

from robustft.backends.reference import mpm_nce as reference
from robustft.errors import InputError
from robustft.ops import mpm_nce

SIZES = [(1, 1, 3), (7, 7, 5), (127, 129, 16), (129, 127, 33), (507, 31, 17)]
OPTIONS = [
    {},
    {"margin": 0.05, "label_smoothing": 0.02},
    {"margin": -0.1, "label_smoothing": 0.3, "symmetric": False},
    {"label_smoothing": 1.0},
]


def unit(rows, width, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, width, generator=generator, dtype=torch.float64)).to(dtype)


def classes(rows, seed, count=6, ignored=0.1):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(count, (rows,), generator=generator)
    labels[torch.rand(rows, generator=generator) < ignored] = -100
    labels[0] = 0  # at least one positive pair
    return labels


def truth(
    x, y, positive, scale=100.0, margin=0.0, label_smoothing=0.0, symmetric=True, exclude_self=False
):
    """The formula anchor by anchor, in float64; differentiable."""
    x, y = x.double(), y.double()

    def direction(x, y, positive):
        losses = []
        for i, (anchor, row) in enumerate(zip(x, positive, strict=True)):
            others = torch.arange(len(y)) != (i if exclude_self else -1)
            row = row[others]
            if not row.any():
                continue
            z = scale * (y[others] @ anchor + margin * (~row).double())
            log_p = z - torch.logsumexp(z, 0)
            epsilon = label_smoothing if not row.all() else 0.0
            loss = -(1 - epsilon) * log_p[row].mean()
            if epsilon:
                loss = loss - epsilon * log_p[~row].mean()
            losses.append(loss)
        return torch.stack(losses).mean()

    rows = direction(x, y, positive)
    return (rows + direction(y, x, positive.T)) / 2 if symmetric else rows


def by_label(a, b):
    return (a[:, None] == b) & (a != -100)[:, None]


def gradients(loss, *inputs):
    return torch.autograd.grad(loss, inputs, allow_unused=True)


def leaf(tensor, dtype=None):
    return tensor.detach().to(dtype or tensor.dtype).clone().requires_grad_()


@pytest.fixture(params=[1 << 22, 300], ids=["one-block", "blocks"])
def block(request, monkeypatch):
    monkeypatch.setattr(reference, "BLOCK", request.param)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_labels_equal_the_formula(size, options):
    b, c, d = size
    x, y, s = leaf(unit(b, d, 0)), leaf(unit(c, d, 1)), leaf(torch.tensor(14.3).double())
    a, t = classes(b, 2), classes(c, 3)
    want = truth(x, y, by_label(a, t), s, **options)
    want_grads = gradients(want * 1.7, x, y, s)
    for loss in (
        mpm_nce(x, y, a, t, logit_scale=s, **options),
        reference.mpm_nce(x, y, a, t, logit_scale=s, **options),
    ):
        torch.testing.assert_close(loss, want, rtol=1e-12, atol=1e-12)
        for got, expected in zip(gradients(loss * 1.7, x, y, s), want_grads, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_mask_equals_the_formula(options):
    x, y, s = leaf(unit(61, 9, 0)), leaf(unit(43, 9, 1)), leaf(torch.tensor(30.0).double())
    mask = torch.rand(43, 61, generator=torch.Generator().manual_seed(4)).T < 0.08
    mask[5], mask[:, 3], mask[7] = False, False, True
    want = truth(x, y, mask, s, **options)
    want_grads = gradients(want, x, y, s)
    for loss in (
        mpm_nce(x, y, mask=mask, logit_scale=s, **options),
        reference.mpm_nce(x, y, mask=mask, logit_scale=s, **options),
    ):
        torch.testing.assert_close(loss, want, rtol=1e-12, atol=1e-12)
        for got, expected in zip(gradients(loss, x, y, s), want_grads, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("block")
def test_gradcheck():
    x, y = leaf(unit(7, 4, 0)), leaf(unit(5, 4, 1))
    s = leaf(torch.tensor(5.0).double())
    a, t = torch.tensor([0, 0, 1, 2, 9, -100, 1]), torch.tensor([0, 1, 1, 2, -100])
    for function in (mpm_nce, reference.mpm_nce):
        for options in OPTIONS:
            assert torch.autograd.gradcheck(
                lambda x, y, s, f=function, o=options: f(x, y, a, t, logit_scale=s, **o), (x, y, s)
            )


@pytest.mark.parametrize("n", [1, 7, 129])
def test_diagonal_is_open_clip(n):
    loss_module = pytest.importorskip("open_clip").loss.ClipLoss()
    x, y, s = leaf(unit(n, 24, 0)), leaf(unit(n, 24, 1)), leaf(torch.tensor(100.0).double())
    want = loss_module(x, y, s)
    got = mpm_nce(x, y, logit_scale=s)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    for a, b in zip(gradients(got, x, y, s), gradients(want, x, y, s), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.02, 0.3])
def test_class_head_is_cross_entropy(smoothing):
    b, c, d = 127, 29, 16
    x, w = leaf(unit(b, d, 0)), leaf(unit(c, d, 1))
    labels = classes(b, 2, count=c)
    want = F.cross_entropy(20.0 * x @ w.T, labels, label_smoothing=smoothing)
    got = mpm_nce(
        x, w, labels, torch.arange(c), logit_scale=20.0, symmetric=False,
        label_smoothing=smoothing * (c - 1) / c,
    )  # fmt: skip
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    for a, b in zip(gradients(got, x, w), gradients(want, x, w), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_distinct_labels_are_the_diagonal():
    x, y, labels = unit(31, 8, 0), unit(31, 8, 1), torch.randperm(31) + 5
    assert torch.equal(mpm_nce(x, y, labels, labels), mpm_nce(x, y))
    assert torch.equal(mpm_nce(x, y, mask=torch.eye(31, dtype=torch.bool)), mpm_nce(x, y))


def test_margin_raises_the_loss():
    x, y, labels = unit(31, 8, 0), unit(31, 8, 1), classes(31, 2)
    losses = [mpm_nce(x, y, labels, labels, margin=m, logit_scale=20.0) for m in (0, 0.05, 0.1, 1)]
    assert losses == sorted(losses)
    assert losses[0] < losses[1] < losses[-1]


def test_swapping_the_modalities_changes_nothing():
    x, y, a, t = unit(31, 8, 0), unit(43, 8, 1), classes(31, 2), classes(43, 3)
    options = {"margin": 0.05, "label_smoothing": 0.02}
    torch.testing.assert_close(
        mpm_nce(x, y, a, t, **options), mpm_nce(y, x, t, a, **options), rtol=1e-13, atol=0
    )


def test_one_class_batch_is_finite():
    x, y = leaf(unit(31, 8, 0)), leaf(unit(31, 8, 1))
    labels = torch.full((31,), 3)
    loss = mpm_nce(x, y, labels, labels, margin=0.05, label_smoothing=0.02)
    torch.testing.assert_close(loss, truth(x, y, by_label(labels, labels)), rtol=1e-12, atol=0)
    assert all(g.isfinite().all() for g in gradients(loss, x, y))


def test_targets_sum_to_one():
    # With every Z equal the loss is log C + Z − Z·Σw, so a huge Z shows any defect of Σw.
    x, y = torch.ones(13, 1).double(), torch.ones(7, 1).double()
    a, t = classes(13, 0, count=3), classes(7, 1, count=3)
    loss = mpm_nce(x, y, a, t, logit_scale=1e6, label_smoothing=0.3, symmetric=False)
    torch.testing.assert_close(loss.item(), math.log(7), rtol=1e-9, atol=0)
    z = leaf(torch.eye(7).double())  # ∂loss/∂Z = (p − w)/B sums to 0 over each row
    (grad,) = gradients(
        mpm_nce(z, torch.eye(7).double(), t, t, logit_scale=1.0, label_smoothing=0.3), z
    )
    torch.testing.assert_close(grad.sum(), torch.tensor(0.0).double(), rtol=0, atol=1e-15)


@pytest.mark.parametrize("permute", ["images", "texts"])
def test_permutation_equivariance(permute):
    x, y, a, t = leaf(unit(31, 8, 0)), leaf(unit(43, 8, 1)), classes(31, 2), classes(43, 3)
    order = torch.randperm(31 if permute == "images" else 43)
    loss = mpm_nce(x, y, a, t, margin=0.1, label_smoothing=0.1)
    gx, gy = gradients(loss, x, y)
    if permute == "images":
        other, gx = mpm_nce(x[order], y, a[order], t, margin=0.1, label_smoothing=0.1), gx
    else:
        other = mpm_nce(x, y[order], a, t[order], margin=0.1, label_smoothing=0.1)
    torch.testing.assert_close(loss, other, rtol=1e-12, atol=0)
    for a, b in zip((gx, gy), gradients(other, x, y), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)


def test_ignored_stay_candidates():
    x, y = unit(5, 4, 0), unit(5, 4, 1)
    labels = torch.tensor([0, 1, 2, 3, -100])
    loss = mpm_nce(x, y, labels, labels, symmetric=False)
    kept = F.cross_entropy(100 * x[:4] @ y.T, torch.arange(4))
    torch.testing.assert_close(loss, kept)
    other = mpm_nce(x, y, torch.tensor([0, 1, 2, 3, 7]), labels, symmetric=False, ignore_index=7)
    torch.testing.assert_close(other, kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("noise", [math.inf, 1.5, 0.05], ids=["random", "fitting", "fitted"])
def test_as_accurate_as_torch_in_the_same_dtype(dtype, noise):
    # With noise 1.5, 1 − p is small where Z is about 50: there digits are easily lost. One draw's
    # errors are luck (a ratio between 0.2 and 5), so the medians over some are compared.
    n, d = 129, 64

    def torch_loss(a, b, s):
        z = s.to(a.dtype) * a @ b.T
        target = torch.arange(n)
        return (F.cross_entropy(z, target) + F.cross_entropy(z.T, target)) / 2

    def run(function, x, y, dtype):
        a, b = leaf(x, dtype), leaf(y, dtype)
        s = leaf(torch.tensor(100.0, dtype=torch.promote_types(dtype, torch.float32)))
        loss = function(a, b, s)
        return [t.detach().double() for t in (loss, *gradients(loss, a, b, s))]

    errors = []
    for seed in range(12):
        x = unit(n, d, 2 * seed)
        y = F.normalize(x / noise + unit(n, d, 2 * seed + 1)).to(dtype)
        x = x.to(dtype)
        exact = run(torch_loss, x, y, torch.float64)
        plain = run(torch_loss, x, y, dtype)
        ours = run(lambda a, b, s: mpm_nce(a, b, logit_scale=s), x, y, dtype)
        errors.append([
            [(o - e).norm().item(), (p - e).norm().item(), e.norm().item()]
            for e, p, o in zip(exact, plain, ours, strict=True)
        ])  # fmt: skip
    ours, plain, size = torch.tensor(errors).median(0).values.unbind(-1)
    assert (ours <= 1.5 * plain + 1e-7 * size + 1e-12).all(), (ours, plain, size)


def test_loss_and_gradient_dtypes():
    x, y = leaf(unit(7, 4, 0), torch.bfloat16), leaf(unit(7, 4, 1), torch.float32)
    s = leaf(torch.tensor(10.0, dtype=torch.float16))
    loss = mpm_nce(x, y, logit_scale=s)
    assert loss.dtype == torch.float32
    assert [g.dtype for g in gradients(loss, x, y, s)] == [x.dtype, y.dtype, s.dtype]


def test_autocast_changes_nothing():
    x, y = leaf(unit(17, 8, 0), torch.float32), leaf(unit(17, 8, 1), torch.float32)
    want = mpm_nce(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        got = mpm_nce(x, y)
        grads = gradients(got, x, y)
    assert torch.equal(got, want)
    assert all(map(torch.equal, grads, gradients(want, x, y)))


def test_strides_do_not_matter():
    x, y, labels = unit(8, 31, 0).float(), unit(62, 8, 1).float()[::2], classes(62, 2)[::2]
    got = mpm_nce(x.T, y, labels, labels)
    assert torch.equal(got, mpm_nce(x.T.contiguous(), y.contiguous(), labels.clone(), labels))


@pytest.mark.parametrize("step", [1, 7, 50, 127])
def test_block_size_does_not_matter(step, monkeypatch):
    x, y, s = leaf(unit(127, 16, 0)), leaf(unit(31, 16, 1)), leaf(torch.tensor(100.0).double())
    a, t = classes(127, 2), classes(31, 3)

    def run():
        loss = mpm_nce(x, y, a, t, logit_scale=s, margin=0.1, label_smoothing=0.1)
        return loss, *gradients(loss, x, y, s)

    whole = run()
    monkeypatch.setattr(reference, "BLOCK", step * 31)
    for a_part, b_part in zip(run(), whole, strict=True):
        torch.testing.assert_close(a_part, b_part, rtol=1e-9, atol=1e-13)


def test_same_inputs_same_bits():
    x, y = leaf(unit(127, 16, 0), torch.float32), leaf(unit(127, 16, 1), torch.float32)
    first = mpm_nce(x, y)
    grads = gradients(first, x, y)
    second = mpm_nce(x, y)
    assert torch.equal(first, second)
    assert all(map(torch.equal, grads, gradients(second, x, y)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("symmetric", [True, False])
def test_non_finite_features_give_nan(bad, side, symmetric):
    features = [unit(7, 4, 0).float().abs(), unit(7, 4, 1).float().abs()]
    features[side][2, 1] = bad
    assert mpm_nce(*features, symmetric=symmetric).isnan()


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_without_the_own_pair_it_is_the_formula_of_the_others(options):
    x, y = leaf(unit(43, 7, 0)), leaf(unit(43, 7, 1))
    s = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
    labels = classes(43, 2)
    labels[1] = 0
    positive = by_label(labels, labels)
    want = truth(x, y, positive, s, exclude_self=True, **options)
    want = [want, *gradients(want, x, y, s)]
    mask = positive | torch.eye(43, dtype=torch.bool)  # what it says of (i, i) does not count
    for pairs in ({"image_labels": labels, "text_labels": labels}, {"mask": mask}):
        for function in (mpm_nce, reference.mpm_nce):
            loss = function(x, y, **pairs, logit_scale=s, exclude_self=True, **options)
            got = [loss, *gradients(loss, x, y, s)]
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_a_batch_without_the_own_pair_must_leave_a_loss():
    x, few = torch.ones(4, 3), torch.ones(3, 3)
    alone, pairs = torch.arange(4), torch.tensor([0, 0, 1, 2])
    for arguments, options, message in (
        ((x, x), {}, "exclude_self: got True without labels or mask"),
        ((x, few, alone, alone[:3]), {}, "text_features: got 3 rows, expected 4: with exclude"),
        ((few, x, alone[:3], alone), {}, "text_features: got 4 rows, expected 3: with exclude"),
        ((x, few, alone, alone[:3]), {"symmetric": False}, "got 3 rows, expected 4 or more"),
        ((x, x, alone, alone), {}, "image_labels: got no label that another row"),
        ((x, x, pairs, pairs), {"ignore_index": 0}, "image_labels: got no label that another row"),
        ((x, x), {"mask": torch.eye(4) > 0}, "mask: got no positive pair"),
        ((few, x, alone[:3], alone), {"symmetric": False}, "image_labels: got no label that"),
    ):
        with pytest.raises(InputError, match=message):
            mpm_nce(*arguments, exclude_self=True, **options)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("rows", [1, 5, 43])
def test_more_texts_than_images_without_the_own_pair(rows):
    x, y = leaf(unit(rows, 7, 0)), leaf(unit(43, 7, 1))
    s, labels = torch.tensor(20.0, dtype=torch.float64, requires_grad=True), classes(43, 2)
    labels[4] = 0
    mask = by_label(labels[:rows], labels)
    options = {"margin": 0.1, "label_smoothing": 0.2, "symmetric": False, "exclude_self": True}
    want = truth(x, y, mask, s, **options)
    want = [want, *gradients(want, x, y, s)]
    for pairs in ({"image_labels": labels[:rows], "text_labels": labels}, {"mask": mask}):
        for function in (mpm_nce, reference.mpm_nce):
            loss = function(x, y, **pairs, logit_scale=s, **options)
            got = [loss, *gradients(loss, x, y, s)]
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", [(2, 2), (33, 33), (129, 129), (1, 65), (33, 97)], ids=str)
def test_every_backend_leaves_the_own_pair_out(cpu_backend, size):
    """Sizes that leave a tile nothing but an own pair, and rows that point away from all others."""
    rows, columns = size
    symmetric = rows == columns
    x, y, labels = unit(rows, 33, 0), unit(columns, 33, 1), classes(columns, 2)
    labels[-1] = 0
    opposed = torch.cat([x[:-1], -y.mean(0, keepdim=True) / y.mean(0).norm()])
    options = {"label_smoothing": 0.2, "symmetric": symmetric, "exclude_self": True}
    positive = by_label(labels[:rows], labels)
    for image, scale in ((x, 30.0), (opposed, 100.0)):
        wide = [leaf(v) for v in (image, y, torch.tensor(scale).double())]
        want = truth(wide[0], wide[1], positive, wide[2], margin=0.1, **options)
        want = [want, *gradients(want, *wide)]
        narrow = [leaf(v, torch.float32) for v in wide]
        for pairs in ({"image_labels": labels[:rows], "text_labels": labels}, {"mask": positive}):
            loss = mpm_nce(
                narrow[0], narrow[1], **pairs, logit_scale=narrow[2], margin=0.1,
                backend=cpu_backend, **options,
            )  # fmt: skip
            for got, expected in zip([loss, *gradients(loss, *narrow)], want, strict=True):
                floor = 3e-6 * scale
                error = (got.double() - expected).abs().max()
                assert error <= 2e-5 * expected.abs().max() + floor, (error, expected.abs().max())
