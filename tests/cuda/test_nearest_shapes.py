"""How nearest's CUDA kernels are launched: kernels and shapes for cards, parts of the bank."""

import math
import types

import pytest
import torch

from benchmarks.card import cuda_cubins, small_cases
from robustft import backends
from robustft.backends.cuda import device
from robustft.backends.cuda import nearest as cuda
from robustft.backends.search import packing

from .searches import CARDS, STEPS, lists_of, small  # noqa: F401

pytestmark = [
    pytest.mark.emulator,
    pytest.mark.skipif(not backends.emulating(), reason="runs under ROBUSTFT_CUDA_EMULATOR"),
]


@pytest.mark.parametrize(
    ("name", "dim", "kernel", "stages"),
    [
        ("sm_90", 64, "screen<128, true>", 6),
        ("sm_90", 512, "screen<128, true>", 6),
        ("sm_90", 640, "screen<128, true>", 4),
        ("sm_90", 768, "screen<128, true>", 2),
        ("sm_90", 1024, "screen<64, true>", 6),
        ("sm_90", 4096, "screen<128, false>", 6),
        ("sm_80", 512, "screen<128, true>", 2),
        ("sm_80", 768, "screen<64, true>", 4),
        ("sm_80", 1024, "screen<64, true>", 2),
        ("sm_89", 512, "screen<64, true>", 2),
        ("sm_89", 640, "screen<128, false>", 3),
        ("sm_90a", 512, "screen_wgmma<256, true, 2>", 3),
        ("sm_90a", 640, "screen_wgmma<128, true, 2>", 4),
        ("sm_90a", 768, "screen_wgmma<256, false, 2>", 4),
    ],
)
def test_shapes(name, dim, kernel, stages):
    _, shared, wgmma = CARDS[name]
    shape = cuda._shape(1000, dim // 64, shared, wgmma)
    assert (shape.kernel, shape.stages) == (f"nearest::{kernel}", stages)
    few = cuda._shape(64, dim // 64, shared, wgmma)
    assert few.kernel in ("nearest::screen<64, true>", "nearest::screen<128, false>")
    for one in (shape, few):
        assert one.shared <= shared
        assert one.stages >= 2


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0)])
def test_wgmma_is_for_sm_90_alone(capability, monkeypatch):
    monkeypatch.setattr(device, "emulating", lambda: None)
    of = types.SimpleNamespace(multi_processor_count=7, shared_memory_per_block_optin=101376)
    of.major, of.minor = capability
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: of)
    card = device.card_of.__wrapped__(torch.device("cuda", 0))
    assert card == (7, 101376, capability == (9, 0))


@pytest.mark.parametrize("use", [False, True])
def test_wgmma_is_taken_where_it_is_wanted(use, monkeypatch):
    launched = []
    monkeypatch.setattr(cuda, "USE_WGMMA", use)
    monkeypatch.setattr(cuda, "launch", lambda source, *_, **__: launched.append(source))
    x = packing.padded(128, 64, torch.device("cpu"))
    STEPS.screen(x, torch.zeros(3, 128), x, 0, lists_of(65, 8))
    STEPS.screen(x, torch.zeros(3, 128), x, 0, lists_of(64, 8))
    assert launched == ["nearest_wgmma" if use else "nearest_screen", "nearest_screen"]


@pytest.mark.parametrize("query_tiles", [1, 2, 7, 50, 391, 4000])
@pytest.mark.parametrize("steps", [1, 5, 79, 2735])
def test_splits_fill_the_card(query_tiles, steps):
    processors = 132
    splits = cuda._splits(query_tiles, steps, processors)
    assert 1 <= splits <= steps
    blocks = query_tiles * splits
    waves = math.ceil(blocks / processors)
    if 1 < splits < steps:  # the last wave is as full as whole splits allow
        assert waves * processors - blocks < query_tiles
    if query_tiles * steps >= processors:
        assert blocks >= processors / 2


def test_small_cases_reach_every_screening_kernel(monkeypatch):
    """For the sanitizers of a card: what they do not run they do not see."""
    reached, plain_launch = set(), cuda.launch
    monkeypatch.setattr(cuda, "card_of", lambda device: CARDS["sm_90a"])
    monkeypatch.setattr(
        cuda, "launch", lambda *given, **more: (reached.add(given[1]), plain_launch(*given, **more))
    )
    small_cases.main(["--backend", "cuda", "--op", "nearest"])
    for source in ("nearest_screen", "nearest_wgmma", "nearest_select", "nearest_pack"):
        assert set(cuda_cubins.kernels(source)) <= reached
