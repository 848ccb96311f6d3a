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

_LIBRARY = torch.library.Library("robustft", "DEF")


def register(op: str, function: str, signature: str, fake: Callable[..., Any]) -> Any:
    """Register `robustft::<op>_<function>` and return it.

    op: name in backends.IMPLEMENTATIONS; function: the function of the backend's module to call.
    signature: the schema's arguments and results; its last argument must be `str backend` and its
    first a Tensor, whose device and dtype choose the module. The body runs with autocast off: the
    kernels fix their own precisions, so an op takes the dtypes it is given under autocast too.
    """
    name = f"{op}_{function}"

    def body(*args: Any) -> Any:
        *inputs, backend = args
        device = inputs[0].device.type
        module = backends.load(op, device, inputs[0].dtype, backend, inputs[0].numel())
        with _on(inputs[0].device), _autocast_off(device):
            return getattr(module, function)(*inputs)

    _LIBRARY.define(name + signature, tags=torch.Tag.pt2_compliant_tag)
    _LIBRARY.impl(name, body, "CompositeExplicitAutograd")
    torch.library.register_fake(f"robustft::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.robustft, name).default


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Launches go to torch's current device: make it that of the tensors."""
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        return torch.cuda.device(device)
    return contextlib.nullcontext()


def _autocast_off(device: str) -> contextlib.AbstractContextManager[Any]:
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()
