"""`robustft import` and `robustft export`: other projects' checkpoints in, open_clip's out."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustft.cli import named, runs
from robustft.cli.ending import command, end
from robustft.cli.exchange_options import ExportOptions, ImportOptions
from robustft.cli.options import refuse_beside_run
from robustft.cli.run_folder import RESULTS
from robustft.cli.strengths import strengths
from robustft.errors import InputError
from robustft.optional import require
from robustft.train import checks

if TYPE_CHECKING:
    from robustft.models import Clip
    from robustft.models.checkpoints import Head

_LISTED = ("lr", "wd", "epochs", "batch_size", "seed", "precision", "template")


def import_(options: ImportOptions) -> None:
    """Carry out `robustft import`."""
    from robustft.models import Classifier, load_clip, save_adapters, save_classifier
    from robustft.models.adapter_files import Base, attach_release
    from robustft.models.checkpoints import load_state, read_checkpoint
    from robustft.models.export import save_open_clip, uses_quick_gelu

    if options.checkpoint is None or options.out is None:
        missing = "--checkpoint" if options.checkpoint is None else "--out"
        raise InputError(f"{missing}: got nothing, expected a path")
    to_file = options.out.suffix == ".safetensors"
    checkpoint = read_checkpoint(options.checkpoint)
    print(f"{options.checkpoint}: {checkpoint.kind}, {len(checkpoint.state)} tensors")
    if not to_file and not checkpoint.adapters:
        raise InputError(f"--out: got {options.out}, expected a name ending in .safetensors")
    names = None
    if checkpoint.head is not None:  # before the model is built
        names = _classnames(options.classnames, checkpoint.head)
    if options.text_from is None:
        clip = load_clip(options.model, options.checkpoint, alpha=options.alpha)
    else:
        clip = load_clip(options.model, options.text_from)
        if load_state(clip.model, checkpoint):
            raise InputError("--text-from: got it for a file with a text tower, expected neither")
        wanted = checkpoint.quick_gelu
        if wanted is not None and wanted != uses_quick_gelu(clip):
            raise InputError(
                f"--text-from: got {options.text_from!r}, expected weights with the activation "
                f"({'QuickGELU' if wanted else 'GELU'}) of {options.checkpoint}"
            )
    base = None
    if not to_file:
        plain = dataclasses.replace(checkpoint, adapters={})
        load_state(clip.model, plain)
        base = options.out.parent / f"{options.out.name}-base.safetensors"
        save_open_clip(base, clip)
        adapters = attach_release(clip.model, checkpoint.adapters)
        if options.alpha is not None:
            adapters.alpha = options.alpha
        save_adapters(adapters, options.out, base=Base(options.model, str(base.absolute())))
    elif checkpoint.head is None:
        save_open_clip(options.out, clip)
    else:
        head = checkpoint.head
        classifier = Classifier(clip.model, head.weight, head.bias, names or ())
        source = {"source": str(options.checkpoint), "kind": checkpoint.kind}
        save_classifier(options.out, classifier, metadata={"model": options.model, **source})
    if base is not None:
        print(f"{base}: the model that the adapters were made for")
    end(base, options.out, next=[_try(options.model, options.out)])


def _try(model: str, weights: Path) -> str:
    return command("eval", "--model", model, "--pretrained", weights, "--id", "data")


def export(options: ExportOptions) -> None:
    """Carry out `robustft export`."""
    from robustft.models.export import (
        check_folder,
        save_hub_folder,
        save_open_clip,
        save_transformers_folder,
    )
    from robustft.models.hugging_face import PREFIX
    from robustft.report.card import model_card

    if options.out is None:
        raise InputError("--out: got nothing, expected a .safetensors file or a folder")
    to_file = options.out.suffix == ".safetensors"
    form = options.format or ("open_clip" if to_file else "hub")
    if to_file != (form == "open_clip"):
        expected = "a name ending in .safetensors" if form == "open_clip" else "a folder"
        raise InputError(f"--out: got {options.out} with --format {form}, expected {expected}")
    if options.alpha is not None:
        checks.real("--alpha", options.alpha, least=0, most=1)
    if form == "hub":
        check_folder(options.out)
    steps = [f"hf upload NAME {shlex.quote(str(options.out))}"]
    if form == "adapters":
        _export_adapters(options, options.out)
    else:
        source = _of_run(options, options.run) if options.run is not None else _of_file(options)
        of_transformers = source.clip.name.startswith(PREFIX)
        if of_transformers and form == "open_clip":
            raise InputError(f"--out: got {options.out}, expected a folder for {source.clip.name}")
        if of_transformers:
            card = model_card(_facts(options, source), source.records)
            save_transformers_folder(options.out, source.clip, card, head=source.head)
        elif form == "open_clip":
            save_open_clip(options.out, source.clip)
            load = f"pretrained={str(options.out)!r}"
            named = source.clip.name + "-quickgelu" * source.renamed
            print(f"load with: open_clip.create_model_and_transforms({named!r}, {load})")
            steps = [_try(named, options.out)]
        else:
            card = model_card(_facts(options, source), source.records)
            save_hub_folder(options.out, source.clip, card, head=source.head)
    end(options.out, next=steps)


@dataclass(frozen=True)
class _Source:
    """A model to export, and what its card says."""

    clip: Clip
    head: Head | None = None
    run: runs.Run | None = None
    base: str | None = None
    records: tuple[dict[str, Any], ...] = ()

    @property
    def renamed(self) -> bool:
        """Whether open_clip builds it with QuickGELU under another name alone."""
        from robustft.models.export import uses_quick_gelu

        open_clip = require("open_clip", extra="openclip")
        config = open_clip.get_model_config(self.clip.name) or {}
        twin = f"{self.clip.name}-quickgelu" in open_clip.list_models()
        return uses_quick_gelu(self.clip) and not config.get("quick_gelu") and twin


def _of_file(options: ExportOptions) -> _Source:
    from robustft.models import load_clip

    if options.pretrained is None or options.model is None:
        missing = "--model" if options.pretrained is not None else "--run"
        raise InputError(f"{missing}: got nothing, expected --run, or --model and --pretrained")
    clip = load_clip(options.model, options.pretrained, alpha=options.alpha)
    return _Source(clip, clip.head, base=f"{options.model}, {options.pretrained}")


def _of_run(options: ExportOptions, folder: Path) -> _Source:
    from robustft.evaluate.results import read_results
    from robustft.models.checkpoints import Head

    refuse_beside_run(options, ("model", "pretrained"))
    run = runs.open_run(folder, "cpu")
    classifier, alpha = run.fine_tuned, options.alpha
    identity: dict[str, Any] = {"method": run.options.method}
    if alpha is not None:
        at, identity = strengths(run)
        classifier = at(alpha)
    clip = dataclasses.replace(run.clip, model=classifier.clip)
    head = None
    if not run.own_text:
        names = tuple(classifier.classnames)
        head = Head(classifier.head.weight.detach(), classifier.head.bias.detach(), names)
    results = folder / RESULTS
    found = read_results(results) if results.is_file() else []
    records = {}
    for line in found:  # the last line of a set counts
        if {k: line.get(k) for k in identity} == identity and line.get("alpha") == alpha:
            records[line.get("dataset"), line["role"]] = line
    base = f"{run.options.model}, {run.options.pretrained or 'random weights'}"
    return _Source(clip, head, run, base, tuple(records.values()))


def _export_adapters(options: ExportOptions, out: Path) -> None:
    from robustft.methods.r_adapter import ADAPTERS
    from robustft.models import load_adapters, save_adapters
    from robustft.models.adapter_files import Base
    from robustft.report.card import model_card

    if options.run is None:
        raise InputError("--run: got nothing, expected the folder of an R-Adapter run")
    run = runs.open_run(options.run, "cpu")
    folder = options.run / ADAPTERS
    if not folder.is_dir():
        raise InputError(
            f"--run: {options.run} has no folder {ADAPTERS}, expected an R-Adapter run"
        )
    adapters = load_adapters(folder, run.clip.model)
    if options.alpha is not None:
        adapters.alpha = options.alpha
    base = Base(run.options.model, run.options.pretrained)
    source = _Source(run.clip, None, run, f"{base.name}, {base.pretrained}")
    facts = dataclasses.replace(
        _facts(options, source),
        alpha=adapters.alpha,
        load=f'clip = robustft.models.load_clip("{base.name}", "{out.name}")',
    )
    save_adapters(adapters, out, base=base, peft=True, card=model_card(facts, ()))


def _facts(options: ExportOptions, source: _Source) -> Any:
    from robustft.models.hugging_face import PREFIX
    from robustft.report.card import CardFacts

    assert options.out is not None
    load = (
        "from transformers import AutoModel, AutoProcessor\n\n"
        f'model = AutoModel.from_pretrained("{options.out.name}")\n'
        f'processor = AutoProcessor.from_pretrained("{options.out.name}")'
        if source.clip.name.startswith(PREFIX)
        else "import open_clip\n\n"
        "model, _, preprocess = open_clip.create_model_and_transforms("
        f'"local-dir:{options.out.name}")\n'
        f'tokenizer = open_clip.get_tokenizer("local-dir:{options.out.name}")'
    )
    facts = CardFacts(
        title=options.title or options.out.name,
        load=load,
        alpha=options.alpha,
        base=source.base,
        licence=options.license,
        licence_name=options.license_name,
        licence_link=options.license_link,
        head=source.head is not None,
    )
    if source.run is None:
        return facts
    o = source.run.options
    settings = {k: v for k, v in vars(o).items() if k in _LISTED and v is not None}
    return dataclasses.replace(
        facts,
        method=o.method,
        data=own.plain
        if (own := named.registered(o.data_location))
        else Path(o.data_location).name,
        classes=len(source.run.train.classnames) or None,
        settings={**settings, **({"option": " ".join(o.option)} if o.option else {})},
    )


def _classnames(given: str | None, head: Head) -> list[str]:
    """The names of a head's classes, as many as it has rows."""
    from robustft.data import built_in_names, load_dataset
    from robustft.data.text_files import text_lines

    rows = len(head.weight)
    if given is None and head.classnames:
        names = list(head.classnames)
    elif given is None and rows == 1000:
        names = list(require("open_clip", extra="openclip").IMAGENET_CLASSNAMES)
    elif given is None:
        raise InputError(f"--classnames: got nothing, expected the names of the {rows} classes")
    elif given not in built_in_names() and Path(given).suffix == ".txt":
        names = [line.strip() for line in text_lines(Path(given)) if line.strip()]
    else:
        names = list(load_dataset(given, "train").classnames)
    if len(names) != rows:
        raise InputError(f"--classnames: got {len(names)} names, expected {rows}, one a row")
    return names
