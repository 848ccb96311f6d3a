"""Backward passes that are not differentiable themselves, and say so."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from robustft.errors import SecondDerivativeError


def wants_gradients(*tensors: Tensor) -> bool:
    """Whether a call's result is differentiated, backward or forward: else the call needs no
    autograd.Function, which costs 3 µs."""
    if torch.is_grad_enabled():
        for x in tensors:
            if x.requires_grad:
                return True
    return not torch.compiler.is_compiling() and forward_ad._current_level >= 0


def first_order(op: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate an autograd.Function's backward: its gradients have none (SecondDerivativeError).

    torch's once_differentiable lets a gradient penalty on a loss through without its term: it
    looks at the gradient that comes in, which for a loss is a constant 1.
    """

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(backward)
        def wrapper(ctx: Any, *grads: Any) -> Any:
            # A compiled graph refuses second derivatives on its own (torch's AOTAutograd).
            if torch.compiler.is_compiling() or not torch.is_grad_enabled():
                return backward(ctx, *grads)
            with torch.no_grad():  # create_graph=True
                found = backward(ctx, *grads)
            token = torch.zeros((), requires_grad=True)
            given = iter(_Refuse.apply(op, token, *(g for g in found if g is not None)))
            return tuple(None if g is None else next(given) for g in found)

        return wrapper

    return decorate


class _Refuse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, op: str, _token: Tensor, *grads: Tensor) -> tuple[Tensor, ...]:
        ctx.op = op
        return tuple(grad.view_as(grad) for grad in grads)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise SecondDerivativeError(
            f"{ctx.op}: got a second derivative to compute (a gradient penalty?), expected first "
            "ones alone; the definitions in robustft.backends.reference have others too"
        )
