"""What tests of nearest's CUDA kernels share: cards, packed rows, lists.

Steps are compared with float64, or with the plain torch ones of tests/ops/test_screening.py.
"""

import importlib.util
from pathlib import Path

import pytest
import torch

from robustft.backends.cuda import launcher
from robustft.backends.cuda import nearest as cuda
from robustft.backends.cuda.device import Card
from robustft.backends.search import banks, interface, packing, plans


def _cases(name):
    path = Path(__file__).parents[1] / "ops" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_cases", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


plain = _cases("test_screening")
contract = _cases("test_nearest")
normal = plain.normal
STEPS = cuda._STEPS

CARDS = {
    "sm_90": Card(3, 227 << 10, False),
    "sm_80": Card(3, 163 << 10, False),
    "sm_89": Card(3, 99 << 10, False),
    "sm_90a": Card(3, 227 << 10, True),
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Searches of a thousand rows are screened, too."""
    monkeypatch.setattr(plans, "LEAST_SAMPLE", 64)
    plans.plans.cache_clear()
    library = launcher._Emulator.of(launcher.emulator())
    yield
    plans.plans.cache_clear()
    library.order(0)


@pytest.fixture(name="card")
def emulated_card(request, monkeypatch):
    monkeypatch.setattr(cuda, "USE_WGMMA", True)
    monkeypatch.setattr(cuda, "card_of", lambda device: CARDS[request.param])
    return CARDS[request.param]


every_card = pytest.mark.parametrize("card", CARDS, indirect=True)
both_kernels = pytest.mark.parametrize("card", ["sm_90", "sm_90a"], indirect=True)


def order(seed):
    """Of the emulator's threads and blocks."""
    launcher._Emulator.of(launcher.emulator()).order(seed)


def packed(x, mean=None):
    """As queries are."""
    mean = torch.zeros(x.shape[1]) if mean is None else mean
    into = packing.padded(*x.shape, x.device)
    into.halves.fill_(torch.nan)
    into.numbers.fill_(torch.nan)
    STEPS.round_rows(x, mean, into)
    return into


def packed_bank(x, mean=None):
    mean = torch.zeros(x.shape[1]) if mean is None else mean
    return banks.pack_tiles(x, mean, STEPS)


def lists_of(count, capacity):
    integers = torch.full((3, count), -9, dtype=torch.int32)
    integers[0] = 0
    rows = torch.full((count, capacity), -7, dtype=torch.int32)
    return interface.Lists(rows, torch.full((count, capacity), torch.nan), *integers)
