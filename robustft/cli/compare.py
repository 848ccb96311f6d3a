"""`robustft compare`: methods × learning rates × seeds with one budget, and their ensembles."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from robustft import progress
from robustft.cli import materials, mixtures, protocols, training
from robustft.cli.compare_options import CompareOptions
from robustft.cli.comparison import Experiment, runs_of
from robustft.cli.ending import command, end
from robustft.cli.kept import Kept, Part
from robustft.cli.run_folder import RESULTS
from robustft.errors import InputError
from robustft.methods import METHODS
from robustft.train import checks, processes
from robustft.train.interrupt import SIGNALS
from robustft.train.lock import one_writer


def compare(options: CompareOptions) -> None:
    """Carry out `robustft compare`."""
    if options.protocol is not None:
        protocols.run(options, carry_out)
        return
    carry_out(options, title="robustft compare: fine-tuning methods on one budget")


def carry_out(options: CompareOptions, *, title: str, next: Sequence[str] = ()) -> None:
    """Run a comparison to its end and write its results and report.

    next: what to do then, where it is not to export the model that is best on ID validation.
    Errors: InputError before work starts; SystemExit with 128 plus the number of the signal that
    stopped it."""
    start = time.perf_counter()
    if processes.world() > 1:
        raise InputError(
            f"compare: got {processes.world()} processes, expected one; start it without torchrun "
            "(robustft train runs on several)"
        )
    methods = _methods(options)
    options = dataclasses.replace(options.settled(), methods=methods)
    chosen = mixtures.chosen(options.ensembles, methods)
    device = materials.choose_device(options.device)
    _check(options, methods, device)
    kept = Kept(options.out)
    parts = [
        Part(seed, method, ensemble)
        for seed in range(options.seeds)
        for method in ("zero-shot", *methods)
        for ensemble in (None, *chosen.get(method, ()))
    ]
    with one_writer(options.out), _ended_by_signals():
        kept.begin(options)
        try:
            records = []
            with _bar(options, kept, parts) as bar:
                for seed in range(options.seeds):
                    experiment = Experiment(options, seed, kept, device, bar)
                    records += experiment.records([part for part in parts if part.seed == seed])
            _report(records, options.out, title)
        except (KeyboardInterrupt, SystemExit) as stop:
            done = sum(kept.records(part) is not None for part in parts)
            step = getattr(stop, "step", None)
            within = "" if step is None else f", and a run at step {step} saved"
            print(
                f"robustft: stopped with {done} of {len(parts)} parts measured{within}, kept in "
                f"{options.out}; the same command continues",
                file=sys.stderr,
            )
            code = stop.code if isinstance(stop, SystemExit) else getattr(stop, "status", 130)
            raise SystemExit(code if isinstance(code, int) else 1) from None
    print(f"{time.perf_counter() - start:.0f} s")
    steps = next or _export(records, kept)
    end(options.out / "report.html", options.out / RESULTS, next=steps)


def _export(records: list[dict[str, Any]], kept: Kept) -> list[str]:
    """The command for the chosen run that is best on ID validation."""
    chosen = [x for x in records if x["role"] == "validation" and x["selected"]]
    if not chosen:
        return []
    best = max(chosen, key=lambda x: float(x[f"{x['dataset']}:top1"]))
    run = kept.run(best["method"], best["lr"], best["seed"])
    return [command("export", "--run", run, "--out", f"{best['method']}.safetensors")]


def _bar(options: CompareOptions, kept: Kept, parts: list[Part]) -> Any:
    """Of training runs, and of what trains nothing."""
    sizes = [max(1, runs_of(options, part)) for part in parts]
    done = [n for n, part in zip(sizes, parts, strict=True) if kept.records(part) is not None]
    return progress.bar("compare", sum(sizes), "part", done=sum(done))


def _report(records: list[dict[str, Any]], folder: Path, title: str) -> None:
    from robustft.atomic import replacing
    from robustft.evaluate.results import append_result
    from robustft.report import table, write_report

    with replacing(folder / RESULTS) as temporary:
        for record in records:
            append_result(temporary, record)
    write_report(records, folder, title=title)
    print(f"\n{table(records)}")


def _methods(options: CompareOptions) -> list[str]:
    """The methods that are named, each once and in that order; the zero-shot model is there in any
    case."""
    known = [name for name, method in METHODS.items() if method.published.epochs]
    for name in options.methods:
        if name not in (*known, "all", "zero-shot"):
            raise InputError(f"--methods: got {name!r}, expected all or some of {', '.join(known)}")
    found = known if "all" in options.methods else list(dict.fromkeys(options.methods))
    found = [name for name in found if name != "zero-shot"]
    if not found:
        raise InputError(f"--methods: got none, expected all or some of {', '.join(known)}")
    return found


def _check(options: CompareOptions, methods: list[str], device: str) -> None:
    """InputError for settings that some run would refuse."""
    if options.seeds < 1:
        raise InputError(f"--seeds: got {options.seeds}, expected at least 1")
    if options.lr_grid and options.lr_factors:
        raise InputError("--lr-factors: got it beside --lr-grid, expected one of them")
    for name, values in (("--lr-grid", options.lr_grid), ("--lr-factors", options.lr_factors)):
        for value in values:
            checks.real(name, value, above=0)
    for value in options.alpha:
        checks.real("--alpha", value, least=0, most=1)
    for method in methods:
        for lr in options.rates(method):
            training.check(options.of_run(method, lr, 0, options.out), device)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP, too, end the block by an exception, so that it is left in order."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {n: signal.getsignal(n) for n in SIGNALS if n != signal.SIGINT}
    before = {n: handler for n, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
