"""Sizes at which products of fields exceed 32 bits, with memory mapped and hardly touched."""

import mmap

import pytest
import torch

from robustft import backends

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.skipif(not backends.interpreting(), reason="runs under TRITON_INTERPRET=1"),
]
if backends.interpreting():
    from robustft.kernels import rsa

FIELD = 1 << 29  # 4 of them, or 5, are beyond 2^31
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python 3.11 has no name for it


def mapped(words: int) -> torch.Tensor:
    """float32 words of zero, as much memory as is touched; the middle of what is mapped, so that a
    place that is computed wrong is still one."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
    whole = torch.frombuffer(mmap.mmap(-1, 4 * 3 * words, flags=flags), dtype=torch.float32)
    return whole[words : 2 * words]


def test_rsa_has_its_fields_in_place():
    a, b = torch.randn(40, 8), torch.randn(40, 8)
    norms = [x.square().sum(1) for x in (a, b)]
    found = []
    for field in (1, FIELD):
        out = mapped(5 * field + 1)
        rsa.moments_tiles[(1, 1)](
            a, b, *norms, out, 40, 8, 8, field, COSINE=False, EVEN_A=False, EVEN_B=False,
            BLOCK=64, BLOCK_K=32,
        )  # fmt: skip
        found.append(out[::field].clone())
    assert found[0].tolist() == found[1].tolist()
    assert (found[0] != 0).all()
