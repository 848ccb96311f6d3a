"""What a kernel is asked to show, and whether it did."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

#: Of a result that is stored in the dtype, relative to the largest number of the truth.
ROUNDING = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


class Limit(NamedTuple):
    """How far a result may be from the truth: relative · largest |truth| + floor."""

    relative: float
    floor: float = 1e-30


class Problem(NamedTuple):
    """One call of an op's module, and how exact each of its results must be.

    run(module, inputs) calls the module and names its results. inputs are CPU tensors and other
    values; the truth is what the reference's module makes of them in float64.
    """

    name: str
    run: Callable[[ModuleType, tuple[Any, ...]], dict[str, Tensor]]
    inputs: tuple[Any, ...]
    limits: dict[str, Limit]
    misaligned: bool = False  # rows of floats that begin at odd places, with a stride of their own


def normal(seed: int, *shape: int) -> Tensor:
    """Numbers that are the same on every machine, and take nothing from the caller's generator."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(seed: int, *shape: int) -> Tensor:
    """Rows of unit length."""
    return torch.nn.functional.normalize(normal(seed, *shape), dim=1)


def truth_of(problem: Problem, reference: ModuleType) -> dict[str, Tensor]:
    """Its results in float64."""
    return problem.run(reference, tuple(_wide(x) for x in problem.inputs))


def failure(
    problem: Problem,
    module: ModuleType,
    reference: ModuleType,
    device: torch.device,
    truth: dict[str, Tensor] | None = None,
) -> str | None:
    """What the module does wrong on the device, in one line; None if all is right.

    truth: of truth_of, where several modules are asked.
    """
    try:
        given = placed(problem, device)
        found, again = (problem.run(module, given) for _ in range(2))
        results = {name: (x.cpu(), again[name].cpu()) for name, x in found.items()}
    except Exception as error:  # a kernel that does not compile or launch
        return f"{problem.name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    truth = truth or truth_of(problem, reference)
    for name, true in truth.items():
        wrong = _wrong(*results[name], true, problem.limits[name])
        if wrong is not None:
            return f"{problem.name}: {name} {wrong}"
    return None


def _wrong(found: Tensor, again: Tensor, true: Tensor, limit: Limit) -> str | None:
    if found.shape != true.shape:
        return f"has shape {tuple(found.shape)}, expected {tuple(true.shape)}"
    if not torch.equal(found.nan_to_num(), again.nan_to_num()):
        return "differs from call to call"
    finite = true.isfinite()
    if not torch.equal(found.isfinite(), finite):
        return "is not finite where it should be, or is finite where it should not be"
    if not found.is_floating_point():
        return None if torch.equal(found, true) else "is not what was expected"
    if not finite.any():
        return None
    error = (found.double() - true)[finite].abs().max().item()
    allowed = limit.relative * true[finite].abs().max().item() + limit.floor
    return None if error <= allowed else f"is off by {error:.2e}, allowed {allowed:.2e}"


def placed(problem: Problem, device: torch.device) -> tuple[Any, ...]:
    """Its inputs on the device."""
    return tuple(_placed(x, device, problem.misaligned) for x in problem.inputs)


def _placed(x: Any, device: torch.device, misaligned: bool) -> Any:
    """An input on the device; what holds several goes part by part."""
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*(_placed(part, device, False) for part in x))
    if not isinstance(x, Tensor):
        return x
    if misaligned and x.ndim == 2 and x.is_floating_point():
        wider = torch.zeros(len(x), x.shape[1] + 3, dtype=x.dtype, device=device)
        wider[:, 1:-2] = x.to(device)
        return wider[:, 1:-2]
    return x.to(device)


def _wide(x: Any) -> Any:
    """An input in float64."""
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*(_wide(part) for part in x))
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def medians(
    calls: Mapping[Any, Callable[[], object]],
    device: torch.device,
    rounds: int,
    around: Callable[[Any], contextlib.AbstractContextManager[object]] | None = None,
) -> dict[Any, float]:
    """Seconds of each call, taken in turns; a first round, which may compile, does not count.

    around: what a call of that name needs; it is entered before each, and a call made in it that
    does not count either.
    """
    times: dict[Any, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            with around(name) if around else contextlib.nullcontext():
                if around:
                    call()
                _wait_for(device)
                began = time.perf_counter()
                call()
                _wait_for(device)
                if turn:
                    times[name].append(time.perf_counter() - began)
    return {name: statistics.median(taken) for name, taken in times.items()}


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """No gradients, no autocast, float32 products in float32: whatever the caller has set."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
        matmul.fp32_precision = "ieee"
        try:
            yield
        finally:
            matmul.fp32_precision = before
