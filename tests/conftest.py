"""Fixtures for every test: fixed seeds, backends that must exist, comparison with float64."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Callable, Generator, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from robustft import backends
from robustft.backends.search import plans

# torch.compile imports it when it first compiles; its taking the place of distutils has failed then
# once, after thousands of tests.
with contextlib.suppress(ImportError):
    import setuptools  # noqa: F401

# ROBUSTFT_REHEARSE=1 with TRITON_INTERPRET=1: the tests marked gpu run in the interpreter, their
# card is the CPU. What needs torch.cuda itself is skipped.
REHEARSING = os.environ.get("ROBUSTFT_REHEARSE") == "1"
CARD = "cpu" if REHEARSING else "cuda"


@pytest.fixture(autouse=True, scope="session")
def _signals_as_in_a_terminal() -> Iterator[None]:
    """A background job of a shell ignores SIGINT, one under nohup SIGHUP, and so would all that the
    tests start and then interrupt."""
    usual: dict[int, Any] = {signal.SIGINT: signal.default_int_handler}
    if hasattr(signal, "SIGHUP"):  # Windows has none
        usual[signal.SIGHUP] = signal.SIG_DFL
    ignored = [number for number in usual if signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, usual[number])
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(autouse=True, scope="session")
def _features_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The tests' commands keep no features in the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTFT_FEATURE_STORE", str(tmp_path_factory.mktemp("features")))
        yield


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
    if not backends.emulating():
        skip = pytest.mark.skip(reason="runs under ROBUSTFT_CUDA_EMULATOR")
        for item in items:
            if item.get_closest_marker("emulator"):
                item.add_marker(skip)
    if torch.cuda.is_available() or REHEARSING:
        return
    skip = pytest.mark.skip(reason="torch finds no CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


def _of_triton(item: pytest.Item) -> bool:
    if REHEARSING:
        return item.get_closest_marker("gpu") is not None
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
    # They make float32 tensors.
    return bool(ops) and backends.serves(ops[0], "cuda", "cpu", torch.float32)


_LOST: list[str] = []  # the test after which the card answers with errors alone


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, Any, Any]:
    report = yield
    of_a_card = item.get_closest_marker("gpu") is not None
    if report.failed and of_a_card and not _LOST and _card_is_lost():
        _LOST.append(item.nodeid)
    return report


def _card_is_lost() -> bool:
    """Whether an illegal access, say, has ended all work of this process on the card."""
    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def pytest_runtest_setup(item: pytest.Item) -> None:
    """After the card is lost to a process nothing that it says of a kernel counts."""
    if not _LOST or item.get_closest_marker("gpu") is None:
        return
    if hasattr(item.config, "workerinput"):  # pytest-xdist begins another process, less this test
        os.write(2, f"{_LOST[0]} lost the card: a new worker takes over\n".encode())
        os._exit(3)
    pytest.skip(f"{_LOST[0]} lost the card to this process: run this test alone")


@pytest.fixture
def native() -> str:
    """The cpu backend's name. Without the native module the test fails, it is not skipped."""
    state = backends.status("cpu")
    if not state.runs:
        if os.environ.get("ROBUSTFT_ALLOW_NO_NATIVE") == "1":
            pytest.skip(state.reason)
        pytest.fail(f"{state.reason}; set ROBUSTFT_ALLOW_NO_NATIVE=1 to skip what needs it")
    return "cpu"


def _cpu_backends() -> list[Any]:
    on_a_card = [pytest.param(name, marks=pytest.mark.gpu) for name in ("triton", "cuda")]
    if backends.interpreting():
        return on_a_card[:1] if REHEARSING else ["triton"]
    return ["cuda"] if backends.emulating() else ["reference", "cpu", *on_a_card]


@pytest.fixture(autouse=True)
def _on_a_card(request: pytest.FixtureRequest) -> Iterator[None]:
    """In tests marked gpu the card's backends serve CPU tensors too, by copies on the card.

    So the contract tests, which make CPU tensors, are those of a card with `pytest -m gpu`. Their
    banks are small: searches of 512 rows are screened, as those of 8,192 are otherwise.
    """
    if request.node.get_closest_marker("gpu") is None:
        yield
        return
    contract = request.path.parent.name == "ops"
    if contract and "cuda" in request.node.callspec.params.values() and not _of_cuda(request.node):
        pytest.skip("this op has no kernel of backend cuda")
    plain, least = backends.load, plans.LEAST_SAMPLE

    def load(op: str, device: str, dtype: torch.dtype, requested: str, size: int = 0) -> Any:
        return _served_by_a_card(plain, op, device, dtype, requested, size)

    backends.load = load
    if contract or REHEARSING:
        plans.LEAST_SAMPLE = 64
        plans.plans.cache_clear()
    try:
        yield
    finally:
        backends.load, plans.LEAST_SAMPLE = plain, least
        plans.plans.cache_clear()


def _served_by_a_card(
    load: Callable[..., ModuleType],
    op: str,
    device: str,
    dtype: torch.dtype,
    requested: str,
    size: int,
) -> Any:
    if device != "cpu" or requested not in ("triton", "cuda"):
        return load(op, device, dtype, requested, size)
    if requested not in backends.IMPLEMENTATIONS[op]:
        pytest.skip(f"{op} has no kernel of backend {requested}")
    if backends.declined(op, requested, CARD, dtype) is not None:
        pytest.skip(f"{op}: backend {requested} serves no {dtype} here")
    module = load(op, CARD, dtype, requested)

    def on_card(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*inputs: Any) -> Any:
            found = function(*tree_map_only(Tensor, _copy, inputs))
            return tree_map_only(Tensor, lambda x: x.cpu(), found)

        return call

    found = {
        name: on_card(value) if callable(value) and not isinstance(value, type) else value
        for name, value in vars(module).items()
        if not name.startswith("__")
    }
    return SimpleNamespace(**found)


def _copy(x: Tensor) -> Tensor:
    """On the card, with the same strides, offset and alignment: the whole memory is copied."""
    whole = torch.empty(0, dtype=torch.uint8).set_(x.untyped_storage()).to(CARD, copy=True)
    there = torch.empty(0, dtype=x.dtype, device=CARD)
    return there.set_(whole.untyped_storage(), x.storage_offset(), x.shape, x.stride())


@pytest.fixture
def card() -> str:
    """The device of a GPU test's tensors: cuda, or cpu in a rehearsal."""
    return CARD


@pytest.fixture
def real_card() -> str:
    """As `card`, for what a rehearsal cannot show."""
    if REHEARSING:
        pytest.skip("needs a CUDA device")
    return CARD


@pytest.fixture(params=_cpu_backends())
def cpu_backend(request: pytest.FixtureRequest) -> str:
    """Each backend that serves CPU tensors in turn, for ops that have a C++ kernel.

    Under TRITON_INTERPRET=1 it is the Triton kernels alone, in Triton's interpreter; under
    ROBUSTFT_CUDA_EMULATOR the CUDA kernels alone, in the emulator; with -m gpu both on the card.
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
