"""What mpm_nce takes beside its inputs: bounded, and never B × C."""

from __future__ import annotations

import pytest
import torch

from robustft.backends import contrast
from robustft.backends.options import MpmNceOptions, Positives
from robustft.ops import mpm_nce

pytestmark = pytest.mark.gpu
LIBRARY = 32 << 20  # bytes: what cuBLAS keeps for each of its workspaces on an H100


def _step(x, y, scale):
    loss = mpm_nce(x, y, logit_scale=scale, backend="triton")
    return torch.autograd.grad(loss, (x, y, scale))


@pytest.mark.parametrize("rows", [8192, 32768])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_extra_memory(real_card, rows, dtype):
    def unit(n):
        x = torch.nn.functional.normalize(torch.randn(n, 512, device=real_card), dim=1)
        return x.to(dtype).requires_grad_()

    scale = torch.tensor(100.0, device=real_card, requires_grad=True)
    _step(unit(256), unit(256), scale)  # cuBLAS keeps a workspace from its first product on
    # ∂Z of some rows and their product; a product of all columns, and both gradients.
    needed = contrast.WORKSPACE * (1 + 512 * 4 / (rows * dtype.itemsize))
    needed += rows * 512 * (4 + 2 * dtype.itemsize)
    x, y = unit(rows), unit(rows)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _step(x, y, scale)
    torch.cuda.synchronize()
    extra = torch.cuda.max_memory_allocated() - before
    allowed = needed + 2 * LIBRARY
    assert extra < allowed, f"{extra / 1e6:.0f} MB, allowed {allowed / 1e6:.0f} MB"
    if rows == 32768:
        assert extra < rows * rows * dtype.itemsize / 4


def test_blocks_of_the_workspace_change_little(card, monkeypatch):
    from robustft.kernels import launch
    from robustft.kernels import mpm_nce as kernels

    x, y = (
        torch.nn.functional.normalize(torch.randn(n, 64, device=card), dim=1).half()
        for n in (515, 259)
    )
    labels = torch.randint(9, (515,), device=card), torch.randint(9, (259,), device=card)
    pairs = Positives(*labels, None, -100)
    scale = torch.tensor(30.0, device=card)
    options = MpmNceOptions(0.1, 0.1, True)
    _, *saved = kernels.forward(x, y, pairs, scale, options, 0)
    one = torch.ones((), device=card)
    arguments = (x, y, pairs, scale, *saved, one, options, True, True)
    whole = kernels.backward(*arguments)
    launch.forget()
    monkeypatch.setattr(contrast, "WORKSPACE", 128 * 259 * 2)
    try:
        parts = kernels.backward(*arguments)
    finally:
        launch.forget()
    for found, wanted in zip(parts, whole, strict=True):
        assert (found.float() - wanted.float()).abs().max() <= 1e-3 * wanted.float().abs().max()
