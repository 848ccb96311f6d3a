"""The differentiable ops as cases: inputs on the card, a call, and a float64 truth.

Backends come as a parameter; one that has no kernel of an op, or cannot run here, is skipped with
its reason (the triton backend, which is always there with a card, fails instead).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from robustft import backends
from robustft.ops import dive_loss, mpm_nce, vrf_mix

SIZES = {"odd": (129, 67, 507), "even": (512, 256, 512)}  # rows, other rows, width


@dataclass(frozen=True)
class Case:
    """One op: call(inputs, backend) gives its outputs; the first `leaves` inputs get gradients."""

    op: str
    inputs: list[Tensor]
    leaves: int
    call: Callable[[list[Tensor], str], list[Tensor]]
    loss: Callable[[list[Tensor], list[Tensor]], Tensor]  # of outputs and inputs

    def run(self, backend: str, inputs: list[Tensor] | None = None) -> list[Tensor]:
        """The outputs and the gradients."""
        inputs = self.inputs if inputs is None else inputs
        leaves = [x.detach().requires_grad_() for x in inputs[: self.leaves]]
        outputs = self.call([*leaves, *inputs[self.leaves :]], backend)
        grads = torch.autograd.grad(self.loss(outputs, inputs), leaves)
        return [*(x.detach() for x in outputs), *grads]

    def truth(self) -> list[Tensor]:
        wide = [x.double() if x.is_floating_point() else x for x in self.inputs]
        return self.run("reference", wide)

    def on(self, device: str | torch.device) -> Case:
        return replace(self, inputs=[x.to(device) for x in self.inputs])

    def fresh(self) -> Case:
        """Other numbers of the same shapes."""
        return replace(
            self,
            inputs=[x.flip(0).contiguous() if x.ndim else x * 0.5 for x in self.inputs],
        )


def _dive(rows: int, _: int, dim: int, dtype: torch.dtype) -> Case:
    f0, g0 = torch.randn(2, rows, dim)
    f, g = f0 + 0.3 * torch.randn(rows, dim), g0 + 0.3 * torch.randn(rows, dim)
    mean = 0.01 * torch.randn(dim)

    def call(x: list[Tensor], backend: str) -> list[Tensor]:
        f, g, f0, g0, mean = x
        return list(dive_loss(f, f0, g, g0, mean, momentum=0.5, backend=backend))

    features = [x.to(dtype) for x in (f, g, f0, g0)]
    # Times the rows: float16 gradients stay above its subnormals.
    return Case("dive", [*features, mean], 2, call, lambda out, _: rows * (out[0] + 2 * out[1]))


def _mpm_nce(rows: int, columns: int, dim: int, dtype: torch.dtype, kind: str) -> Case:
    columns = rows if kind == "diagonal" else columns
    x = normalize(torch.randn(rows, dim), dim=1).to(dtype)
    y = normalize(torch.randn(columns, dim), dim=1).to(dtype)
    more: list[Tensor] = []
    if kind == "labels":
        more = [torch.randint(9, (rows,)), torch.randint(9, (columns,))]
        more[0][::7] = -100
    elif kind == "mask":
        more = [torch.rand(rows, columns) < 0.1]

    def call(x: list[Tensor], backend: str) -> list[Tensor]:
        x, y, scale, *more = x
        options = {"labels": {"margin": 0.1, "label_smoothing": 0.1}, "head": {"symmetric": False}}
        labels = more if kind == "labels" else ()
        mask = more[0] if kind == "mask" else None
        return [
            mpm_nce(
                x, y, *labels, mask=mask, logit_scale=scale, backend=backend,
                **options.get(kind, {}),
            )
        ]  # fmt: skip

    return Case("mpm_nce", [x, y, torch.tensor(30.0), *more], 3, call, lambda out, _: rows * out[0])


def _vrf(rows: int, _: int, classes: int, dtype: torch.dtype, log: bool) -> Case:
    logits = [(3 * torch.randn(rows, classes)).to(dtype) for _ in range(2)]

    def call(x: list[Tensor], backend: str) -> list[Tensor]:
        return [
            vrf_mix(
                *x[:3], 1.0, 0.6, temperature_finetuned=0.7, log=log, backend=backend
            )
        ]  # fmt: skip

    # The gradient passes through the result's dtype, in the truth too.
    upstream = torch.randn(rows, classes).to(dtype)
    return Case(
        "vrf", [*logits, torch.rand(rows), upstream], 3, call,
        lambda out, x: (out[0] * x[3]).sum(),
    )  # fmt: skip


CASES: dict[str, Callable[..., Case]] = {
    "dive": _dive,
    "mpm_nce labels": lambda *a: _mpm_nce(*a, "labels"),
    "mpm_nce mask": lambda *a: _mpm_nce(*a, "mask"),
    "mpm_nce diagonal": lambda *a: _mpm_nce(*a, "diagonal"),
    "vrf": lambda *a: _vrf(*a, False),
    "vrf log": lambda *a: _vrf(*a, True),
}


@pytest.fixture(params=list(CASES))
def make_case(request: pytest.FixtureRequest, card: str) -> Callable[..., Case]:
    """make(dtype, size) of each case in turn."""

    def make(dtype: torch.dtype = torch.float32, size: str = "odd") -> Case:
        taken = make.backend  # type: ignore[attr-defined]
        if taken and backends.declined(make.op, taken, card, dtype):  # type: ignore[attr-defined]
            pytest.skip(f"backend {taken} serves no {dtype} here")
        return CASES[request.param](*SIZES[size], dtype).on(card)

    make.name = request.param  # type: ignore[attr-defined]
    make.op = request.param.split()[0]  # type: ignore[attr-defined]
    make.backend = None  # type: ignore[attr-defined]
    return make


@pytest.fixture(params=["triton", "cuda"])
def backend(request: pytest.FixtureRequest, card: str) -> str:
    """Each backend of the card that has kernels of the case's op, else of nearest."""
    make = request.getfixturevalue("make_case") if "make_case" in request.fixturenames else None
    op = make.op if make else "nearest"
    if request.param not in backends.IMPLEMENTATIONS[op]:
        pytest.skip(f"{op} has no kernel of backend {request.param}")
    state = backends.status(request.param)
    if not state.runs and request.param == "cuda":
        pytest.skip(state.reason)
    if make:
        make.backend = request.param  # type: ignore[attr-defined]
    return request.param
