"""Find configurations for the kernels' table on the card that is there.

    python -m benchmarks tune [--op OP] [--quick] [--seconds S] [--write] [--csv FILE]

For each op, dtype and bucket of widths: the candidates are compiled, in processes, and those that
spill, or take more registers or shared memory than there are, are dropped. The others run once, in
processes too, so that Triton's cache on disk has what the measurement needs; then they take turns
at the op's representative shapes, after each one's result was compared with the reference. The best
geometric mean over the shapes wins, unless the present line is within 3 % of it. --write puts the
winners into kernels/tuned.py, where lines of other cards stay.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import importlib
import itertools
import math
import multiprocessing
import os
import pprint
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import dive, mpm_nce, nearest, rsa, vrf
from benchmarks.card import cubins
from benchmarks.harness import cuda_clock, name_of, relative_error
from robustft import atomic, backends

TUNED = Path(__file__).parents[2] / "kernels" / "tuned.py"
ROUNDS, CALLS = 3, 5
MARGIN = 0.03  # a line is replaced by one that is this much faster
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}

Options = dict[str, Any]
Results = list[torch.Tensor]
Key = tuple[int, str, int]


@dataclass(frozen=True)
class Job:
    """One line of the table: an op for a dtype and bucket, and the shapes that it should serve."""

    op: str
    dtype: torch.dtype
    width: int
    shapes: tuple[tuple[int, ...], ...]

    @property
    def name(self) -> str:
        return f"{self.op} {name_of(self.dtype)} {self.width}"


@dataclass(frozen=True)
class Timing:
    """One candidate at one shape."""

    job: Job
    options: Options
    shape: tuple[int, ...]
    milliseconds: float | None
    dropped: str = ""  # why there is no time


def jobs(quick: bool) -> list[Job]:
    """The most wanted first: the time may end before they do."""
    b16, f16, f32 = torch.bfloat16, torch.float16, torch.float32
    found = [
        Job("mpm_nce", b16, 512, ((8192, 8192), (512, 1000))),
        Job("nearest", f16, 512, ((4096, 100_000), (64, 350_000))),
        Job("dive", b16, 1024, ((65536,), (512,))),
        Job("dive", f32, 512, ((16384,), (512,))),
        Job("vrf", b16, 1024, ((50_000,),)),
        Job("mpm_nce", f32, 512, ((4096, 4096), (512, 1000))),
        Job("rsa", f32, 512, ((8192,),)),
    ]
    if quick:
        return found
    more: list[Job] = [Job("mpm_nce", f16, 512, ((8192, 8192), (512, 1000)))]
    more += [Job("mpm_nce", t, 1024, ((8192, 8192), (512, 1000))) for t in (b16, f16, f32)]
    more += [Job("nearest", f16, 768, ((4096, 100_000),))]
    more += [
        Job("dive", t, width, ((65536 * 512 // width,), (512,)))
        for width in (256, 512, 1024, 2048, 4096)
        for t in (b16, f16, f32)
    ]
    more += [
        Job("vrf", t, width, ((2 * 10**7 // width,),))
        for width in (512, 1024, 2048, 4096, 8192)
        for t in (b16, f16, f32)
    ]
    known = {(job.op, job.dtype, job.width) for job in found}
    return found + [job for job in more if (job.op, job.dtype, job.width) not in known]


def candidates(op: str, width: int, quick: bool) -> list[Options]:
    """All that is tried."""
    from robustft.kernels import configs

    return configs.candidates(op, width, quick)


def fits(options: Options, case: cubins.Case) -> str:
    """ "" if a candidate compiles for the case within the card's resources, or why it does not."""
    try:
        usage = cubins.compiled(case, options)
    except Exception as error:  # the compiler's reasons are many, and one candidate's
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:100]}"
    if usage.looped > 0 or usage.spilled > cubins.COLD:
        return f"{case.kernel} spills {usage.spilled} bytes"
    if usage.shared > cubins.SHARED.get(case.capability, 99 << 10):
        return f"{case.kernel} takes {usage.shared} bytes of shared memory"
    return "" if usage.registers <= 255 else f"{case.kernel} takes {usage.registers} registers"


def fitting(job: Job, wanted: list[Options], capability: int, pool: Any) -> dict[int, str]:
    """Candidate → why it is dropped, or ""; over all kernels that the options are for."""
    cases = [
        cubins.Case(job.op, kernel, job.dtype, job.width, capability)
        for kernel in cubins.kernels(job.op)
    ]
    pairs = [(i, case) for i in range(len(wanted)) for case in cases]
    reasons = pool.map(fits, [wanted[i] for i, _ in pairs], [case for _, case in pairs])
    found = dict.fromkeys(range(len(wanted)), "")
    for (i, _), reason in zip(pairs, reasons, strict=True):
        found[i] = found[i] or reason
    return found


def warmed(job: Job, wanted: list[Options], device: str, pool: Any) -> dict[int, str]:
    """As `fitting`, after a run of each candidate at every shape."""
    pairs = [(i, shape) for i in range(len(wanted)) for shape in job.shapes]
    reasons = pool.map(
        warm, itertools.repeat(job), [wanted[i] for i, _ in pairs],
        [shape for _, shape in pairs], itertools.repeat(device),
    )  # fmt: skip
    found = dict.fromkeys(range(len(wanted)), "")
    for (i, _), reason in zip(pairs, reasons, strict=True):
        found[i] = found[i] or reason
    return found


def warm(job: Job, options: Options, shape: tuple[int, ...], device: str) -> str:
    """Run a candidate once: "", or why it does not."""
    try:
        with using(job.op, options):
            _prepared(job, shape, device)["triton"]()
    except Exception as error:  # one candidate's
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:100]}"
    return ""


@functools.lru_cache(maxsize=2)
def _prepared(job: Job, shape: tuple[int, ...], device: str) -> dict[str, Callable[[], Results]]:
    return calls(job, shape, device)


@contextlib.contextmanager
def using(op: str, options: Options) -> Iterator[None]:
    """The op's kernels take these options, whatever the table says."""
    from robustft.kernels import launch

    module: Any = importlib.import_module(f"robustft.kernels.{op}")
    plain = module.config
    module.config = lambda *_: options
    launch.forget()
    try:
        yield
    finally:
        module.config = plain
        launch.forget()


def calls(
    job: Job, shape: tuple[int, ...], device: str, names: Sequence[str] = ("triton", "reference")
) -> dict[str, Callable[[], Results]]:
    """The op at a shape, by backend."""
    rows, width = shape[0], job.width
    run: Callable[[str], Callable[[], Results]]
    if job.op == "mpm_nce":
        kind = "InfoNCE" if rows == shape[1] else "head"
        pairs = mpm_nce.Batch.of(kind, rows, shape[1], width, job.dtype, device, True)
        run = functools.partial(mpm_nce.ours, pairs, keep_logits=0)
    elif job.op == "dive":
        # Times the rows: float16 gradients stay above its subnormals.
        features = dive.Batch.of(rows, width, job.dtype, device)
        run = functools.partial(dive.ours, features, factor=rows)
    elif job.op == "vrf":
        run = functools.partial(vrf.ours, vrf.Batch.of(rows, width, job.dtype, device, True))
    elif job.op == "nearest":
        data = nearest.Data(shape[1], width, rows, device)
        run = functools.partial(nearest.ours, data, data.queries, max(1, shape[1] // 1000))
    else:
        run = functools.partial(rsa.ours, *rsa.pair(rows, width, job.dtype, device))
    return {name: run(name) for name in names}


def measured(job: Job, wanted: list[Options], device: str, clock: Callable) -> list[Timing]:
    """Candidates that give the reference's results, in turns at every shape."""
    found = []
    for shape in job.shapes:
        call = calls(job, shape, device)
        truth = [x.double() for x in call["reference"]()]
        times: dict[int, list[float]] = {}
        for i, options in enumerate(wanted):
            try:
                with using(job.op, options):
                    error = relative_error(call["triton"](), truth)
            except Exception as problem:  # one candidate's
                why = f"{type(problem).__name__}: {(str(problem).splitlines() or [''])[0][:100]}"
                found.append(Timing(job, options, shape, None, why))
                continue
            if not error <= TOLERANCE[job.dtype]:
                found.append(Timing(job, options, shape, None, f"wrong: error {error:.1e}"))
                continue
            times[i] = []
        for _ in range(ROUNDS):
            for i in times:
                with using(job.op, wanted[i]):
                    call["triton"]()
                    times[i] += [clock(call["triton"]) for _ in range(CALLS)]
        found += [
            Timing(job, wanted[i], shape, 1e3 * statistics.median(taken))
            for i, taken in times.items()
        ]
    return found


def best(timings: list[Timing], shapes: int, present: Options) -> tuple[Options, float] | None:
    """The winner, and the present line's geometric mean over its own (1: it is the present one)."""
    means: list[tuple[Options, float]] = []
    for options, group in itertools.groupby(
        sorted((t for t in timings if t.milliseconds), key=lambda t: repr(t.options)),
        key=lambda t: t.options,
    ):
        times = [t.milliseconds for t in group if t.milliseconds]
        if len(times) == shapes:
            means.append((options, math.exp(sum(map(math.log, times)) / shapes)))
    if not means:
        return None
    winner, least = min(means, key=lambda pair: pair[1])
    now = next((mean for options, mean in means if options == present), None)
    if now is not None and now <= least * (1 + MARGIN):
        return present, 1.0
    return winner, math.inf if now is None else now / least


def merged(
    lines: dict[str, tuple[tuple[Key, Options], ...]], new: dict[tuple[str, Key], Options]
) -> dict[str, tuple[tuple[Key, Options], ...]]:
    """The lines with new ones: the same key is replaced, smaller buckets come first."""
    table = {(op, key): options for op, own in lines.items() for key, options in own}
    table |= new
    return {
        op: tuple((key, table[op, key]) for _, key in sorted(k for k in table if k[0] == op))
        for op in sorted({op for op, _ in table})
    }


def source(lines: dict[str, tuple[tuple[Key, Options], ...]]) -> str:
    """The text of kernels/tuned.py."""
    head, mark, _ = TUNED.read_text(encoding="utf-8").partition("LINES: ")
    kind = "dict[str, tuple[tuple[tuple[int, str, int], dict[str, Any]], ...]]"
    return f"{head}{mark}{kind} = {pprint.pformat(lines, width=96, sort_dicts=False)}\n"


def write_csv(path: Path, timings: list[Timing], card: str) -> None:
    with atomic.replacing(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["card", "op", "dtype", "width", "shape", "options", "ms", "dropped"])
        for t in timings:
            options = " ".join(f"{name}={value}" for name, value in t.options.items())
            shape = "x".join(map(str, t.shape))
            writer.writerow([
                card, t.job.op, name_of(t.job.dtype), t.job.width, shape, options,
                "" if t.milliseconds is None else f"{t.milliseconds:.5f}", t.dropped,
            ])  # fmt: skip


def tune(
    wanted: list[Job], quick: bool, capability: int, device: str, clock: Callable,
    pool: Any, deadline: float, done: Callable[[list[Timing]], None],
) -> dict[tuple[str, Key], Options]:  # fmt: skip
    """The winners that differ from the table; `done` is called with all timings after each job."""
    from robustft.kernels import configs

    timings: list[Timing] = []
    winners: dict[tuple[str, Key], Options] = {}
    for job in wanted:
        if time.monotonic() > deadline:
            print(f"{job.name}: no time left", flush=True)
            continue
        present = configs.choose(job.op, capability, job.dtype, job.width)
        options = candidates(job.op, job.width, quick)
        options = [present, *(o for o in options if o != present)]
        dropped, kept = [], options
        for sieve in (
            functools.partial(fitting, capability=capability),
            functools.partial(warmed, device=device),
        ):
            reasons = sieve(job, kept, pool=pool)
            dropped += [Timing(job, kept[i], (), None, why) for i, why in reasons.items() if why]
            kept = [o for i, o in enumerate(kept) if not reasons[i]]
        print(f"{job.name}: {len(options)} candidates, {len(kept)} fit", flush=True)
        found = measured(job, kept, device, clock)
        timings += dropped + found
        done(timings)
        result = best(found, len(job.shapes), present)
        if result is None:
            print("  nothing ran: " + "; ".join(sorted({t.dropped for t in found})), flush=True)
            continue
        winner, gain = result
        verdict = f"{gain:.2f} × the present" if gain > 1 else "stays"
        print(f"  {winner}  {verdict}", flush=True)
        if winner != present:
            bucket = configs.bucket(job.width)
            winners[job.op, (capability, name_of(job.dtype), bucket)] = winner
    return winners


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--op", choices=backends.OPS)
    parser.add_argument("--quick", action="store_true", help="few jobs and candidates")
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no job after these")
    parser.add_argument("--write", action="store_true", help="write kernels/tuned.py")
    parser.add_argument("--csv", type=Path, help="all timings")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device")
    from robustft.kernels import tuned

    capability = 10 * torch.cuda.get_device_capability()[0] + torch.cuda.get_device_capability()[1]
    card = torch.cuda.get_device_name()
    start = time.monotonic()
    # A process with a CUDA context cannot be forked.
    context = multiprocessing.get_context("spawn")
    workers = min(os.cpu_count() or 1, 12)  # each holds a context on the card
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        winners = tune(
            [job for job in jobs(given.quick) if given.op in (None, job.op)],
            given.quick, capability, "cuda", cuda_clock(), pool, start + given.seconds,
            lambda timings: write_csv(given.csv, timings, card) if given.csv else None,
        )  # fmt: skip
    lines = merged(tuned.LINES, winners)
    print(f"\nLines for kernels/tuned.py, {card}:\n{pprint.pformat(lines, sort_dicts=False)}")
    if given.write and winners:
        atomic.write_text(TUNED, source(lines))
        print(f"written: {TUNED}")
