"""Which pairs mpm_nce takes for positive: labels by all their bits, ignored ones on both sides."""

import pytest
import torch

from robustft.ops import mpm_nce


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, Y = normal(40, 8), normal(36, 8, seed=1)
HIGH = 1 << 32


def loss_and_gradients(backend, *labels, mask=None, **options):
    x, y = X.clone().requires_grad_(), Y.clone().requires_grad_()
    options = {"logit_scale": 3.0, "margin": 0.1, "label_smoothing": 0.1} | options
    loss = mpm_nce(x, y, *labels, mask=mask, backend=backend, **options)
    return loss, *torch.autograd.grad(loss, (x, y))


def check(backend, image_labels, text_labels, mask, **options):
    """Labels give what the mask of their positive pairs gives, one made without the op."""
    want = loss_and_gradients("reference", mask=mask)
    got = loss_and_gradients(backend, image_labels, text_labels, **options)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-6)


def pairs(image_labels, text_labels, ignored=None):
    """The mask, pair by pair in Python's integers."""
    return torch.tensor(
        [[a == b and a != ignored for b in text_labels.tolist()] for a in image_labels.tolist()]
    )


SPREADS = {
    "above 32 bits": lambda n: torch.arange(n) % 5 * HIGH,
    "the sign's half": lambda n: (torch.arange(n) % 4 - 2) * (1 << 62),
    "low bits all set": lambda n: torch.arange(n) % 5 * HIGH + (HIGH - 1),
    "one high bit": lambda n: torch.arange(n) % 2 * (HIGH << 7) + torch.arange(n) % 3,
}


@pytest.mark.parametrize("spread", SPREADS)
def test_labels_are_compared_by_all_their_bits(spread, cpu_backend):
    a, b = SPREADS[spread](len(X)), SPREADS[spread](len(Y))
    assert (a & (HIGH - 1)).unique().numel() < a.unique().numel()
    check(cpu_backend, a, b, pairs(a, b))


def test_a_label_that_shares_its_low_bits_with_ignore_index_is_not_ignored(cpu_backend):
    a, b = torch.arange(len(X)) % 4 - 100, torch.arange(len(Y)) % 4 - 100
    a[::3] += HIGH
    b[::2] += HIGH
    check(cpu_backend, a, b, pairs(a, b, ignored=-100))
    check(cpu_backend, a, b, pairs(a, b, ignored=HIGH - 100), ignore_index=HIGH - 100)


@pytest.mark.parametrize("ignored", [-100, 0, 3, 1 << 40])
@pytest.mark.parametrize("share", [2, 5])
def test_ignored_labels_are_no_anchors_on_either_side(ignored, share, cpu_backend):
    a, b = torch.arange(len(X)) % 3 + 5, torch.arange(len(Y)) % 3 + 5
    a[::share], b[1::share] = ignored, ignored
    mask = pairs(a, b, ignored=ignored)
    assert not mask[:, b == ignored].any()
    check(cpu_backend, a, b, mask, ignore_index=ignored)
    # Nor is it as if there were no ignore_index: those texts would be anchors of those images.
    other = loss_and_gradients(cpu_backend, a, b, ignore_index=-7)[0]
    assert (loss_and_gradients(cpu_backend, a, b, ignore_index=ignored)[0] - other).abs() > 1e-4


def test_an_ignored_text_is_still_a_candidate(cpu_backend):
    a, b = torch.arange(len(X)) % 3, torch.arange(len(Y)) % 3
    b[4] = -100
    full = loss_and_gradients(cpu_backend, a, b)[2]
    assert full[4].abs().max() > 1e-5  # the images are pushed from it, so it has a gradient
    check(cpu_backend, a, b, pairs(a, b, ignored=-100))
