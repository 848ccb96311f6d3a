"""`robustft compare --protocol NAME`: one comparison for every data set and number of shots, and
the protocol's tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from robustft import protocols
from robustft.cli.ending import end
from robustft.cli.run_folder import RESULTS
from robustft.errors import InputError
from robustft.protocols import Protocol
from robustft.readable import readable

if TYPE_CHECKING:
    from robustft.cli.compare_options import CompareOptions
    from robustft.data.registry.spec import Spec

_SETS = ("eval_datasets", "id", "ood", "zero_shot", "suite")
TABLES = "protocol.md"


@dataclass(frozen=True)
class Cell:
    """One comparison of a protocol. data: trained on; others: evaluated besides, by role."""

    name: str
    data: Spec
    shots: int
    others: list[tuple[Spec, str]]

    def options(self, options: CompareOptions) -> CompareOptions:
        """The comparison's own, in a folder of its own."""
        others = [f"{spec}:{role}" for spec, role in self.others]
        return dataclasses.replace(
            options,
            protocol=None,
            data=None,
            data_location=str(self.data),
            shots=self.shots,
            eval_datasets=[f"{self.data}:id", *others],
            out=options.out / self.name,
        )


def run(options: CompareOptions, carry_out: Callable[..., None]) -> None:
    """Carry out every comparison of a protocol, and write its tables. What was interrupted goes on
    when the same command is given again. Errors: InputError before work starts."""
    from robustft.atomic import write_text
    from robustft.data.registry.known import REGISTRY
    from robustft.evaluate.results import read_results
    from robustft.report import protocol as tables
    from robustft.report.text import markdown

    assert options.protocol is not None
    protocol = protocols.load(options.protocol)
    cells = _cells(protocol, options)
    print(readable(f"{protocol.title} ({protocol.source})"))
    for text in protocol.departs:
        print(readable(f"departs: {text}"))
    _print_counts(cells, options)
    measured = []
    for number, cell in enumerate(cells, 1):
        print(f"\n{number} of {len(cells)}: {cell.name}", flush=True)
        own = cell.options(options)
        carry_out(own, title=f"{protocol.title}: {cell.name}")
        records = read_results(own.out / RESULTS)
        measured.append(tables.Measured(REGISTRY[cell.data.name].display, cell.shots, records))
    make = tables.base_to_novel if protocol.halves else tables.few_shot
    found = make(measured)
    text = "\n".join(f"## {markdown(name)}\n\n{table.markdown()}" for name, table in found)
    write_text(options.out / TABLES, f"# {markdown(protocol.title)}\n\n{text}")
    name, table = found[0]
    print(f"\n{readable(name)}\n\n{table.markdown()}")
    end(options.out / TABLES)


def _cells(protocol: Protocol, options: CompareOptions) -> list[Cell]:
    """The comparisons, data set by data set. Errors: InputError for options that contradict the
    protocol, unknown sets, or sets that are not there."""
    from robustft.data.registry.load import find, not_found
    from robustft.data.registry.suites import suite

    for key in _SETS:
        if getattr(options, key):
            raise InputError(
                f"--{key.replace('_', '-')}: got it beside --protocol, expected one of them: the "
                "protocol has its own test sets"
            )
    root = Path(options.data_location).expanduser()
    if not root.is_dir():
        raise InputError(
            f"--data-location: got {options.data_location!r}, expected the folder below which the "
            f"data sets of {protocol.name} lie"
        )
    shots = protocol.shots if options.shots is None else [options.shots]
    root = root.absolute()
    specs = [_spec(name, root) for name in _named(protocol, options.data)]
    shifts = [] if protocol.suite is None else suite(protocol.suite).get("ood", ())
    shifted = [(_spec(name, root), "ood") for name in shifts]
    parts = [(spec, part) for spec in specs for part in ("train", "test")]
    parts += [(spec, "test") for spec, _ in shifted]
    missing = [not_found(spec, part) for spec, part in parts if find(spec, part) is None]
    if missing:
        raise InputError(
            f"--protocol {protocol.name}: {'; '.join(missing)} (--data NAME,NAME takes some of the "
            "sets)"
        )
    cells = []
    for spec in specs:
        base, novel = (dataclasses.replace(spec, half=half) for half in ("base", "novel"))
        for k in shots:
            trained, others = (base, [(novel, "zero-shot")]) if protocol.halves else (spec, [])
            cells.append(Cell(f"{spec.name}-{k}", trained, k, [*others, *shifted]))
    return cells


def _named(protocol: Protocol, data: str | None) -> list[str]:
    """The protocol's sets, or those that --data names, separated by commas."""
    return protocol.data if data is None else [name.strip() for name in data.split(",")]


def _spec(name: str, root: Path) -> Spec:
    from robustft.data.registry.known import REGISTRY
    from robustft.data.registry.spec import parse

    spec = parse(name)
    if spec is None or spec.half is not None:
        raise InputError(f"--data: got {name!r}, expected some of {', '.join(REGISTRY)}")
    return spec.at(root)


def _print_counts(cells: Sequence[Cell], options: CompareOptions) -> None:
    """What every data set has, with the first seed. Errors: InputError where that is not what the
    registry says, or the halves of the classes do not make up the whole."""
    from robustft.data import load_dataset
    from robustft.data.few_shot import few_shot
    from robustft.data.registry.load import half_of_classes

    for whole in dict.fromkeys(dataclasses.replace(cell.data, half=None) for cell in cells):
        own = [cell for cell in cells if cell.data.name == whole.name]
        train, val, test = (
            load_dataset(str(whole), split, val_fraction=options.val_fraction)
            for split in ("train", "val", "test")
        )
        held = [f"{len(test.classnames):,} classes, {len(test):,} test images"]
        if own[0].data.half is not None:
            halves = [half_of_classes(test, half) for half in ("base", "novel")]
            held = [
                f"{half} {len(one.classnames):,} classes, {len(one):,} test images"
                for half, one in zip(("base", "novel"), halves, strict=True)
            ]
            if sum(map(len, halves)) != len(test):
                raise InputError(
                    f"{whole}: got halves of {held[0]} and {held[1]}, expected {len(test):,} images"
                )
            train, val = (half_of_classes(one, "base") for one in (train, val))
        drawn = [[len(few_shot(one, cell.shots, 0)) for one in (train, val)] for cell in own]
        at = ", ".join(f"{t:,} + {v:,}" for t, v in drawn)
        ks = ", ".join(str(cell.shots) for cell in own)
        print(f"  {whole.name}: {'; '.join(held)}; train + val at {ks} shots: {at}", flush=True)
