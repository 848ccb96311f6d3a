"""Miniature copies of public data sets, written out as people have them: few and tiny images."""

import io
import json
from functools import cache

from PIL import Image

from robustft.data.registry.imagenet import imagenet_classes, wnids

SIZE = 8
# Of ObjectNet's mapping: folder, name, and the labels in ImageNet that the name stands for.
OBJECTNET = (
    ("alarm_clock", "Alarm clock", (409, 530)),
    ("backpack", "Backpack", (414,)),
    ("banana", "Banana", (954,)),
)


@cache
def picture(number, size=SIZE, border=0):
    """The bytes of a PNG in one colour that tells `number`, with a red border."""
    image = Image.new("RGB", (size + 2 * border,) * 2, (255, 0, 0))
    image.paste(colour(number), (border, border, size + border, size + border))
    held = io.BytesIO()
    image.save(held, "PNG")
    return held.getvalue()


def colour(number):
    return (number * 7 % 256, number * 31 % 256, 40 + number * 3 % 200)


def write_images(folder, numbers, *, border=0, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for place, number in enumerate(numbers):
        (folder / f"{place:03d}{suffix}").write_bytes(picture(number, border=border))


def imagenet(root, split, each=1, folders=None, *, subset="imagenet", numbered=False):
    """Class folders of ImageNet or a shift of it; an image's colour tells its label."""
    place = {wnid: label for label, wnid in enumerate(imagenet_classes().classes)}
    for wnid in folders or wnids(subset):
        label = place[wnid]
        name = str(label) if numbered else wnid
        write_images(root / split / name, [label] * each, suffix=".JPEG")


def objectnet(root, each=2):
    """ObjectNet with four folders, of which one has no class in ImageNet."""
    for folder, _, labels in OBJECTNET:
        write_images(root / "images" / folder, [labels[0]] * each, border=2)
    write_images(root / "images" / "air_freshener", [1] * each, border=2)
    mappings = root / "mappings"
    mappings.mkdir()
    folders = {folder: name for folder, name, _ in OBJECTNET} | {"air_freshener": "Air freshener"}
    names = [f"class of label {label}" for label in range(1000)]
    # Ids of the 2012 challenge run in an order of their own: backwards here.
    write_json(mappings / "folder_to_objectnet_label.json", folders)
    write_json(
        mappings / "objectnet_to_imagenet_1k.json",
        {name: "; ".join(names[label] for label in labels) for _, name, labels in OBJECTNET},
    )
    write_json(
        mappings / "pytorch_to_imagenet_2012_id.json", {str(n): 999 - n for n in range(1000)}
    )
    lines = "\n".join(reversed(names))
    (mappings / "imagenet_to_label_2012_v2").write_text(lines + "\n")


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


IMAGENET_LAYOUTS = {
    "wise-ft": {
        "train": "imagenet/train",
        "val": "imagenet/val_in_folder",
        "v2": "ImageNetV2-matched-frequency",
        "r": "imagenet-r",
        "a": "imagenet-a",
        "sketch": "sketch",
        "objectnet": "objectnet-1.0",
    },
    "coop": {
        "train": "imagenet/images/train",
        "val": "imagenet/images/val",
        "v2": "imagenetv2/imagenetv2-matched-frequency-format-val",
        "r": "imagenet-rendition/imagenet-r",
        "a": "imagenet-adversarial/imagenet-a",
        "sketch": "imagenet-sketch/images",
        "objectnet": "objectnet-1.0",
    },
    "clip_benchmark": {
        "train": "imagenet1k/train",
        "val": "imagenet1k/val",
        "v2": "imagenetv2/ImageNetV2-matched-frequency",
        "r": "imagenet-r",
        "a": "imagenet-a",
        "sketch": "imagenet_sketch",
        "objectnet": "objectnet",
    },
}


def imagenet_suite(root, layout):
    """The six sets of the ImageNet suite in the layout of a code base, and two training images a
    class."""
    at = IMAGENET_LAYOUTS[layout]
    imagenet(root, at["train"], each=2)
    imagenet(root, at["val"])
    imagenet(root, at["v2"], numbered=True)
    imagenet(root, at["r"], subset="imagenet_r")
    imagenet(root, at["a"], subset="imagenet_a")
    imagenet(root, at["sketch"])
    objectnet(root / at["objectnet"])
