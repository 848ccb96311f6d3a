"""Is this image of the kind that was trained on? Asked of the distance to the k-th neighbour.

    python examples/ood_detection.py --model ViT-B-32 --pretrained openai --data FOLDER --ood FOLDER

After Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors" (arXiv 2204.06507):
unit features of the training set are the bank, and what is farther from it than 95 % of validation
images are is called foreign. By default: the built-in tiny CLIP, digits and printed letters.
"""

import argparse

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from robustft.data import load_dataset
from robustft.models import load_clip
from robustft.ops import FeatureBank, kth_distance


@torch.no_grad()
def features_of(clip, data):
    data = data.with_transform(clip.preprocess_val)
    parts = [
        clip.model.encode_image(batch["image"].to(clip.device)).float()
        for batch in DataLoader(data, 256)
    ]
    return F.normalize(torch.cat(parts), dim=1)


def auroc(inside, outside):
    """The chance that a foreign image is farther than one of the kind that was trained on."""
    ordered, _ = inside.sort()
    below = torch.searchsorted(ordered, outside)
    upto = torch.searchsorted(ordered, outside, right=True)
    return ((below + upto).double() / 2 / len(inside)).mean().item()


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="robustft-tiny")
    parser.add_argument("--pretrained", default="glyphs")
    parser.add_argument("--data", default="digits", help="with train, val and test")
    parser.add_argument("--ood", default="letters", help="with test")
    parser.add_argument("--k", type=int, default=10)
    args = parser.parse_args(argv)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    clip = load_clip(args.model, args.pretrained, device=device)
    bank = FeatureBank(features_of(clip, load_dataset(args.data, "train")))
    distance = {
        name: kth_distance(features_of(clip, load_dataset(spec, split)), bank, k=args.k)
        for name, spec, split in [
            ("val", args.data, "val"),
            ("test", args.data, "test"),
            ("ood", args.ood, "test"),
        ]
    }
    threshold = distance["val"].quantile(0.95)
    kept = (distance["test"] <= threshold).float().mean().item()
    taken = (distance["ood"] <= threshold).float().mean().item()
    area = auroc(distance["test"], distance["ood"])
    print(f"AUROC {100 * area:.1f} %; at the threshold {threshold:.3f} from validation images:")
    print(f"{100 * kept:.1f} % of {args.data} pass, and {100 * taken:.1f} % of {args.ood}")
    return area, kept, taken


if __name__ == "__main__":
    main()
