"""An open_clip training loop with robustft's losses in the place of ClipLoss.

    python examples/open_clip_loop.py --model ViT-B-32 --pretrained openai --data FOLDER
    torchrun --nproc-per-node 2 examples/open_clip_loop.py ...

FOLDER has train/<class>/*; the default is scikit-learn's digits. On several processes the loss is
that of the whole batch. With --accum K it is that of K batches at once, as with open_clip's own
--accum-freq: features first, without a graph; then each batch again, among those of the others.
"""

import argparse
import contextlib
import os

import open_clip
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from robustft.data import load_dataset
from robustft.losses import CLIPLoss, MPMNCELoss, all_ranks


def arguments(argv):
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--pretrained")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--loss", choices=("clip", "mpm-nce"), default="mpm-nce")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--accum", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--amp", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--compile", action="store_true")
    return parser.parse_args(argv)


def main(argv=None):
    args = arguments(argv)
    if "RANK" in os.environ:
        dist.init_process_group()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model, preprocess, _ = open_clip.create_model_and_transforms(
        args.model, pretrained=args.pretrained, device=device, output_dict=False
    )
    tokenizer = open_clip.get_tokenizer(args.model)
    trained = torch.compile(model) if args.compile else model
    if all_ranks() is not None:
        trained = DistributedDataParallel(trained)
    data = load_dataset(args.data, "train").with_transform(preprocess)
    texts = tokenizer([f"a photo of a {name}." for name in data.classnames]).to(device)
    # CLIPLoss takes ClipLoss's own arguments too: CLIPLoss(rank=rank, world_size=world_size).
    group = all_ranks()
    loss_of = CLIPLoss(group=group) if args.loss == "clip" else MPMNCELoss(group=group)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    sampler = DistributedSampler(data) if group is not None else None
    loader = DataLoader(data, args.batch_size, sampler=sampler, shuffle=sampler is None,
                        drop_last=True)  # fmt: skip
    stream = (batch for epoch in range(args.steps) for batch in loader)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.amp)
    losses = []
    for _ in range(args.steps):
        batches = [next(stream) for _ in range(args.accum)]
        labels = torch.cat([batch["label"] for batch in batches]).to(device)
        known = []
        if args.accum > 1:
            with torch.no_grad(), autocast:
                known = [model(b["image"].to(device), texts[b["label"]])[:2] for b in batches]
        for at, batch in enumerate(batches):
            last = at == len(batches) - 1
            with contextlib.nullcontext() if last or group is None else trained.no_sync():
                with autocast:
                    image, text, scale = trained(batch["image"].to(device), texts[batch["label"]])
                every = [*known[:at], (image, text), *known[at + 1 :]]
                image, text = (torch.cat(side) for side in zip(*every, strict=True))
                same = () if args.loss == "clip" else (labels, labels)
                loss = loss_of(image, text, scale, *same)
                loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} after {args.steps} steps")
    return losses


if __name__ == "__main__":
    main()
