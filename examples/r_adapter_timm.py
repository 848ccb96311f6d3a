"""R-Adapter on an image classifier of timm: adapters are trained, then folded into the weights.

    python examples/r_adapter_timm.py --model vit_base_patch16_224 --pretrained --data FOLDER

FOLDER has {train,test}/<class>/*; the default is scikit-learn's digits. The result is a state dict
for the unchanged timm model, at any strength between the pre-trained weights and the adapted ones.
"""

import argparse

import timm
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from robustft.data import load_dataset
from robustft.losses import MPMNCELoss
from robustft.models import add_adapters, merged_state_dict


@torch.no_grad()
def outputs(model, data, device):
    """Unit features and labels of a whole data set."""
    model.eval()
    batches = [(model(b["image"].to(device)), b["label"].to(device)) for b in DataLoader(data, 256)]
    features, labels = (torch.cat(side) for side in zip(*batches, strict=True))
    return F.normalize(features, dim=1), labels


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--pretrained", action="store_true")
    parser.add_argument("--checkpoint", default="", help="weights from a file instead")
    parser.add_argument("--img-size", type=int, help="of the images [default: the model's]")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--alpha", type=float, default=1.0, help="strength of the result")
    parser.add_argument("--save", help="where the merged state dict goes")
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = timm.create_model(
        args.model, args.pretrained, checkpoint_path=args.checkpoint, num_classes=0
    ).to(device)
    seen = timm.data.resolve_data_config({"img_size": args.img_size}, model=model)
    preprocess = timm.data.create_transform(**seen)
    train = load_dataset(args.data, "train").with_transform(preprocess)
    test = load_dataset(args.data, "test").with_transform(preprocess)

    adapters = add_adapters(model, towers=("image",), rank=args.rank, ema=0.95)
    print(f"{adapters.num_parameters:,} trained parameters in {len(adapters.sites)} adapters")
    features, labels = outputs(model, train, device)
    classes = torch.arange(len(train.classnames), device=device)
    means = torch.stack([features[labels == one].mean(0) for one in classes])
    head = torch.nn.Parameter(F.normalize(means, dim=1))
    optimizer = torch.optim.AdamW(
        [*adapters.param_groups(), {"params": [head]}], lr=args.lr, weight_decay=0.0
    )
    loss_of = MPMNCELoss(symmetric=False)
    loader = DataLoader(train, args.batch_size, shuffle=True, drop_last=True)
    stream = (batch for _ in range(args.steps) for batch in loader)
    model.train()
    for _ in range(args.steps):
        batch = next(stream)
        features = F.normalize(model(batch["image"].to(device)), dim=1)
        labels = batch["label"].to(device)
        loss = loss_of(features, F.normalize(head, dim=1), 30.0, labels, classes)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        adapters.update_ema()

    merged = merged_state_dict(model, adapters, args.alpha)
    adapters.remove()
    model.load_state_dict(merged)
    features, labels = outputs(model, test, device)
    reached = (features @ F.normalize(head.detach(), dim=1).T).argmax(1) == labels
    reached = reached.float().mean().item()
    print(f"accuracy {100 * reached:.1f} % with the adapters folded in at {args.alpha}")
    if args.save:
        torch.save(merged, args.save)
    return reached


if __name__ == "__main__":
    main()
