"""Images with label maps and masks, written out in the layouts that segmentation sets have."""

import json

import numpy as np
from PIL import Image

from robustft.data.digits import digits

SIDE = 72


def runs(mask):
    """COCO's uncompressed run lengths of a mask, counted pixel by pixel down the columns."""
    counts, value, length = [], False, 0
    for pixel in mask.T.reshape(-1).tolist():
        if pixel != value:
            counts.append(length)
            value, length = pixel, 0
        length += 1
    return {"size": list(mask.shape), "counts": [*counts, length]}


def write_masks(folder, stem, masks, kind, weights=None):
    """The masks of an image as .npz, .json or a folder of pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = np.ones(len(masks)) if weights is None else weights
    if kind == "npz":
        np.savez_compressed(folder / f"{stem}.npz", masks=masks, quality=weights)
    elif kind == "json":
        records = [
            {"segmentation": runs(mask), "quality": float(weight), "area": int(mask.sum())}
            for mask, weight in zip(masks, weights, strict=True)
        ]
        (folder / f"{stem}.json").write_text(json.dumps(records))
    else:
        (folder / stem).mkdir()
        for number, mask in enumerate(masks):
            picture = Image.fromarray(mask.astype(np.uint8) * 255)
            picture.save(folder / stem / f"{number}.png")


def noise(root, count, *, classes=4, masks=6, seed=0, kind="npz", first=0, bits=8):
    """root/{images,labels,masks}: `count` images of noise of different sizes with overlapping
    masks, blocks of classes, a tenth of the pixels ignored and some under no mask."""
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    found = []
    for number in range(count):
        height, width = (int(x) for x in rng.integers(20, 41, 2))
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        coarse = rng.integers(0, classes, (height // 8 + 1, width // 8 + 1))
        truth = coarse.repeat(8, 0).repeat(8, 1)[:height, :width]
        held = np.zeros((masks, height, width), dtype=bool)
        for mask in held:
            top, left = rng.integers(0, height - 8), rng.integers(0, width - 8)
            mask[top : top + rng.integers(4, 20), left : left + rng.integers(4, 20)] = True
        ignored = rng.random((height, width)) < 0.1
        none = 255 if bits == 8 else 65535
        values = np.where(ignored, none, truth + first)
        weights = rng.uniform(0.2, 1, masks)
        Image.fromarray(pixels).save(root / "images" / f"{number}.png")
        Image.fromarray(values.astype(np.uint8 if bits == 8 else np.uint16)).save(
            root / "labels" / f"{number}.png"
        )
        write_masks(root / "masks", str(number), held, kind, weights)
        found.append((pixels, np.where(ignored, -1, truth), held, weights))
    return found


def digit_scenes(root, split, count, *, seed=0):
    """root/split/{images,labels}: handwritten digits, four different ones in a scene, each within a
    disc whose pixels are the region of its class; what is around is ignored (255)."""
    data, rng = digits(split, seed), np.random.default_rng(seed)
    for name in ("images", "labels"):
        (root / split / name).mkdir(parents=True)
    y, x = np.mgrid[:24, :24] - 11.5
    disc = y**2 + x**2 < 12**2
    by_class = [np.flatnonzero(data.labels.numpy() == label) for label in range(10)]
    for number in range(count):
        pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        truth = np.full((SIDE, SIDE), 255, dtype=np.uint8)
        for place, label in enumerate(rng.permutation(10)[:4]):
            top, left = (int(36 * x + rng.integers(0, 12)) for x in divmod(place, 2))
            row = int(rng.choice(by_class[label]))
            part = (slice(top, top + 24), slice(left, left + 24))
            pixels[part] = np.where(disc[..., None], np.asarray(data.images[row]), pixels[part])
            truth[part][disc] = label
        Image.fromarray(pixels).save(root / split / "images" / f"{number:04d}.png")
        Image.fromarray(truth).save(root / split / "labels" / f"{number:04d}.png")


def registered(root, each=3):
    """ADE20K, Pascal Context, Pascal VOC and COCO-Stuff as they are unpacked or converted, with
    masks for their test images: halves of each image, left and right in classes of their own."""
    ade = root / "ADEChallengeData2016"
    for split in ("training", "validation"):
        for name in range(each):
            _halves(ade / f"images/{split}/{name}.jpg", ade / f"annotations/{split}/{name}.png", 1)
    names = [f"{n}\t0.1\t5\t5\t0\tclass {n}" + ", also this" * (n == 2) for n in range(1, 151)]
    info = "\n".join(["Idx\tRatio\tTrain\tVal\tStuff\tName", *names])
    (ade / "objectInfo150.txt").write_text(info + "\n")
    _masks(ade / "masks/validation", each)
    for year, labels, lists in (
        (2010, "SegmentationClassContext", "SegmentationContext"),
        (2012, "SegmentationClass", "Segmentation"),
    ):
        voc = root / f"VOCdevkit/VOC{year}"
        for name in range(2 * each):
            _halves(voc / f"JPEGImages/{name}.jpg", voc / labels / f"{name}.png", 1, palette=True)
        (voc / "JPEGImages" / "unlabelled.jpg").write_bytes(b"")
        (voc / "ImageSets" / lists).mkdir(parents=True)
        for split, some in (("val", range(each)), ("train", range(each, 2 * each))):
            stems = "".join(f"{name}\n" for name in some)
            (voc / "ImageSets" / lists / f"{split}.txt").write_text(stems)
        _masks(voc / "masks", each)
    stuff = root / "coco_stuff164k"
    for split in ("train2017", "val2017"):
        for name in range(each):
            label = stuff / f"annotations/{split}/{name}_labelTrainIds.png"
            _halves(stuff / f"images/{split}/{name}.jpg", label, 0)


def _halves(picture, label, first, palette=False):
    """An image of 16 × 24 pixels whose left half is the first class and the right one the second,
    with a column between them that is none."""
    for path in (picture, label):
        path.parent.mkdir(parents=True, exist_ok=True)
    values = np.full((16, 24), first, dtype=np.uint8)
    values[:, 12:] = first + 1
    values[:, 12] = 0 if first and not palette else 255
    Image.fromarray((values * 60)[..., None].repeat(3, 2)).save(picture)
    image = Image.fromarray(values, mode="P" if palette else "L")
    if palette:
        image.putpalette([255 - x // 3 for x in range(768)])
    image.save(label)


def _masks(folder, count):
    left = np.zeros((16, 24), dtype=bool)
    left[:, :12] = True
    for name in range(count):
        write_masks(folder, str(name), np.stack([left, ~left, left | ~left]), "npz")
