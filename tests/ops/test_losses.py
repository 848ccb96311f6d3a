"""The loss modules: call-compatible with open_clip, and equal to the ops they stand on."""

import pytest
import torch
import torch.nn.functional as F

from robustft.errors import InputError
from robustft.losses import CLIPLoss, DiVELoss, MPMNCELoss, NTXentLoss, SupConLoss
from robustft.ops import dive_loss, mpm_nce


def unit(rows, width, seed):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, width, generator=generator))


def test_clip_loss_stands_in_for_open_clip():
    theirs = pytest.importorskip("open_clip").loss.ClipLoss(local_loss=True, cache_labels=True)
    ours = CLIPLoss(local_loss=True, cache_labels=True)
    x, y = unit(17, 8, 0).requires_grad_(), unit(17, 8, 1).requires_grad_()
    scale = torch.tensor(2.0, requires_grad=True)
    for logit_bias in (None, torch.tensor(-3.0)):
        want = theirs(x, y, scale.exp(), logit_bias)
        got = ours(x, y, scale.exp(), logit_bias)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(
            torch.autograd.grad(got, (x, y, scale)), torch.autograd.grad(want, (x, y, scale))
        )
    assert torch.equal(ours(x, y, scale.exp(), output_dict=True)["contrastive_loss"], got)
    assert torch.equal(ours(x, y, scale.exp().reshape(1)), got)
    assert torch.equal(ours(x, y, scale.exp().item()), got)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"world_size": 2}, r"world_size: got 2 \(rank 0\), expected 1 \(rank 0\)"),
        ({"rank": 1}, r"world_size: got 1 \(rank 1\), expected 1 \(rank 0\)"),
        ({"use_horovod": True}, "use_horovod: got True"),
    ],
    ids=str,
)
def test_clip_loss_is_for_the_processes_there_are(options, message):
    with pytest.raises(InputError, match=message):
        CLIPLoss(**options)


def test_mpm_nce_loss_passes_everything_on():
    x, y, scale = unit(17, 8, 0), unit(17, 8, 1), torch.tensor(20.0)
    labels = torch.arange(17) % 5
    assert torch.equal(
        MPMNCELoss()(x, y, scale, labels, labels),
        mpm_nce(x, y, labels, labels, logit_scale=20.0, margin=0.05, label_smoothing=0.02),
    )
    loss = MPMNCELoss(margin=0.1, label_smoothing=0.3, symmetric=False, ignore_index=2)
    want = mpm_nce(
        x, y, labels, labels, logit_scale=20.0, margin=0.1, label_smoothing=0.3, symmetric=False,
        ignore_index=2,
    )  # fmt: skip
    got = loss(x, y, scale.reshape(1), image_labels=labels, text_labels=labels, output_dict=True)
    assert torch.equal(got["contrastive_loss"], want)
    mask = labels[:, None] == labels
    assert torch.equal(
        MPMNCELoss()(x, y, scale, mask=mask), MPMNCELoss()(x, y, scale, labels, labels)
    )
    assert "margin=0.1" in repr(loss)
    with pytest.raises(InputError, match="label_smoothing: got 2"):
        MPMNCELoss(label_smoothing=2)


def batch(seed, rows=13, width=6):
    return [unit(rows, width, 4 * seed + i) for i in range(4)]


def test_dive_loss_keeps_the_average():
    loss, mean = DiVELoss(6, momentum=0.9), torch.zeros(6)
    for step in range(3):
        inputs = batch(step)
        avl, pvl = loss(*inputs)
        want_avl, want_pvl, mean = dive_loss(*inputs, mean, momentum=0.9)
        assert torch.equal(avl, want_avl)
        assert torch.equal(pvl, want_pvl)
        assert torch.equal(loss.mean, mean)
    assert mean.norm() > 0

    other = DiVELoss(6, momentum=0.9)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other.mean, mean)

    loss.eval()
    inputs = batch(9)
    avl, _ = loss(*inputs)
    assert torch.equal(loss.mean, mean)
    u, v = inputs[0] - inputs[1], inputs[2] - inputs[3]  # the inputs are of unit length
    torch.testing.assert_close(avl, ((u - mean) ** 2 + (v - mean) ** 2).sum() / 13)


def test_dive_loss_gradients_and_names():
    inputs = batch(0)
    inputs[0].requires_grad_()
    inputs[2].requires_grad_()
    loss = DiVELoss(6, momentum=0.5)
    named = loss(*inputs, output_dict=True)
    (named["average_vector_loss"] + named["pairwise_vector_loss"]).backward()
    avl, pvl, _ = dive_loss(*inputs, torch.zeros(6), momentum=0.5)
    want = torch.autograd.grad(avl + pvl, (inputs[0], inputs[2]))
    torch.testing.assert_close((inputs[0].grad, inputs[2].grad), want)


def test_dive_loss_is_zero_before_training():
    image, text = unit(13, 6, 0), unit(13, 6, 1)
    assert [float(part) for part in DiVELoss(6)(image, image, text, text)] == [0.0, 0.0]


def test_dive_mean_stays_float32():
    loss = DiVELoss(6)
    loss(*batch(0))
    before = loss.mean.clone()
    loss.to(torch.bfloat16)
    assert loss.mean.dtype == torch.float32
    assert torch.equal(loss.mean, before)
    loss(*(x.bfloat16() for x in batch(1)))
    assert loss.mean.dtype == torch.float32
    assert loss.to("meta").mean.device.type == "meta"


def test_dive_loss_compiles_to_one_graph():
    plain, compiled = DiVELoss(6, momentum=0.5), DiVELoss(6, momentum=0.5)
    run = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for step in range(2):
        inputs, twin = batch(step), batch(step)
        inputs[0].requires_grad_()
        twin[0].requires_grad_()
        want, got = sum(plain(*inputs)), sum(run(*twin))
        torch.testing.assert_close(got, want)
        want.backward()
        got.backward()
        torch.testing.assert_close(twin[0].grad, inputs[0].grad)
        torch.testing.assert_close(compiled.mean, plain.mean)


@pytest.mark.parametrize("dim", [0, -1, 2.0, True])
def test_dive_loss_needs_a_width(dim):
    with pytest.raises(InputError, match="dim: got"):
        DiVELoss(dim)


def test_dive_loss_names_a_wrong_width():
    with pytest.raises(InputError, match=r"mean: got shape \(5,\), expected \[6\]"):
        DiVELoss(5)(*batch(0))


def sup_con(z, labels, temperature):
    """Khosla et al.'s equation 2, term by term, over the rows that have a positive."""
    rows = []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        positives = [p for p in others if labels[p] == labels[i]]
        if positives:
            sum_of_all = sum((z[i] @ z[a] / temperature).exp() for a in others)
            rows.append(
                -sum(((z[i] @ z[p] / temperature).exp() / sum_of_all).log() for p in positives)
                / len(positives)
            )
    return sum(rows) / len(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sup_con_and_nt_xent_equal_their_formulas(dtype):
    z = unit(14, 6, 3).to(dtype).requires_grad_()
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 7, 8, 0, 1])
    samples = torch.arange(14) % 7
    for got, classes, temperature in (
        (SupConLoss(0.3)(z, labels), labels, 0.3),
        (SupConLoss()(z, labels), labels, 0.1),
        (NTXentLoss()(z[:7], z[7:]), samples, 0.5),
        (NTXentLoss(0.05)(z[:7], z[7:]), samples, 0.05),
    ):
        exact = z.detach().double().requires_grad_()
        want = sup_con(exact, classes, temperature)
        digits = {torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
        torch.testing.assert_close(got.double(), want, rtol=digits, atol=digits)
        (grad,), (truth,) = torch.autograd.grad(got, z), torch.autograd.grad(want, exact)
        torch.testing.assert_close(grad.double(), truth, rtol=0, atol=digits / temperature)


def test_sup_con_and_nt_xent_equal_those_of_pytorch_metric_learning():
    theirs = pytest.importorskip("pytorch_metric_learning.losses")
    z, labels = unit(24, 6, 5).requires_grad_(), torch.arange(24) % 5
    samples = torch.arange(24) % 12
    for got, want in (
        (SupConLoss(0.2)(z, labels), theirs.SupConLoss(temperature=0.2)(z, labels)),
        (NTXentLoss(0.2)(z[:12], z[12:]), theirs.NTXentLoss(temperature=0.2)(z, samples)),
    ):
        torch.testing.assert_close(got, want)
        # Their gradient contains that of normalising z, ours at unit rows is made tangential.
        (grad,), (other,) = torch.autograd.grad(got, z), torch.autograd.grad(want, z)
        tangential = grad - (grad * z).sum(1, keepdim=True) * z
        torch.testing.assert_close(tangential.detach(), other, rtol=1e-4, atol=1e-6)


def test_sup_con_and_nt_xent_say_what_is_wrong():
    z = unit(4, 3, 0)
    with pytest.raises(InputError, match="temperature: got 0"):
        SupConLoss(0)
    with pytest.raises(InputError, match="image_labels: got no label that another row"):
        SupConLoss()(z, torch.arange(4))
    with pytest.raises(InputError, match=r"second: got shape \(3, 3\), expected \(4, 3\)"):
        NTXentLoss()(z, z[:3])
    assert repr(NTXentLoss(0.5)) == "NTXentLoss(temperature=0.5)"
