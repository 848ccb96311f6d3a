"""`robustft demo`: a comparison of methods on real handwriting, in minutes, on any machine.

A tiny CLIP, pre-trained on generated glyphs, is fine-tuned on scikit-learn's handwritten digits by
each method with one grid of learning rates and one budget, chosen on ID validation. Measured are
the digits (ID), shifts of them (OOD), what else the model could do (letters and ink colours,
zero-shot: forgetting), and how much of its geometry is kept (RSA).
"""

from __future__ import annotations

from pathlib import Path

from robustft.cli.compare import carry_out
from robustft.cli.compare_options import CompareOptions
from robustft.cli.demo_options import DemoOptions
from robustft.methods import METHODS

# What is built on the methods, and what more of FT's models where all methods are asked for.
_ENSEMBLES = ("ft.wise-ft", "ft.ose", "ft.vrf", "dive.vrf")
_MIXTURES = ("ft.greedy-soup", "ft.uniform-soup", "ft.post-tpgm", "ft.lse", "ft.calibrated-ose")


def demo(options: DemoOptions) -> None:
    """A comparison of methods on the built-in handwriting, by `CompareOptions` of its own."""
    from robustft.data.digits import digits
    from robustft.data.words import SHIFT_NAMES

    everything = "all" in options.methods
    ensembles = (*_ENSEMBLES, *(_MIXTURES if everything else ()))
    compared = METHODS if everything else options.methods
    preset = CompareOptions(
        out=options.out,
        methods=options.methods,
        ensembles=[x for x in ensembles if x.partition(".")[0] in compared] or ["none"],
        seeds=options.seeds,
        lr_grid=options.lr_grid,
        epochs=options.epochs,
        batch_size=options.batch_size,
        model="robustft-tiny",
        pretrained=str(_retrained(options.out)) if options.retrain else "glyphs",
        data_location="digits",
        reference="glyphs",
        reference_samples=2048,
        id=["digits"],
        ood=[f"digits-{shift}" for shift in SHIFT_NAMES],
        zero_shot=["letters", "inks"],
        aug="none",
        wd=0.0,
        min_lr=0.0,
        warmup=len(digits("train")) // options.batch_size,  # an epoch
        grad_clip_norm=1.0,
        # Settings of a method for runs as short as these, where it has some.
        option=[f"{m.name}.{k}={v}" for m in METHODS.values() for k, v in m.demo.items()],
        feature_store="off",
        val_frequency=0,
        save_frequency=0,
        device="cpu",
    )
    carry_out(
        preset,
        title="robustft demo: fine-tuning on handwritten digits",
        next=["robustft init --data-location YOUR-IMAGES"],
    )


def _retrained(folder: Path) -> Path:
    """The tiny model pre-trained anew; the file of an interrupted demo serves again."""
    from robustft.train.pretrain import pretrain

    path = folder / "tiny_glyphs.safetensors"
    if not path.is_file():
        pretrain(path)
    return path
