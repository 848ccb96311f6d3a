"""Twenty steps of a small two-tower model: the kernels train as the reference does."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from robustft import backends
from robustft.losses import DiVELoss
from robustft.ops import mpm_nce

pytestmark = pytest.mark.gpu
STEPS, ROWS, INPUT, DIM = 20, 64, 48, 32


class _Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(INPUT, 64), nn.GELU(), nn.Linear(64, DIM))
        self.text = nn.Sequential(nn.Linear(INPUT, 64), nn.GELU(), nn.Linear(64, DIM))
        self.log_scale = nn.Parameter(torch.tensor(2.5))

    def forward(self, images, texts):
        return self.image(images), self.text(texts)


def _train(name, card, dtype, monkeypatch):
    """Losses of every step and the parameters at the end, with `name` as what auto takes."""
    monkeypatch.setitem(backends.AUTO, card, {op: ((None, name),) for op in backends.OPS})
    torch.manual_seed(0)
    model, start = _Towers().to(card), _Towers().to(card)
    start.load_state_dict(model.state_dict())
    dive = DiVELoss(DIM, momentum=0.9).to(card)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(STEPS):
        classes = torch.randint(10, (ROWS,), generator=generator)
        shown = torch.randn(10, INPUT, generator=generator)[classes]
        images, texts = (
            (shown + 0.3 * torch.randn(ROWS, INPUT, generator=generator)).to(card) for _ in "it"
        )
        labels = classes.to(card)
        with torch.autocast(card, dtype=dtype, enabled=dtype != torch.float32):
            x, y = model(images, texts)
            with torch.no_grad():
                x0, y0 = start(images, texts)
        contrastive = mpm_nce(
            normalize(x.float(), dim=1).to(dtype), normalize(y.float(), dim=1).to(dtype),
            labels, labels, logit_scale=model.log_scale.exp(), margin=0.05, label_smoothing=0.02,
        )  # fmt: skip
        avl, pvl = dive(x, x0, y, y0)
        loss = contrastive + 0.1 * (avl + pvl)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses), [p.detach() for p in model.parameters()]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)], ids=str
)
def test_twenty_steps(card, dtype, tolerance, monkeypatch):
    wanted, parameters = _train("reference", card, dtype, monkeypatch)
    losses, found = _train("triton", card, dtype, monkeypatch)
    assert wanted[-1] < 0.9 * wanted[0]
    torch.testing.assert_close(losses, wanted, rtol=tolerance, atol=0)
    if dtype == torch.float32:
        for x, y in zip(found, parameters, strict=True):
            # AdamW moves by the gradient's sign where it is noise: at most lr a step.
            assert (x - y).abs().mean() <= 1e-3
