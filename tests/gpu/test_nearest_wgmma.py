"""The sm_90a screening kernel of nearest beside the sm_80 one: the same bits."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from robustft import backends
from robustft.backends.cuda import nearest as cuda
from robustft.ops import FeatureBank, knn

pytestmark = pytest.mark.gpu


# Widths of the three kernels; row counts that leave half a step, and a part of a tile.
@pytest.mark.parametrize("size", [(129, 70_001, 512), (300, 9001, 640), (1000, 20_011, 768)])
@pytest.mark.parametrize("k", [1, 200])
def test_equals_the_other_kernel(
    size: tuple[int, int, int], k: int, card: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = card != "cpu" and backends.status("cuda").runs
    if not runs or torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs CuPy and a card of capability 9.0")
    count, n, dim = size
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(40, dim, generator=generator)
    x = centres[torch.arange(n + count) % 40] + torch.randn(n + count, dim, generator=generator)
    x = normalize(x, dim=1).to(card)
    bank = FeatureBank(x[:n])
    assert cuda.card_of(x.device).wgmma
    results = []
    for wgmma in (False, True):
        monkeypatch.setattr(cuda, "USE_WGMMA", wgmma)
        results.append(knn(x[n:], bank, k, backend="cuda"))
    assert all(map(torch.equal, *results))
