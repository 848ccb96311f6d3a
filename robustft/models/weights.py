"""Weight-space operations on state dicts."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from robustft.errors import InputError


@torch.no_grad()
def interpolate(
    state_a: Mapping[str, Tensor], state_b: Mapping[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """(1−α)·a + α·b for every tensor (WiSE-FT, Wortsman et al., arXiv 2109.01903).

    α = 0 and α = 1 give a and b bit for bit, and tensors equal in both stay as they are. Integer
    and boolean tensors are taken from b, except at α = 0. All tensors are copies.

    Errors: InputError if names, shapes or dtypes differ, or α is not finite.
    """
    if not math.isfinite(alpha):
        raise InputError(f"alpha: got {alpha}, expected a finite number")
    check_same_tensors(state_a, state_b, "state_a", "state_b")
    for name, a in state_a.items():
        if a.dtype != state_b[name].dtype:
            raise InputError(
                f"state_b: {name!r} is {state_b[name].dtype}, expected {a.dtype} as in state_a"
            )
    if alpha in (0.0, 1.0):
        chosen = state_a if alpha == 0.0 else state_b
        return {name: chosen[name].detach().clone() for name in state_a}
    return {name: _mix(a, state_b[name], alpha) for name, a in state_a.items()}


def _mix(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    if not a.is_floating_point():
        return b.detach().clone()
    # a + α(b − a) leaves equal weights alone, which (1−α)a + αb would round.
    return torch.lerp(a, b.to(a.device), alpha)


def check_same_tensors(
    expected: Mapping[str, Tensor],
    got: Mapping[str, Tensor],
    expected_name: str,
    got_name: str,
) -> None:
    """InputError, naming the first tensors concerned, unless names and shapes are the same."""
    problems = []
    for name, tensor in expected.items():
        if name not in got:
            problems.append(f"{name} is missing")
        elif got[name].shape != tensor.shape:
            problems.append(
                f"{name} has shape {list(got[name].shape)}, expected {list(tensor.shape)}"
            )
    problems += [f"{name} is not expected" for name in got if name not in expected]
    if problems:
        shown = "; ".join(problems[:3])
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(f"{got_name}: does not match {expected_name}: {shown}{more}")
