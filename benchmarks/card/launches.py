"""What a call of an op costs the host: launches, allocations and microseconds.

    python -m benchmarks launches

With a CUDA device everything is launched and torch's profiler counts the kernels. Without one,
Triton's driver is replaced by one whose launches do nothing: the kernels are compiled (for sm_90),
every step of the host up to the driver's call is taken, torch's own operations run on CPU tensors
and are counted; for the time of the host mpm_nce's library products are left out. A bare launch,
of an empty kernel with one argument, stands beside both.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import dive as dive_benchmark
from benchmarks import mpm_nce as mpm_nce_benchmark
from benchmarks import vrf as vrf_benchmark
from robustft import backends
from robustft.ops import _checks, dive_loss, mpm_nce

CALLS, ROUNDS = 50, 30
_EMPTY = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")
# Operations that make the host wait for the device.
_WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique")


@dataclass
class Counts:
    """Of one call: kernels by name, allocations, and what waited for the device."""

    kernels: list[str] = field(default_factory=list)
    allocations: int = 0
    waits: list[str] = field(default_factory=list)
    counting: bool = False
    launched: list[tuple[Any, ...]] | None = None  # what the driver was given, if asked for


class _Torch(TorchDispatchMode):
    """Counts torch's operations: each that neither views nor allocates is taken for a kernel."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        views = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        if name in _WAITS:
            self.counts.waits.append(name)
        if name in _EMPTY:
            self.counts.allocations += 1
        found = func(*args, **(kwargs or {}))
        made = isinstance(found, Tensor | tuple | list)
        if made and not views and name not in _EMPTY and func.namespace != "robustft":
            self.counts.kernels.append(name)
        return found


class _Driver:
    """A driver of Triton's with a device that is not there."""

    counts = Counts()  # the class's: kernels that were compiled before keep their launchers

    def __init__(self, counts: Counts) -> None:
        self.utils = SimpleNamespace(
            load_binary=lambda *_: (1, 1, 0, 0, 1024),
            get_device_properties=lambda _: {"max_shared_mem": 227 << 10},
        )
        _Driver.counts = counts

    def launcher_cls(self, src: Any, metadata: Any) -> Callable[..., None]:
        def launch(*given: Any) -> None:
            _Driver.counts.kernels.append(metadata.name)
            if _Driver.counts.launched is not None:
                _Driver.counts.launched.append(given)

        return launch

    def get_current_device(self) -> int:
        return -1  # Triton keeps compiled kernels by device: no real one is touched

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextlib.contextmanager
def pretending() -> Iterator[Counts]:
    """Triton kernels serve CPU tensors and do nothing; what is launched and allocated is counted.

    Only launches through kernels/launch.py and Triton's own dispatch are known to it.
    """
    from triton.runtime import driver

    from robustft.kernels import configs, dive, launch, nearest, vrf
    from robustft.kernels import mpm_nce as mpm_nce_kernels

    counts = Counts()
    modules = (dive, mpm_nce_kernels, nearest, vrf)
    plain = backends.load, driver._active, [module.config for module in modules]
    may_look = _checks.may_look

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            # A dispatch mode is off inside an op.
            with _Torch(counts) if counts.counting else contextlib.nullcontext():
                return function(*args)

        return call

    @functools.cache
    def load(op: str, device: str, dtype: torch.dtype, requested: str, _size: int = 0) -> Any:
        module = {"dive": dive, "mpm_nce": mpm_nce_kernels, "vrf": vrf}[op]
        if requested != "triton":
            module = plain[0](op, device, dtype, requested)
        return SimpleNamespace(
            forward=counted(module.forward),
            backward=counted(module.backward),
            saved_shapes=getattr(module, "saved_shapes", None),
        )

    @functools.cache
    def config(kernel: str, _: torch.device, dtype: torch.dtype, width: int) -> dict[str, Any]:
        return configs.choose(kernel, 90, dtype, width)

    try:
        launch.forget()
        driver._active, backends.load = _Driver(counts), load
        _checks.may_look = lambda tensor: False  # as on a card
        for module in modules:
            module.config = config
        yield counts
    finally:
        backends.load, driver._active = plain[0], plain[1]
        _checks.may_look = may_look
        for module, own in zip(modules, plain[2], strict=True):
            module.config = own
        launch.forget()


def count(call: Callable[[], object], counts: Counts) -> Counts:
    """What one call does, under `pretending`, after one to warm up."""
    call()
    for kept in (counts.kernels, counts.waits):
        kept.clear()
    counts.allocations, counts.counting = 0, True
    try:
        with _Torch(counts):
            call()
    finally:
        counts.counting = False
    return Counts(list(counts.kernels), counts.allocations, list(counts.waits))


Step = tuple[str, str, str, Callable[[], object]]  # op, pass, provider


def steps(device: str, dtype: torch.dtype = torch.float32) -> Iterator[Step]:
    """Small losses, as they are called: forward alone, and forward with backward."""

    def both(op: str, provider: str, leaves: list[Tensor], loss: Callable[[], Any]) -> Any:
        def forward() -> object:
            with torch.no_grad():
                return loss()

        def backward() -> object:
            return torch.autograd.grad(loss(), leaves)

        yield op, "forward", provider, forward
        yield op, "forward+backward", provider, backward

    features = dive_benchmark.Batch.of(512, 512, dtype, device)
    providers = {"torch eager": "reference", "robustft triton": "triton"}
    for provider, backend in providers.items():

        def loss(backend: str = backend, x: Any = features) -> Tensor:
            return dive_loss(x.f, x.f0, x.g, x.g0, x.mean, backend=backend)[0]

        yield from both("dive 512x512", provider, [features.f, features.g], loss)
    for shape in ((512, 512, 512), (512, 1000, 512)):
        kind = "InfoNCE" if shape[0] == shape[1] else "head"
        batch = mpm_nce_benchmark.Batch.of(kind, *shape, dtype, device, True)
        eager = mpm_nce_benchmark.EAGER[kind](batch)
        leaves = [batch.x, batch.y, batch.scale]
        labels = batch.labels or (None, None)
        options = {"symmetric": kind == "InfoNCE", "backend": "triton"}
        name = "mpm_nce " + "x".join(map(str, shape))

        def ours(batch: Any = batch, labels: Any = labels, options: Any = options) -> Tensor:
            return mpm_nce(batch.x, batch.y, *labels, logit_scale=batch.scale, **options)

        plain = functools.partial(eager, batch.x, batch.y, batch.scale)
        yield from both(name, "torch eager", leaves, plain)
        yield from both(name, "robustft triton", leaves, ours)
    logits = [vrf_benchmark.Batch.of(512, 1000, dtype, device, way) for way in (False, True)]
    for provider, backend in providers.items():
        for mode, given in zip(("forward", "forward+backward"), logits, strict=True):
            yield "vrf 512x1000", mode, provider, vrf_benchmark.ours(given, backend)


def microseconds(call: Callable[[], object], device: str) -> float:
    """The host's least time for a call, no collection of garbage within: what else the machine does
    only adds to it. The device is left behind by at most CALLS of them."""
    call()
    times = []
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(ROUNDS):
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            times.append((time.perf_counter() - start) / CALLS)
    finally:
        if collecting:
            gc.enable()
    return 1e6 * min(times)


def profiled(call: Callable[[], object]) -> int:
    """The kernels and copies that a call runs on the card."""
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    kinds = torch.autograd.DeviceType.CUDA
    return sum(event.device_type == kinds for event in profile.events())


def bare(device: str) -> float:
    """Microseconds of the host for an empty kernel of one argument, launched by Triton itself."""
    import triton

    @triton.jit
    def nothing(x):  # type: ignore[no-untyped-def]  # Triton would look the types up
        pass

    x = torch.ones((), device=device)
    return microseconds(lambda: nothing[(1,)](x), device)


@contextlib.contextmanager
def without_products() -> Iterator[None]:
    """mpm_nce's gradients have their memory, and nothing multiplies: on a CPU a library product
    takes milliseconds. (On a card it takes the host some microseconds more.)"""
    from robustft.kernels import mpm_nce as kernels

    plain = kernels.product
    kernels.product = lambda a, b: a.new_empty((len(a), b.shape[1]), dtype=torch.float32)
    try:
        yield
    finally:
        kernels.product = plain


def table(device: str) -> list[str]:
    lines = [f"{'op':22}{'pass':18}{'provider':18}{'launches':>9}{'allocations':>13}{'host µs':>9}"]
    with contextlib.ExitStack() as stack:
        counts = stack.enter_context(pretending()) if device == "cpu" else None
        empty = bare(device)
        for op, mode, provider, call in steps(device):
            if counts is None:
                launches, allocated = profiled(call), "–"
                host: float | None = microseconds(call, device)
            else:
                found = count(call, counts)
                launches, allocated = len(found.kernels), str(found.allocations)
                # Without a card eager operations compute: their time is not the host's alone.
                with without_products():
                    host = microseconds(call, device) if "triton" in provider else None
            text = "–" if host is None else f"{host:.1f}"
            lines.append(f"{op:22}{mode:18}{provider:18}{launches:9}{allocated:>13}{text:>9}")
        lines.append(f"{'a bare launch':58}{1:9}{'–':>13}{empty:9.1f}")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks launches", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"])
    device = parser.parse_args(arguments).device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        torch.set_num_threads(1)
    print("\n".join(table(device)))
