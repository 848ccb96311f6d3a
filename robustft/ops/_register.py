"""Registration with torch.library: one schema, one fake, and a body that calls the backend.

`Library.define` with an autograd.Function outside costs a few microseconds a call less than
`torch.library.custom_op`, which matters at fine-tuning sizes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from robustft import backends
from robustft.backends import options
from robustft.backends.tensors import on_device

_LIBRARY = torch.library.Library("robustft", "DEF")


def register(
    op: str,
    function: str,
    arguments: tuple[options.Argument, ...],
    results: str,
    fake: Callable[..., Any],
) -> Any:
    """Register `robustft::<op>_<function>`; returns a call of it.

    op: name in backends.IMPLEMENTATIONS; function: the function of the backend's module to call.
    arguments, results: of the function, as a schema writes them or as objects of backends.options,
    which the registered op takes field by field; the first is a Tensor, whose device and dtype
    choose the module. The op's last argument is `str backend`. fake gets what the function gets,
    and the backend. The body runs with autocast off: the
    kernels fix their own precisions, so an op takes the dtypes it is given under autocast too.
    On plain tensors of a CPU or a CUDA device that nobody traces or records, the call is the
    body's: the dispatcher's way costs 4 to 6 µs, a third of what a small loss takes.
    """
    name = f"{op}_{function}"
    gather = options.Gather(arguments)

    def body(*args: Any) -> Any:
        first, device = args[0], args[0].device.type
        module = backends.load(op, device, first.dtype, args[-1], first.numel())
        call = getattr(module, function)
        if first.is_cpu and not torch.is_autocast_enabled("cpu"):
            return call(*gather(args))
        with on_device(first.device), _autocast_off(device):
            return call(*gather(args))

    def gathered_fake(*args: Any) -> Any:
        return fake(*gather(args), args[-1])

    schema = f"{name}({options.schema(arguments)}, str backend) -> {results}"
    _LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
    _LIBRARY.impl(name, body, "CompositeExplicitAutograd")
    torch.library.register_fake(f"robustft::{name}", gathered_fake, lib=_LIBRARY)
    dispatched = getattr(torch.ops.robustft, name).default

    def call(*args: Any) -> Any:
        first = args[0]
        if type(first) in _PLAIN and (first.is_cpu or first.is_cuda) and not observed():
            return body(*args)
        return dispatched(*args)

    return call


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def observed() -> bool:
    """Whether something beside the kernels must see a call: a compiler, a tracer, a mode, a
    transform, a profiler."""
    return (
        torch.compiler.is_compiling()
        or _modes() > 0
        or _transforms()
        or _tracing() is not None
        or _profiling()
    )


# torch's own functions ask these, too (autograd.Function.apply, torch.jit, torch.overrides).
_modes = torch._C._len_torch_dispatch_stack
_transforms = torch._C._are_functorch_transforms_active
_tracing = torch._C._get_tracing_state
_profiling = torch.autograd._profiler_enabled


def _autocast_off(device: str) -> contextlib.AbstractContextManager[Any]:
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()
