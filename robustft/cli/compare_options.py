"""The options of `robustft compare`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from robustft import protocols
from robustft.choices import ALPHAS
from robustft.cli import mixtures
from robustft.cli.options import setting
from robustft.cli.run_folder import CONFIG
from robustft.cli.train_options import TrainOptions
from robustft.errors import InputError


@dataclass(frozen=True)
class CompareOptions(TrainOptions):
    """Compare methods: every one with the same data, model and budget, the learning rate chosen on
    ID validation. What was interrupted goes on when the same command is given again."""

    WITHOUT: ClassVar[tuple[str, ...]] = (
        *("method", "lr", "seed", "logs", "name", "resume", "results_db", "recipe", "dry_run"),
    )

    protocol: str | None = setting(
        None,
        f"A table's data, shots and seeds, below --data-location: {', '.join(protocols.names())}, "
        "or a YAML file of that form; --data then names some of its sets, separated by commas.",
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
    alpha: list[float] = setting(
        list(ALPHAS), "Weights of the fine-tuned model that ensembles try."
    )
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
    def defaults_of(values: dict[str, Any]) -> dict[str, Any]:
        """The settings of the protocol that `values` names."""
        name = values.get("protocol")
        found = {} if name is None else dict(protocols.load(str(name)).settings)
        if values.get("lr_grid"):  # which stands instead of factors
            found.pop("lr_factors", None)
        return found

    @staticmethod
    def read_from(config: Path) -> dict[str, Any]:
        """A comparison's own file means its folder, wherever it was moved since."""
        from robustft.cli.kept import Kept

        folder = config.absolute().parent
        return {"out": folder} if config.name == CONFIG and Kept(folder).began() else {}

    def rates(self, method: str) -> list[float]:
        """The learning rates of a method, ascending; none for one that trains nothing."""
        from robustft.methods import METHODS

        published = METHODS[method].published
        if not published.epochs:
            return []
        factors = self.lr_factors or [0.3, 1.0, 3.0]
        # 0.3 · 3e-5 is 9e-06, and not 8.999999999999999e-06.
        given = self.lr_grid or [float(f"{x * published.lr:.6g}") for x in factors]
        return given

    def of_run(self, method: str, lr: float, seed: int, folder: Path) -> TrainOptions:
        """The options of one training run."""
        from robustft.cli import materials

        names = {field.name for field in dataclasses.fields(TrainOptions)}
        values = {name: getattr(self, name) for name in names} | {
            "method": method,
            "option": [pair for name, pair in self._options() if name in (None, method)],
            "lr": lr,
            "seed": seed,
            "logs": folder.parent,
            "name": folder.name,
        }
        return materials.settled(TrainOptions(**values))

    def settled(self) -> CompareOptions:
        """With absolute paths, so that the comparison goes on from any folder, and numbers that are
        tried ascending."""
        from robustft.cli import training
        from robustft.methods import METHODS

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
        from robustft.methods import METHODS

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
