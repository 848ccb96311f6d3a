"""The options of `robustft demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from robustft.cli.options import setting

_METHODS = ("linear-probe", "ft", "lp-ft", "flyp", "r-adapter", "dive")


@dataclass(frozen=True)
class DemoOptions:
    """Train and compare methods on handwritten digits; no network, no GPU, minutes."""

    out: Path = setting(Path("demo"), "Folder for the report and the results.")
    seeds: int = setting(1, "Repeat with this many seeds; the table then shows mean ± std.")
    epochs: int = setting(10, "Passes over the 1,079 training digits, for every method.")
    batch_size: int = setting(64, "Images a step.")
    lr_grid: list[float] = setting(
        [1e-3, 3e-3, 1e-2, 3e-2, 1e-1], "Learning rates that every method tries.", also="--lr"
    )
    methods: list[str] = setting(
        list(_METHODS), "Methods to compare, or all; ensembles are built on FT and DiVE."
    )
    retrain: bool = setting(False, "Pre-train the tiny CLIP anew first (minutes).")
