"""`robustft compare`: methods × learning rates × seeds with one budget, and their ensembles."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import typer

from robustft.cli import mixtures, runs, training
from robustft.cli.comparison import Experiment
from robustft.cli.kept import Kept, Part
from robustft.cli.options import setting
from robustft.errors import InputError
from robustft.methods import METHODS
from robustft.train import checks, processes
from robustft.train.lock import one_writer

_ALPHAS = [round(0.1 * i, 1) for i in range(11)]


@dataclass(frozen=True)
class CompareOptions(runs.TrainOptions):
    """Options of `robustft compare`: what it compares, and train's for all of its runs."""

    WITHOUT: ClassVar[tuple[str, ...]] = (
        *("method", "lr", "seed", "logs", "name", "resume", "results_db", "recipe", "dry_run"),
    )

    methods: list[str] = setting([], "Methods to compare, or all; commas separate them.")
    lr_grid: list[float] = setting([], "Learning rates that every method tries.")
    lr_factors: list[float] = setting(
        [],
        "Instead: multiples of each method's published rate that it tries [default: 0.3 1 3].",
    )
    seeds: int = setting(1, "Repeat with this many seeds; the table then shows mean ± std.")
    ensembles: list[str] = setting(
        [],
        f"Ensembles, as NAME for all methods that it suits or METHOD.NAME for one; all, or none. "
        f"Names: {', '.join(mixtures.NAMES)} "
        f"[default: {', '.join(mixtures.DEFAULT)} where a method names them].",
    )
    alpha: list[float] = setting(_ALPHAS, "Weights of the fine-tuned model that ensembles try.")
    keep_models: bool = setting(
        False, "Keep the weights of every run, and not of the chosen rate's alone."
    )
    out: Path = setting(Path("comparison"), "Folder of the runs, the results and the report.")
    option: list[str] = setting(
        [],
        "A setting of one method, as METHOD.KEY=VALUE, or of all, as KEY=VALUE.",
        commas=False,
    )
    epochs: int = setting(10, "Passes over the training data, for every method.")
    batch_size: int = setting(512, "Images a step, for every method.")

    @staticmethod
    def read_from(config: Path) -> dict[str, Any]:
        """A comparison's own file means its folder, wherever it was moved since."""
        folder = config.absolute().parent
        return {"out": folder} if config.name == runs.CONFIG and Kept(folder).began() else {}

    def rates(self, method: str) -> list[float]:
        """The learning rates of a method, ascending; none for one that trains nothing."""
        published = METHODS[method].published
        if not published.epochs:
            return []
        factors = self.lr_factors or [0.3, 1.0, 3.0]
        # 0.3 · 3e-5 is 9e-06, and not 8.999999999999999e-06.
        given = self.lr_grid or [float(f"{x * published.lr:.6g}") for x in factors]
        return given

    def of_run(self, method: str, lr: float, seed: int, folder: Path) -> runs.TrainOptions:
        """The options of one training run."""
        names = {field.name for field in dataclasses.fields(runs.TrainOptions)}
        values = {name: getattr(self, name) for name in names} | {
            "method": method,
            "option": [pair for name, pair in self._options() if name in (None, method)],
            "lr": lr,
            "seed": seed,
            "logs": folder.parent,
            "name": folder.name,
        }
        return runs.settled(runs.TrainOptions(**values))

    def settled(self) -> CompareOptions:
        """With absolute paths, so that the comparison goes on from any folder, and numbers that are
        tried ascending."""
        pairs = []
        for name, pair in self._options():
            for method in [name] if name is not None else METHODS:
                pair = training.option_at(method, pair)
            pairs.append(pair if name is None else f"{name}.{pair}")
        found = training.located(dataclasses.replace(self, option=pairs))
        assert isinstance(found, CompareOptions)
        return dataclasses.replace(
            found,
            out=self.out.absolute(),
            lr_grid=sorted(set(self.lr_grid)),
            lr_factors=sorted(set(self.lr_factors)),
            alpha=sorted(set(self.alpha)),
        )

    def _options(self) -> list[tuple[str | None, str]]:
        """(method or None for all, KEY=VALUE) of each setting."""
        found: list[tuple[str | None, str]] = []
        for text in self.option:
            key, equals, value = text.partition("=")
            method, dot, own = key.rpartition(".")
            if dot and method not in METHODS:
                raise InputError(
                    f"--option: got {text!r}, expected METHOD.KEY=VALUE of one of "
                    f"{', '.join(METHODS)}"
                )
            found.append((method if dot else None, f"{own}{equals}{value}"))
        return found


def compare(options: CompareOptions) -> None:
    """Compare methods: every one with the same data, model and budget, the learning rate chosen on
    ID validation. What was interrupted goes on when the same command is given again."""
    carry_out(options, title="robustft compare: fine-tuning methods on one budget")


def carry_out(options: CompareOptions, *, title: str) -> None:
    """Run a comparison to its end and write its results and report. Errors: InputError before work
    starts; typer.Exit with 128 plus the number of the signal that stopped it."""
    start = time.perf_counter()
    if processes.world() > 1:
        raise InputError(
            f"compare: got {processes.world()} processes, expected one; start it without torchrun "
            "(robustft train runs on several)"
        )
    methods = _methods(options)
    options = dataclasses.replace(options.settled(), methods=methods)
    chosen = mixtures.chosen(options.ensembles, methods)
    device = runs.choose_device(options.device)
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
            for seed in range(options.seeds):
                experiment = Experiment(options, seed, kept, device)
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
            raise typer.Exit(code if isinstance(code, int) else 1) from None
    print(f"{time.perf_counter() - start:.0f} s; report: {options.out / 'report.html'}")


def _report(records: list[dict[str, Any]], folder: Path, title: str) -> None:
    from robustft.atomic import replacing
    from robustft.evaluate.results import append_result
    from robustft.report import table, write_report

    with replacing(folder / runs.RESULTS) as temporary:
        for record in records:
            append_result(temporary, record)
    write_report(records, folder, title=title)
    print(f"\n{table(records)}\n")


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
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)}
    before = {n: handler for n, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
