"""Backends and tiles chosen by measurement, on the machine that is there (`robustft tune`).

For an op and dtype, on a device:

1. Tiles. The Triton kernel with each candidate's tiles solves one problem; those whose results are
   not the reference's in float64 are dropped, the others take turns, and the fastest is kept if it
   is MARGIN ahead of the table's own.
2. Backends. All that have proven themselves and the reference take turns at several sizes. `auto`
   then goes by the fastest at each; between two sizes it changes at their geometric mean.

What is found is returned; proof/tuned.py keeps it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import torch

from robustft import backends
from robustft.backends import card, proof
from robustft.backends.proof import problem, tuned, verdicts
from robustft.backends.proof.tuned import Lines, Tuned

ROUNDS = 5
MARGIN = 0.03  # by this much a candidate has to be faster than the table's tiles

Options = dict[str, int]
Report = Callable[[str], None]


def tune(
    op: str,
    dtype: torch.dtype,
    device: torch.device,
    rows: Sequence[int] = (),
    width: int | None = None,
    quick: bool = True,
    say: Report = lambda line: None,
) -> Tuned:
    """What is fastest for an op and dtype. rows: of the batches to measure at, by default the op's;
    width: of a row, likewise. say: gets a line for each step."""
    problems = importlib.import_module(f"robustft.backends.proof.{op}")
    more = {} if width is None else {"width": width}
    sizes = sorted(set(rows or problems.ROWS))
    given = [problems.speed(dtype, count, **more) for count in sizes]
    with problem.undisturbed(device):
        modules = _modules(op, dtype, device, say)
        tiles = {}
        if "triton" in modules:
            tiles = _tiles(op, given[-1], modules, device, quick, say)
        with _taking(op, tiles):
            lines = _lines(given, modules, device, say)
    return Tuned({tuned.name(op, dtype): lines}, tiles)


def _modules(
    op: str, dtype: torch.dtype, device: torch.device, say: Report
) -> dict[str, ModuleType]:
    """Backends that may be taken here, and the reference."""
    found = {}
    names = backends.IMPLEMENTATIONS[op]
    for backend in (name for name in names if backends.serves(op, name, device.type, dtype)):
        if backend in card.KERNELS:
            entry = verdicts.name(op, backend, dtype)
            verdict = verdicts.read(backend, device).get(entry)
            if verdict is None:
                pair = names[backend], names["reference"]
                verdict = proof.prove(op, backend, pair, device, dtype)
                verdicts.write(backend, device, entry, verdict)
            if not verdict.passed:
                say(f"{entry}: {verdict.said()}")
                continue
        found[backend] = importlib.import_module(names[backend])
    return found


def _tiles(
    op: str,
    given: problem.Problem,
    modules: dict[str, ModuleType],
    device: torch.device,
    quick: bool,
    say: Report,
) -> dict[str, Options]:
    """Tiles that are faster than the table's, by what the kernel asks the table for."""
    from robustft.kernels import configs

    module, reference = modules["triton"], modules["reference"]
    truth = problem.truth_of(given, reference)
    inputs = problem.placed(given, device)
    asked = _asked(module, given, inputs)
    if asked is None:
        return {}
    entry, width, present = asked
    right = []
    wanted = [present, *(o for o in configs.candidates(op, width, quick) if o != present)]
    for number, options in enumerate(wanted):
        with _using(module, options):
            wrong = problem.failure(given, module, reference, device, truth)
        if wrong is None:
            right.append(number)
        elif number == 0:
            say(f"{entry}: the table's own tiles fail: {wrong}")
            return {}
    run = functools.partial(given.run, module, inputs)
    times = problem.medians(
        dict.fromkeys(right, run), device, ROUNDS, lambda number: _using(module, wanted[number])
    )
    best = min(times, key=lambda number: times[number])
    gain = times[0] / times[best]
    say(f"{entry}: {len(right)} of {len(wanted)} tiles run, {gain:.2f} × the table's")
    return {entry: wanted[best]} if gain > 1 + MARGIN else {}


def _asked(
    module: ModuleType, given: problem.Problem, inputs: tuple[Any, ...]
) -> tuple[str, int, Options] | None:
    """What the kernel asks the table for in this problem, and what it gets."""
    from robustft.kernels import configs

    seen = []

    def config(kernel: str, device: torch.device, dtype: torch.dtype, width: int) -> Options:
        seen.append((f"{tuned.name(kernel, dtype)} {configs.bucket(width)}", width))
        options: Options = configs.config(kernel, device, dtype, width)
        found.append(options)
        return options

    found: list[Options] = []
    with _instead(module, config):
        given.run(module, inputs)
    return (*seen[0], found[0]) if seen else None


def _lines(
    given: list[problem.Problem],
    modules: dict[str, ModuleType],
    device: torch.device,
    say: Report,
) -> Lines:
    """As AUTO has them, from what is fastest at each size."""
    winners = []
    for each in given:
        inputs = problem.placed(each, device)
        calls = {
            name: functools.partial(each.run, module, inputs) for name, module in modules.items()
        }
        times = problem.medians(calls, device, ROUNDS)
        fastest = min(times, key=lambda name: times[name])
        winners.append((each.inputs[0].numel(), fastest))
        shown = ", ".join(f"{name} {1e3 * taken:.3g} ms" for name, taken in times.items())
        say(f"{each.name}: {shown}")
    return merged(winners)


def merged(winners: list[tuple[int, str]]) -> Lines:
    """Lines from (size, fastest backend), ascending."""
    lines: list[tuple[int | None, str]] = []
    for (size, name), (following, after) in itertools.pairwise(winners):
        if name != after:
            lines.append((math.isqrt(size * following), name))
    return (*lines, (None, winners[-1][1]))


@contextlib.contextmanager
def _instead(module: ModuleType, config: Callable[..., Options]) -> Iterator[None]:
    """The kernels of the module ask `config` in the place of the table."""
    from robustft.kernels import launch

    plain = module.config
    module.config = config  # type: ignore[attr-defined]
    launch.forget()
    try:
        yield
    finally:
        module.config = plain  # type: ignore[attr-defined]
        launch.forget()


def _using(module: ModuleType, options: Options) -> contextlib.AbstractContextManager[None]:
    return _instead(module, lambda *_: options)


def _taking(op: str, tiles: dict[str, Options]) -> contextlib.AbstractContextManager[object]:
    """With the tiles that were found, if any."""
    if not tiles:
        return contextlib.nullcontext()
    module = importlib.import_module(backends.IMPLEMENTATIONS[op]["triton"])
    (options,) = tiles.values()
    return _using(module, options)
