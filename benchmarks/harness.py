"""Timing that can be compared: providers take turns, with the machine's own rate beside them.

A case is one op at one shape. Its time is spread over ROUNDS rounds; in each, the probes and then
the providers take turns until everyone has had its share, so that medians and spreads are of the
same minutes. Interleaving single calls would not do: another library's threads spin for some
milliseconds after its call and take the next one's cores. So a turn lasts TURN seconds, or a call.
"""

from __future__ import annotations

import gc
import os
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from benchmarks import memory
from benchmarks.machine import Machine
from robustft import backends
from robustft.errors import InputError

Call = Callable[[], object]
Function = TypeVar("Function", bound=Callable[..., object])
Factory = Callable[[], Call]  # prepares a provider, outside the time, and may fail with a reason

ROUNDS = 3
TURN = 0.02  # seconds
L2_FLUSH = 256 << 20  # bytes: five times the last cache of an H100 or H200


@dataclass(frozen=True)
class Probe:
    """What the machine can do: a call, and the bytes or operations of it."""

    call: Call
    amount: float


@dataclass(frozen=True)
class Case:
    """One op at one shape: who is timed, beside which probes, against which truth."""

    op: str
    mode: str  # forward, forward+backward, search, pack
    shape: str
    dtype: str
    amount: float  # the least bytes to move, or the operations of the products
    unit: str  # GB/s or GFLOP/s
    probes: dict[str, Probe]  # the first is the floor
    providers: dict[str, Factory]  # a call returns the list of results, tensors
    truth: Callable[[], list[Tensor]] | None = None  # in float64
    compared: Callable[[list[Tensor]], list[Tensor]] = lambda results: results
    checks: dict[str, Factory] = field(default_factory=dict)  # compared instead, where too big
    error_on: str = "all"  # what of the results is compared
    tolerance: float | None = None  # a larger error is a wrong answer, and is not timed
    step: float | None = None  # the amount that `times_unit` counts; else `amount`
    timed: bool = True  # else memory alone
    variant: str = ""


@dataclass(frozen=True)
class Row:
    """One provider or probe of a case, as measured; None where nothing was."""

    op: str
    variant: str
    mode: str
    shape: str
    dtype: str
    provider: str
    kind: str  # robustft, peer or floor
    p20_ms: float | None = None
    p50_ms: float | None = None
    p80_ms: float | None = None
    runs: int = 0
    rate: float | None = None
    unit: str = ""
    floor: str = ""  # the probe that of_floor and times_unit refer to
    of_floor: float | None = None  # rate over the probe's rate
    times_unit: float | None = None  # time over that of one unit of work at the probe's rate
    extra_mb: float | None = None  # peak memory of one call beyond what was there, with results
    largest_error: float | None = None  # relative to the largest float64 entry, over all results
    error_on: str = ""
    skipped: str = ""  # why nothing was measured
    load_before: float = 0.0  # load average of the last minute
    others_cores: float | None = None  # cores that other processes kept busy meanwhile
    threads: int = 0
    device: str = ""
    isa: str = ""
    processor: str = ""
    versions: str = ""
    commit: str = ""
    when: str = ""


@dataclass(frozen=True)
class Options:
    """How much is measured: `seconds` a provider and case; a call above `limit` is skipped."""

    device: str = "cpu"
    seconds: float = 1.5
    limit: float = 30.0
    only: tuple[str, ...] = ()  # parts of the names of providers; none means all


def measure(case: Case, options: Options, machine: Machine) -> list[Row]:
    """The rows of a case: its probes, then its providers in their order."""
    load = os.getloadavg()[0]
    truth = [x.double() for x in case.truth()] if case.truth else None
    calls: dict[str, Call] = {}
    known: dict[str, dict[str, Any]] = {}
    for name, factory in case.providers.items():
        if options.only and not any(part in name for part in options.only):
            continue
        known[name] = {}
        try:
            calls[name] = _prepare(case, name, factory, truth, options, known[name])
        except _Skip as reason:
            known[name]["skipped"] = str(reason)
    floors = {name: probe.call for name, probe in case.probes.items()}
    times: dict[str, list[float]] = {name: [] for name in (*floors, *calls)}
    busy = None
    if case.timed and calls:
        clock = _clock(options.device)
        for call in floors.values():
            call()
        others = machine.others()  # not before: torch.compile's workers are processes of their own
        for _ in range(ROUNDS):
            _take_turns(floors, times, options.seconds / ROUNDS, clock)
            _take_turns(calls, times, options.seconds / ROUNDS, clock)
        busy = others()

    rows = []
    floor = next(iter(floors))
    amounts = {name: probe.amount for name, probe in case.probes.items()}
    floor_rate = amounts[floor] / statistics.median(times[floor]) if times[floor] else None
    for name in (*(floors if floor_rate else ()), *known):
        found = dict(known.get(name, {}))
        if times.get(name):
            amount, step = case.amount, case.step or case.amount
            if name in amounts:
                amount = step = amounts[name]
            found |= _figures(times[name], amount, step, floor_rate)
        kind = "floor" if name in floors else "robustft" if "robustft" in name else "peer"
        rows.append(
            Row(
                op=case.op,
                variant=case.variant,
                mode=case.mode,
                shape=case.shape,
                dtype=case.dtype,
                provider=name,
                kind=kind,
                unit=case.unit,
                floor=floor,
                load_before=round(load, 2),
                others_cores=busy,
                **dict[str, Any](machine.columns()),
                **found,
            )
        )
    return rows


def robustft(
    op: str, device: str, dtype: torch.dtype, make: Callable[[str], Call]
) -> dict[str, Factory]:
    """Providers "robustft cpu", … for the backends of a device: make(backend) gives the call."""

    def factory(backend: str) -> Factory:
        def prepare() -> Call:
            backends.load(op, device, dtype, backend)
            return make(backend)

        return prepare

    names = ("reference", "cpu") if device == "cpu" else ("reference", "triton", "cuda")
    return {f"robustft {name}": factory(name) for name in names}


def compiled(function: Function) -> Function:
    """torch.compile for one case; what was compiled before is forgotten, or it would count as
    recompilations, and after eight of them torch runs eager code under the name of compiled."""
    torch._dynamo.reset()
    made: Any = torch.compile(function, dynamic=False)
    return made


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def relative_error(results: list[Tensor], truth: list[Tensor]) -> float:
    """The largest error over all results, each relative to the largest entry of its truth."""
    worst = 0.0
    for a, b in zip(results, truth, strict=True):
        if a.shape != b.shape:
            raise ValueError(f"got a result of shape {tuple(a.shape)}, expected {tuple(b.shape)}")
        error = (a.to(b.device).double() - b).abs().max() / b.abs().max().clamp_min(1e-300)
        worst = max(worst, float("inf") if error.isnan() else float(error))
    return worst


class _Skip(Exception):
    """A provider is not timed; the message says why."""


def _prepare(
    case: Case,
    name: str,
    factory: Factory,
    truth: list[Tensor] | None,
    options: Options,
    found: dict[str, Any],
) -> Call:
    """Build a provider and call it: its error, then its memory, go into `found`."""
    try:
        call = factory()
        checked = case.checks[name]() if name in case.checks else call
        results = checked()
        if truth is not None:
            error = relative_error(case.compared(results), truth)  # type: ignore[arg-type]
            found |= {"largest_error": float(f"{error:.2g}"), "error_on": case.error_on}
            if case.tolerance is not None and error > case.tolerance:
                raise _Skip(f"wrong: error {error:.1e}, allowed {case.tolerance:.0e}")
        del results
        if checked is not call:
            call()
        gc.collect()
        start = time.perf_counter()
        found["extra_mb"] = memory.of_call(call, options.device)
        seconds = time.perf_counter() - start
    except (ImportError, InputError) as reason:
        raise _Skip(str(reason)) from reason
    except _Skip:
        raise
    except Exception as error:  # a peer that fails here must not end the run
        first = (str(error).splitlines() or [""])[0]
        raise _Skip(f"{type(error).__name__}: {first[:200]}") from error
    if seconds > options.limit:
        raise _Skip(f"one call took {seconds:.0f} s, the limit is {options.limit:.0f} s")
    return call


def _take_turns(
    calls: dict[str, Call], times: dict[str, list[float]], share: float, clock: Callable
) -> None:
    """Turns of TURN seconds or one call, until everyone has had `share` seconds in this round."""
    spent = dict.fromkeys(calls, 0.0)
    while waiting := [name for name in calls if spent[name] < share]:
        for name in waiting:
            turn = 0.0
            while turn < min(TURN, share):
                taken = clock(calls[name])
                times[name].append(taken)
                turn += taken
            spent[name] += turn


def _clock(device: str) -> Callable[[Call], float]:
    """A function that returns the seconds which a call takes."""
    return cuda_clock() if device == "cuda" else _host_clock


def _host_clock(call: Call) -> float:
    start = time.perf_counter()
    result = call()
    taken = time.perf_counter() - start
    del result  # freeing it is not the call's time
    return taken


def flush(device: str, size: int = L2_FLUSH) -> Call:
    """A call that empties the second-level cache. It reads: what it wrote would be written back
    while the next call is timed."""
    cold = torch.zeros(size // 4, device=device)
    return lambda: cold.sum()


def cuda_clock() -> Callable[[Call], float]:
    flushing = flush("cuda")

    def clock(call: Call) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flushing()  # which also covers the time that the host needs to launch
        start.record()
        result = call()
        end.record()
        end.synchronize()
        del result
        return start.elapsed_time(end) / 1e3

    return clock


def _figures(
    times: list[float], amount: float, step: float, floor_rate: float | None
) -> dict[str, Any]:
    p20, p50, p80 = (statistics.quantiles(times, n=10, method="inclusive")[i] for i in (1, 4, 7))
    rate = amount / p50
    return {
        **{f"p{p}_ms": float(f"{1e3 * t:.4g}") for p, t in ((20, p20), (50, p50), (80, p80))},
        "runs": len(times),
        "rate": float(f"{rate / 1e9:.4g}"),
        "of_floor": float(f"{rate / floor_rate:.3g}") if floor_rate else None,
        "times_unit": float(f"{p50 * floor_rate / step:.4g}") if floor_rate else None,
    }


def shape_of(text: str) -> tuple[int, ...]:
    """ "4096x768" → (4096, 768)."""
    if not re.fullmatch(r"\d+(x\d+)*", text):
        raise ValueError(f"shape: got {text!r}, expected numbers joined by x")
    return tuple(int(part) for part in text.split("x"))
