"""Fixtures for every test: fixed seeds, backends that must exist, comparison with float64."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from robustft import backends


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries draw from the global generator
    torch.manual_seed(0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # TRITON_INTERPRET=1 pytest: the tests of Triton kernels, in Triton's interpreter, alone.
    # ROBUSTFT_CUDA_EMULATOR=LIBRARY pytest: those of CUDA kernels, in the emulator.
    if backends.interpreting() or backends.emulating():
        of = _of_triton if backends.interpreting() else _of_cuda
        mine = [item for item in items if of(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in mine])
        items[:] = mine
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="torch finds no CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


def _of_triton(item: pytest.Item) -> bool:
    if "interpreter" in item.keywords:
        return True
    call = getattr(item, "callspec", None)
    values = list(call.params.values()) if call else []
    # The interpreter truncates to bfloat16 where a card rounds.
    return "triton" in values and torch.bfloat16 not in values


def _of_cuda(item: pytest.Item) -> bool:
    """Marked `emulator`, or a contract test with backend "cuda" of an op that has CUDA kernels."""
    if "emulator" in item.keywords:
        return True
    call = getattr(item, "callspec", None)
    if call is None or "cuda" not in call.params.values():
        return False
    # tests/ops/test_dive.py, or test_dive in another file
    names = (item.path.stem, getattr(item, "originalname", ""))
    ops = [op for op in backends.OPS if f"test_{op}" in names]
    return bool(ops) and "cuda" in backends.IMPLEMENTATIONS[ops[0]]


@pytest.fixture
def native() -> str:
    """The cpu backend's name. Without the native module the test fails, it is not skipped."""
    state = backends.status("cpu")
    if not state.runs:
        if os.environ.get("ROBUSTFT_ALLOW_NO_NATIVE") == "1":
            pytest.skip(state.reason)
        pytest.fail(f"{state.reason}; set ROBUSTFT_ALLOW_NO_NATIVE=1 to skip what needs it")
    return "cpu"


def _cpu_backends() -> list[str]:
    if backends.interpreting():
        return ["triton"]
    return ["cuda"] if backends.emulating() else ["reference", "cpu"]


@pytest.fixture(params=_cpu_backends())
def cpu_backend(request: pytest.FixtureRequest) -> str:
    """Each backend that serves CPU tensors in turn, for ops that have a C++ kernel.

    Under TRITON_INTERPRET=1 it is the Triton kernels alone, in Triton's interpreter; under
    ROBUSTFT_CUDA_EMULATOR the CUDA kernels alone, in the emulator.
    """
    if request.param == "cpu":
        request.getfixturevalue("native")
    return request.param


@pytest.fixture
def as_accurate() -> Callable[..., None]:
    """check(result, plain, truth, tolerance): no further from float64 than plain torch, plus a bit.

    result: from the backend under test; plain: from torch in the same dtype; truth: float64.
    The tolerance is relative to the largest entry of the truth, `floor` absolute.
    """

    def check(
        result: Tensor, plain: Tensor, truth: Tensor, tolerance: float, floor: float = 0.0
    ) -> None:
        assert result.shape == plain.shape == truth.shape
        assert result.dtype == plain.dtype
        assert truth.dtype == torch.float64
        assert truth.isfinite().all()
        error = (result.double() - truth).abs().max()
        allowed = (plain.double() - truth).abs().max() + tolerance * truth.abs().max() + floor
        assert error <= allowed, f"error {error:.3e}, allowed {allowed:.3e}"

    return check


@pytest.fixture
def with_threads() -> object:
    """with_threads(n) for the rest of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
