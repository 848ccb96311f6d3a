"""Whole searches by nearest's CUDA kernels in the emulator."""

import pytest
import torch

from robustft import backends
from robustft.backends.cuda import nearest as cuda
from robustft.backends.search import banks, plans, screening
from robustft.ops import FeatureBank, kth_distance

from .searches import STEPS, both_kernels, contract, emulated_card, order, plain, small  # noqa: F401

pytestmark = [
    pytest.mark.emulator,
    pytest.mark.skipif(not backends.emulating(), reason="runs under ROBUSTFT_CUDA_EMULATOR"),
]


@pytest.mark.parametrize("card", ["sm_90a"], indirect=True)
@pytest.mark.parametrize("name", plain.HARD)
def test_hard_banks(name, card):
    rows, queries = plain.HARD[name]
    plain.check(queries.repeat(8, 1)[:65], rows, 7, STEPS)  # more than 64: wgmma


@pytest.mark.parametrize("name", contract.LARGE)
def test_large_banks(name, monkeypatch):
    monkeypatch.setattr(plans, "LEAST_SAMPLE", 1024)
    rows, queries = contract.LARGE[name]
    plain.check(queries[-5:], rows, 37, STEPS)


@both_kernels
def test_ordinary_features_need_no_second_search(card, monkeypatch):
    monkeypatch.setattr(screening, "_by_reference", None)
    rows, queries = plain.clustered(5003, 67, 96)
    plain.check(queries, rows, 33, STEPS)


@both_kernels
def test_no_order_of_work_changes_a_bit(card):
    rows, queries = plain.clustered(1501, 130, 65)
    results = []
    for seed in (0, 1, 2, 3):
        order(seed)
        bank = banks.pack(rows, STEPS, rows.device)
        results.append([*bank, *screening.knn(queries, rows, bank, 9, True, STEPS)])
        results[-1].append(screening.kth_distance(queries, rows, bank, 9, True, STEPS))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("k", [1, 40])
def test_chunks_change_no_bit(k, monkeypatch):
    rows, queries = plain.clustered(1501, 9, 65)
    bank = banks.pack(rows, STEPS, rows.device)
    want = screening.knn(queries, rows, bank, k, True, STEPS)
    for chunk in (128, 300, 1024):
        monkeypatch.setattr(banks, "CHUNK", chunk)
        assert all(map(torch.equal, screening.knn(queries, rows, bank, k, True, STEPS), want))


def test_a_saved_bank_keeps_its_tiles(tmp_path, monkeypatch):
    rows, queries = plain.clustered(1501, 9, 65)
    bank = FeatureBank(rows)
    want = kth_distance(queries, bank, 9, backend="cuda")
    assert torch.equal(want, plain.truth(queries, rows, 9)[0][:, -1])
    bank.save(tmp_path / "bank.safetensors")
    loaded = FeatureBank.load(tmp_path / "bank.safetensors")
    monkeypatch.setattr(cuda, "pack", None)
    assert torch.equal(kth_distance(queries, loaded, 9, backend="cuda"), want)
