"""IMPLEMENTATIONS, the table of backends: what it names exists, and an op may lack a kernel."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from robustft import backends
from robustft.errors import InputError
from robustft.ops._register import register

ENTRIES = [(op, name) for op, table in backends.IMPLEMENTATIONS.items() for name in table]


def interface(op: str, module: ModuleType) -> dict[str, Callable[..., object]]:
    """The functions that an op calls: the reference's own, but for the definition, named by it."""
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and not name.startswith(("_", op))
    }


@pytest.mark.parametrize(("op", "name"), ENTRIES)
def test_every_entry_has_the_functions_of_its_reference(op: str, name: str) -> None:
    if name == "triton":
        pytest.importorskip("triton")
    table = backends.IMPLEMENTATIONS[op]
    reference = importlib.import_module(table["reference"])
    wanted = interface(op, reference)
    assert wanted
    module = importlib.import_module(table[name])
    for function, value in wanted.items():
        # They are called by place: a module may name what it gets as it likes.
        given = inspect.signature(getattr(module, function)).parameters.values()
        expected = inspect.signature(value).parameters.values()
        assert [p.kind for p in given] == [p.kind for p in expected], function
        assert [p.default for p in given] == [p.default for p in expected], function
    assert hasattr(module, "FORMAT") == hasattr(reference, "FORMAT")


def test_every_op_has_a_reference_and_known_backends_alone() -> None:
    for op, table in backends.IMPLEMENTATIONS.items():
        assert "reference" in table
        assert set(table) <= set(backends.NAMES)
        assert all(module.rpartition(".")[2] == op for module in table.values())
        assert all(importlib.util.find_spec(module) for module in table.values())


def test_an_op_with_a_reference_alone_is_registered_and_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = ModuleType("robustft.backends.reference.halved")
    module.forward = lambda x, factor: x * factor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(backends.IMPLEMENTATIONS, "halved", {"reference": module.__name__})
    # As AUTO has it for every op: a kernel that there is not.
    monkeypatch.setitem(backends.AUTO["cpu"], "halved", ((None, "cpu"),))
    op = register(
        "halved",
        "forward",
        ("Tensor x", "float factor"),
        "Tensor",
        lambda x, *_: x.new_empty(x.shape),
    )
    x = torch.randn(3, 4)
    for backend in ("auto", "reference"):
        assert torch.equal(op(x, 0.5, backend), x / 2)
    compiled = torch.compile(lambda x: op(x, 0.5, "auto"), fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), x / 2)
    for backend in ("cpu", "triton", "cuda"):
        with pytest.raises(InputError, match=f"'{backend}' cannot run halved: .*no kernel for it"):
            op(x, 0.5, backend)
