"""A tiny model with random weights, 150 pairs in memory, and shards of 64 rows."""

from __future__ import annotations

import pytest
import torch

from robustft.features import store as module


@pytest.fixture(scope="session")
def clip():
    from robustft.models import load_clip

    torch.set_num_threads(1)
    torch.manual_seed(0)
    return load_clip("robustft-tiny")


@pytest.fixture(scope="session")
def pairs(clip):
    from robustft.data import load_reference

    return load_reference("glyphs", n=150).with_transform(clip.preprocess_val)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD", 64)
    return module.FeatureStore(tmp_path / "store")


@pytest.fixture
def everything():
    """All of the rows of a tensor or of Rows."""
    return lambda rows: rows[torch.arange(len(rows))]
