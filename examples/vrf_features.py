"""VRF on two classifiers of your own, from saved arrays: no model, no images, no training.

    python examples/vrf_features.py train.npz val.npz test.npz

Each file holds of one split: `features` [N, D] of the fine-tuned model, `logits_finetuned` and
`logits_zeroshot` [N, C], `labels` [N]. The validation split is of the training distribution and
chooses temperatures, a and b; the test split chooses nothing. Without files two classifiers of
scikit-learn's digits stand in, and pixels are the features.
"""

import argparse
import warnings

import numpy as np
import torch

from robustft import VRF

NAMES = ("features", "logits_finetuned", "logits_zeroshot", "labels")


def stand_ins():
    """Three splits as above. The broad model saw a few digits, plain and inverted; the tuned one
    many, plain alone. The test split is plain and inverted; train and val are plain."""
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    pixels, labels = pixels[order] / 16, labels[order]
    both, twice = np.concatenate([pixels, 1 - pixels]), np.concatenate([labels, labels])

    def trained(rows):
        model = MLPClassifier(64, max_iter=50, learning_rate_init=0.01, random_state=0)
        return model.fit(both[rows], twice[rows])

    plain = np.arange(len(labels))
    some = np.concatenate([plain[:100], plain[:100] + len(labels)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fifty passes are enough
        broad, tuned = trained(some), trained(plain[:900])

    def split(rows):
        return {
            "features": both[rows],
            "logits_finetuned": tuned.predict_log_proba(both[rows]).clip(min=-50),
            "logits_zeroshot": broad.predict_log_proba(both[rows]).clip(min=-50),
            "labels": twice[rows],
        }

    tests = np.concatenate([plain[1300:], plain[1300:] + len(labels)])
    return split(plain[:900]), split(plain[900:1300]), split(tests)


def read(path):
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in NAMES}


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="*", help="train.npz val.npz test.npz")
    parser.add_argument("--save", help="where the fitted VRF goes (.safetensors)")
    args = parser.parse_args(argv)
    if len(args.files) not in (0, 3):
        parser.error(f"got {len(args.files)} files, expected train, val and test")
    splits = [read(path) for path in args.files] or stand_ins()
    train, val, test = (
        [torch.as_tensor(split[name]).to(torch.int64 if name == "labels" else torch.float32)
         for name in NAMES] for split in splits
    )  # fmt: skip

    vrf = VRF()
    vrf.fit(*train, **{f"val_{name}": part for name, part in zip(NAMES, val, strict=True)})
    print(f"{len(vrf.failures_)} failures, k = {vrf.k_}, a = {vrf.a_:.3g}, b = {vrf.b_:.3g}")
    features, finetuned, zeroshot, labels = test
    answers = {
        "zero-shot": zeroshot.argmax(1),
        "fine-tuned": finetuned.argmax(1),
        "mean": (zeroshot.softmax(1) + finetuned.softmax(1)).argmax(1),
        "VRF": vrf.predict(features, finetuned, zeroshot),
    }
    found = {name: (answer == labels).float().mean().item() for name, answer in answers.items()}
    for name, accuracy in found.items():
        print(f"{name:10} {100 * accuracy:.1f} %")
    if args.save:
        vrf.save(args.save)
    return found


if __name__ == "__main__":
    main()
