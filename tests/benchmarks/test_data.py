"""Data of the benchmarks are made where they are used."""

import pytest
import torch
from torch import Tensor

from benchmarks import dive, mpm_nce, nearest, rsa, vrf


def made(what: str, dtype: torch.dtype) -> list[Tensor]:
    if what == "dive":
        features = dive.Batch.of(9, 8, dtype, "cpu")
        return [features.f, features.f0, features.g, features.g0, features.mean]
    if what == "vrf":
        logits = vrf.Batch.of(9, 8, dtype, "cpu", True)
        return [logits.finetuned, logits.zeroshot, logits.distance, logits.upstream]
    if what == "rsa":
        return list(rsa.pair(9, 8, dtype, "cpu"))
    if what == "nearest":
        data = nearest.Data(9, 8, 4, "cpu")
        return [data.rows, data.queries]
    batch = mpm_nce.Batch.of(what, 9, 9, 8, dtype, "cpu", True)
    return [batch.x, batch.y, batch.scale, *(batch.labels or ())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("what", ["dive", "vrf", "rsa", "nearest", "InfoNCE", "labels", "head"])
def test_nothing_is_made_elsewhere_and_copied(what, dtype):
    plain = made(what, dtype)
    with torch.device("meta"):  # what names no device is made there, and cannot be copied from it
        found = made(what, dtype)
    assert len(found) == len(plain) >= 2
    for x, y in zip(found, plain, strict=True):
        assert torch.equal(x, y)
