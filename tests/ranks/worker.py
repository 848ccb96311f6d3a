"""Batches spread over ranks: what each case computes, on one process and on a rank of several.

A case computes on the rows of a rank, or on all of them where group and rank are None, and returns
tensors by name. Names that begin with "my" are of the rank's own rows.

    python worker.py FOLDER RANK        all cases on that rank of WORLD, into FOLDER/RANK.pt
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from robustft import ops
from robustft.data.captioned import CaptionedDataset
from robustft.data.datasets import ImageDataset
from robustft.data.images import FileImages, TensorImages
from robustft.errors import InputError
from robustft.evaluate import collect, retrieval
from robustft.evaluate.share import Share
from robustft.losses import CLIPLoss, DiVELoss, MPMNCELoss, NTXentLoss, SupConLoss
from robustft.ops import _mpm_nce_ring

WORLD = 3
IMAGES = (5, 1, 4)  # of each rank
TEXTS = (2, 7, 3)
WIDTH = 6

Case = Callable[[Any, int | None], dict[str, Tensor]]
CASES: dict[str, Case] = {}
EXCHANGE = ["gather"]  # of the case that runs


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


def rows(count: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, WIDTH, generator=generator, dtype=torch.float64)
    return F.normalize(drawn, dim=1).to(dtype)


def share(whole: Tensor, rank: int | None, counts: tuple[int, ...] = IMAGES) -> Tensor:
    """A rank's rows, or all."""
    return whole if rank is None else whole.split(counts)[rank]


def with_gradients(loss: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
    """The loss, and gradients of what begins with "my", or of a scale."""
    found = torch.autograd.grad(loss * 3, list(inputs.values()))
    return {"loss": loss.detach()} | dict(zip(inputs, found, strict=True))


def contrast(group: Any, rank: int | None, dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
    """mpm_nce with a learnt scale on labels of which one rank has no anchor, or as options say."""
    texts = options.pop("texts", TEXTS)
    labels = torch.tensor([0, 1, 1, 2, 7, 9, 0, 3, 0, -100])  # rank 1 has 9, which no text has
    of_texts = torch.tensor([1, 0, 4, 4, 0, 2, -100, 5, 5, 3, 0, 8])
    mine = share(rows(10, 1, dtype), rank).clone().requires_grad_()
    my_texts = share(rows(sum(texts), 2, dtype), rank, texts).clone().requires_grad_()
    scale = torch.tensor(7.0, dtype=torch.float64).to(dtype).requires_grad_()
    if options.pop("labels", True):
        options["image_labels"] = share(labels, rank)
        options["text_labels"] = share(of_texts, rank, texts)
    if "mask" in options:
        options["mask"] = share(options["mask"], rank)
    options["exchange"] = EXCHANGE[0]
    loss = ops.mpm_nce(mine, my_texts, logit_scale=scale, group=group, **options)
    return with_gradients(loss, my_images=mine, my_texts=my_texts, scale=scale)


@case
def labels_margin_and_smoothing(group, rank):
    return contrast(group, rank, torch.float64, margin=0.1, label_smoothing=0.2)


@case
def one_direction(group, rank):
    return contrast(group, rank, torch.float64, symmetric=False, ignore_index=0)


@case
def float32_by_the_kernels(group, rank):
    return contrast(group, rank, torch.float32, margin=0.05, label_smoothing=0.02)


@case
def bfloat16_by_the_kernels(group, rank):
    return contrast(group, rank, torch.bfloat16)


@case
def a_mask(group, rank):
    generator = torch.Generator().manual_seed(5)
    mask = torch.rand(10, sum(TEXTS), generator=generator) < 0.2
    return contrast(group, rank, torch.float64, labels=False, mask=mask, margin=0.1)


@case
def pairs(group, rank):
    # Without labels there is nothing that ignore_index could mean.
    return contrast(group, rank, torch.float64, labels=False, texts=IMAGES, ignore_index=3)


def others(group, rank, pairs, dtype=torch.float64, **options):
    """mpm_nce of rows of one batch against each other, but not against themselves."""
    mine = share(rows(10, 1, dtype), rank).clone().requires_grad_()
    mine_too = share(rows(10, 2, dtype), rank).clone().requires_grad_()
    given = {name: share(value, rank) for name, value in pairs.items()}
    options["exchange"] = EXCHANGE[0]
    loss = ops.mpm_nce(
        mine, mine_too, **given, logit_scale=4.0, exclude_self=True, group=group, **options
    )
    return with_gradients(loss, my_images=mine, my_texts=mine_too)


# Row 2 and 5 alone have theirs, rank 1 has one row.
ALONE = torch.tensor([0, 1, 3, 1, 0, 2, 0, -100, 1, 0])


@case
def labels_without_the_own_pair(group, rank):
    return others(
        group, rank, {"image_labels": ALONE, "text_labels": ALONE}, margin=0.1, label_smoothing=0.2
    )


@case
def one_direction_without_the_own_pair_by_the_kernels(group, rank):
    labels = {"image_labels": ALONE, "text_labels": ALONE}
    return others(group, rank, labels, torch.float32, label_smoothing=0.1, symmetric=False)


@case
def a_mask_without_the_own_pair(group, rank):
    mask = torch.eye(10, dtype=torch.bool)
    mask[0, 7] = mask[3, 8] = mask[6, 1] = True
    return others(group, rank, {"mask": mask}, margin=0.1)


@case
def a_mask_without_the_own_pair_in_one_direction(group, rank):
    mask = torch.eye(10, dtype=torch.bool)
    mask[0, 7] = mask[3, 8] = True
    return others(group, rank, {"mask": mask}, symmetric=False)


@case
def sup_con_loss(group, rank):
    mine = share(rows(10, 1), rank).clone().requires_grad_()
    loss = SupConLoss(group=group, exchange=EXCHANGE[0])(mine, share(ALONE, rank))
    return with_gradients(loss, my_images=mine)


@case
def nt_xent_loss(group, rank):
    first, second = (share(rows(10, seed), rank).clone().requires_grad_() for seed in (1, 2))
    loss = NTXentLoss(group=group, exchange=EXCHANGE[0])(first, second)
    return with_gradients(loss, my_images=first, my_texts=second)


@case
def a_scale_alone(group, rank):
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    mine, my_texts = share(rows(10, 1), rank), share(rows(10, 2), rank)
    loss = ops.mpm_nce(mine, my_texts, logit_scale=scale, group=group, exchange=EXCHANGE[0])
    return with_gradients(loss, scale=scale)


@case
def clip_loss(group, rank):
    mine = share(rows(10, 1), rank).clone().requires_grad_()
    my_texts = share(rows(10, 2), rank).clone().requires_grad_()
    ranks = {} if rank is None else {"rank": rank, "world_size": WORLD}
    loss = CLIPLoss(local_loss=True, gather_with_grad=True, **ranks, exchange=EXCHANGE[0])(
        mine, my_texts, 5.0
    )
    return with_gradients(loss, my_images=mine, my_texts=my_texts)


@case
def mpm_nce_loss(group, rank):
    mine = share(rows(10, 1), rank).clone().requires_grad_()
    labels = share(torch.tensor([0, 1, 1, 2, 0, 2, 0, 1, 2, 2]), rank)
    loss = MPMNCELoss(group=group, exchange=EXCHANGE[0])(mine, mine, 5.0, labels, labels)
    return with_gradients(loss, my_images=mine)


def ringed(case: Case) -> Case:
    """The case with exchange="ring", in tiles of a few pairs."""

    def run(group: Any, rank: int | None) -> dict[str, Tensor]:
        tile, _mpm_nce_ring.TILE, EXCHANGE[0] = _mpm_nce_ring.TILE, 5, "ring"
        try:
            return case(group, rank)
        finally:
            _mpm_nce_ring.TILE, EXCHANGE[0] = tile, "gather"

    return run


CASES |= {f"{name}, by ring": ringed(case) for name, case in CASES.items()}


@case
def difference_vectors(group, rank):
    image, text = (share(rows(10, seed), rank).clone().requires_grad_() for seed in (1, 2))
    image0, text0 = (share(rows(10, seed), rank) for seed in (3, 4))
    mean = rows(1, 5)[0] / 10
    avl, pvl, new_mean = ops.dive_loss(image, image0, text, text0, mean, momentum=0.7, group=group)
    found = with_gradients(avl + 2 * pvl, my_images=image, my_texts=text)
    return found | {"avl": avl.detach(), "pvl": pvl.detach(), "mean": new_mean}


@case
def dive_loss_module(group, rank):
    image, text = (
        share(rows(10, seed, torch.float32), rank).clone().requires_grad_() for seed in (1, 2)
    )
    image0, text0 = (share(rows(10, seed, torch.float32), rank) for seed in (3, 4))
    module = DiVELoss(WIDTH, group=group)
    for _ in range(2):
        avl, pvl = module(image, image0, text, text0)
    return with_gradients(avl + pvl, my_images=image, my_texts=text) | {"mean": module.mean}


def search(group: Any, rank: int | None, dtype: torch.dtype, k: int, **options: Any) -> Any:
    counts = options.pop("counts", (40, 3, 17))
    whole = rows(sum(counts), 6, dtype)
    whole[45] = whole[7]  # equal rows on different ranks
    bank: Any = share(whole, rank, counts)
    if len(bank) == 0:
        bank = None
    elif options.pop("packed", False):
        bank = ops.FeatureBank(bank)
    queries = rows(10, 7, dtype)
    queries[3] = whole[7]
    queries[5, 2] = torch.nan
    distances, indices = ops.knn(share(queries, rank), bank, k, group=group, **options)
    kth = ops.kth_distance(share(queries, rank), bank, k, group=group, **options)
    return {"my_distances": distances, "my_indices": indices, "my_kth": kth}


@case
def few_neighbours(group, rank):
    return search(group, rank, torch.float64, 2, packed=True)


@case
def more_neighbours_than_a_rank_has_rows(group, rank):
    return search(group, rank, torch.float32, 25, squared=False)


@case
def a_rank_without_rows(group, rank):
    return search(group, rank, torch.float32, 60, counts=(41, 0, 19))


@case
def recalls_of_shared_queries(group, rank):
    """Recalls of features that every rank has, each searching its blocks of queries."""
    block, retrieval._QUERIES = retrieval._QUERIES, 3
    try:
        owners = torch.arange(17).repeat_interleave(2)
        text = rows(34, 9)
        found = retrieval.recalls(rows(17, 8), text, owners, share=Share(group))
    finally:
        retrieval._QUERIES = block
    return {"recalls": torch.tensor(list(found.values()))}


@case
def recalls_of_a_shared_pass(group, rank):
    """Recalls of a model whose features the ranks share."""
    data = CaptionedDataset(
        TensorImages(rows(11, 10, torch.float32)),
        [chr(97 + i % 26) for i in range(25)],
        [i % 11 for i in range(25)],
        name="shared",
        split="val",
    )
    how = {"batch_size": 4, "share": Share(group)}
    found = retrieval.retrieve(
        Towers(), lambda texts: torch.tensor([[ord(t)] for t in texts]), data, **how
    )
    return {"recalls": torch.tensor(list(found.values.values()))}


class Towers(torch.nn.Module):
    """The parts of an open_clip model that retrieval uses."""

    def encode_image(self, images: Tensor) -> Tensor:
        return images

    def encode_text(self, tokens: Tensor) -> Tensor:
        return torch.cat([torch.sin(tokens * n) for n in range(1, WIDTH + 1)], dim=1)


class Toy:
    """A data set of random images that remembers which were read."""

    name, split, class_subset = "Toy", "val", None

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(8)
        self.images = torch.randn(count, WIDTH, generator=generator)
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.read.append(index)
        return {"image": self.images[index], "label": index % 3, "index": index}


class Stand(torch.nn.Module):
    """The parts of a Classifier that a pass over a data set uses."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(9)
        self.weight = torch.nn.Parameter(torch.randn(WIDTH, 3, generator=generator))

    def features(self, images: Tensor) -> Tensor:
        return F.normalize(images, dim=1)

    def logits(self, features: Tensor) -> Tensor:
        return features @ self.weight


SIZES = (1, 4, 11, 25)  # of data sets, in batches of 4


def passes(folder: str, group: Any) -> list[dict[str, Any]]:
    """What passes over data sets give, the last of them of image files, and what was read."""
    found = []
    for count in SIZES:
        data = Toy(count)
        outputs = collect(Stand(), data, batch_size=4, group=group)
        tensors = (outputs.features, outputs.logits, outputs.labels)
        found.append({"tensors": tensors, "read": data.read})
    files = ImageDataset(
        FileImages([Path(folder) / "pictures" / f"{i}.png" for i in range(PICTURES)]),
        [i % 3 for i in range(PICTURES)],
        classnames=["a", "b", "c"], name="files", split="val",
        transform=lambda picture: torch.tensor(picture.getpixel((0, 0))).repeat(2) / 255,
    )  # fmt: skip
    outputs = collect(Stand(), files, batch_size=4, group=group)
    tensors = (outputs.features, outputs.logits, outputs.labels)
    found.append({"tensors": tensors, "damaged": files.damaged.nonzero().flatten().tolist()})
    return found


PICTURES, DAMAGED = 301, (4, 9, 150)  # read by the second and the third rank


def draw_pictures(folder: Path) -> None:
    (folder / "pictures").mkdir()
    for i in range(PICTURES):
        path = folder / "pictures" / f"{i}.png"
        Image.new("RGB", (2, 2), (i % 256, i % 11, i % 7)).save(path)
        if i in DAMAGED:
            path.write_bytes(b"half")


WIDE = 1 << 16  # 64 rows of float32 are 16 MiB


def peaks(group: Any) -> dict[str, float]:
    """By exchange, the memory that a loss with its backward pass takes beyond what was there, in
    units of this rank's images."""
    found = {}
    for exchange in ("ring", "gather"):
        image, text = (torch.full((64, WIDE), 0.01, requires_grad=True) for _ in range(2))
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        ops.mpm_nce(image, text, group=group, exchange=exchange).backward()
        found[exchange] = (_status("VmHWM") - before) * 1024 / (image.numel() * 4)
    return found


def _status(name: str) -> int:
    """Of this process, in KiB."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{name}:")[1].split()[0])


def errors(rank: int) -> dict[str, str]:
    """What every rank is told where one of them brings something else."""
    group = dist.group.WORLD
    mine = rows(4, 1)
    labels = torch.arange(4)
    calls = {
        "width": lambda: ops.mpm_nce(*[mine[:, : 6 - rank // 2]] * 2, group=group),
        "dtype": lambda: ops.mpm_nce(*[mine.float() if rank == 1 else mine] * 2, group=group),
        "labels": lambda: ops.mpm_nce(mine, mine, *(() if rank else (labels, labels)), group=group),
        "no pair": lambda: ops.mpm_nce(mine, mine, labels, labels + 9, group=group),
        "mask": lambda: ops.mpm_nce(
            mine, mine, mask=torch.ones(4, 11, dtype=torch.bool), group=group
        ),
        "exclude_self": lambda: ops.mpm_nce(
            mine, mine, labels * 0, labels * 0, exclude_self=rank < 2, group=group
        ),
        "own pairs": lambda: ops.mpm_nce(
            mine, mine, labels + 4 * rank, labels + 4 * rank, exclude_self=True, group=group
        ),
        "margin": lambda: ops.mpm_nce(mine, mine, margin=0.1 * rank, group=group),
        "smoothing": lambda: ops.mpm_nce(mine, mine, label_smoothing=0.2 - rank / 10, group=group),
        "ignored": lambda: ops.mpm_nce(mine, mine, labels, labels, ignore_index=rank, group=group),
        "direction": lambda: ops.mpm_nce(mine, mine, symmetric=rank != 1, group=group),
        "exchange": lambda: ops.mpm_nce(
            mine, mine, exchange=("gather", "ring")[rank // 2], group=group
        ),
        "scale": lambda: ops.mpm_nce(mine, mine, logit_scale=10.0 + rank, group=group),
        "kind of scale": lambda: ops.mpm_nce(
            mine, mine, logit_scale=torch.tensor(10.0) if rank else 10.0, group=group
        ),
        "trained scale": lambda: ops.mpm_nce(
            mine, mine, logit_scale=torch.tensor(10.0, requires_grad=rank != 2), group=group
        ),
        "momentum": lambda: ops.dive_loss(
            mine, mine, mine, mine, mine[0], momentum=0.9 + rank / 100, group=group
        ),
        "normalize": lambda: ops.dive_loss(
            mine, mine, mine, mine, mine[0], normalize=rank < 2, group=group
        ),
        "gradients": lambda: ops.mpm_nce(mine.clone().requires_grad_(rank == 0), mine, group=group),
        "k": lambda: ops.knn(mine, mine, 13, group=group),
        "other k": lambda: ops.kth_distance(mine, mine, 1 + rank, group=group),
        "world size": lambda: CLIPLoss(rank=rank, world_size=2)(mine, mine, 1.0),
    }
    told = {}
    for name, call in calls.items():
        try:
            call()
            told[name] = "nothing"
        except InputError as error:
            told[name] = str(error)
    return told


def main(folder: str, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD
    )
    if os.environ.get("RANK_THAT_DIES") == str(rank):
        os._exit(3)
    found = [{name: f(dist.group.WORLD, rank) for name, f in CASES.items()} for _ in range(2)]
    group = dist.group.WORLD
    torch.save([*found, passes(folder, group), peaks(group), errors(rank)], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
