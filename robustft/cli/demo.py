"""`robustft demo`: the methods on real handwriting, in minutes, on the machine at hand."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from robustft.cli.options import setting
from robustft.errors import InputError


@dataclass(frozen=True)
class DemoOptions:
    """Options of `robustft demo`."""

    out: Path = setting(Path("demo"), "Folder for the report and the results.")
    seeds: int = setting(1, "Repeat with this many seeds; the table then shows mean ± std.")
    epochs: int = setting(10, "Passes over the 1,079 training digits, for every method.")
    batch_size: int = setting(64, "Images a step.")
    lr: list[float] = setting(
        [1e-3, 3e-3, 1e-2, 3e-2, 1e-1], "Learning rates that every method tries."
    )
    methods: list[str] = setting(
        [],
        "Methods to compare, or all; ensembles are built on FT and DiVE "
        "[default: linear-probe, ft, lp-ft, flyp, r-adapter, dive].",
    )
    retrain: bool = setting(False, "Pre-train the tiny CLIP anew first (minutes).")


def demo(options: DemoOptions) -> None:
    """Train and compare methods on handwritten digits; no network, no GPU, minutes."""
    from robustft import demo as experiment
    from robustft.atomic import replacing
    from robustft.evaluate.results import append_result
    from robustft.models import load_clip
    from robustft.report import table, write_report

    if options.seeds < 1:
        raise InputError(f"--seeds: got {options.seeds}, expected at least 1")
    if not options.lr:
        raise InputError("--lr: got none, expected at least one learning rate")
    everything = options.methods == ["all"]
    methods = experiment.every_method() if everything else _chosen(options.methods)
    start = time.perf_counter()
    budget = experiment.Budget(options.epochs, options.batch_size, tuple(sorted(options.lr)))
    weights = "retrained" if options.retrain else "glyphs"
    kept = experiment.Kept(options.out / "unfinished", budget, weights)
    parts = experiment.parts(methods, mixtures=everything)
    total = options.seeds * len(parts)
    records: list[experiment.Record] = []
    try:
        clip = load_clip("robustft-tiny", _retrained(options) if options.retrain else "glyphs")
        for seed in range(options.seeds):
            records.extend(
                experiment.measure(clip, seed, budget, kept, methods, mixtures=everything)
            )
    except KeyboardInterrupt:
        print(
            f"robustft: stopped with {kept.count()} of {total} parts measured, kept in "
            f"{kept.folder}; the same command continues",
            file=sys.stderr,
        )
        raise
    with replacing(options.out / "results.jsonl") as temporary:
        for record in records:
            append_result(temporary, record)
    write_report(records, options.out, title="robustft demo: fine-tuning on handwritten digits")
    kept.drop()
    print(f"\n{table(records)}\n")
    print(f"{time.perf_counter() - start:.0f} s; report: {options.out / 'report.html'}")


def _chosen(names: list[str]) -> tuple[str, ...]:
    """The methods that are named, in that order, or the demo's own."""
    from robustft.demo import TRAINED, every_method

    known = every_method()
    for name in names:
        if name not in known:
            raise InputError(f"--methods: got {name!r}, expected all or some of {', '.join(known)}")
    return tuple(dict.fromkeys(names)) or TRAINED


def _retrained(options: DemoOptions) -> str:
    """The tiny model pre-trained anew; the file of an interrupted demo serves again."""
    from robustft.train.pretrain import pretrain

    path = options.out / "unfinished" / "tiny_glyphs.safetensors"
    final = options.out / "tiny_glyphs.safetensors"
    if not path.is_file():
        pretrain(path)
        shutil.copyfile(path, final)
    return str(path)
