"""Miniature copies of public data sets, written out as people have them: few and tiny images."""

import io
import json
import pickle
import tarfile
from functools import cache

import numpy as np
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


def cifar(root, each=2):
    """CIFAR-10, 10.1, 10.2 and STL-10 as they are unpacked; pixels tell the label."""
    batches = root / "cifar-10-batches-py"
    batches.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        labels = list(range(10)) * each
        rows = np.stack([np.full(3072, 10 * label, np.uint8) for label in labels])
        batch = {b"data": rows, b"labels": labels, b"batch_label": b"x"}
        (batches / name).write_bytes(pickle.dumps(batch, protocol=2))
    (root / "CIFAR-10.1").mkdir()
    labels = np.arange(10).repeat(each)
    pixels = (10 * labels).astype(np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8)
    np.save(root / "CIFAR-10.1" / "cifar10.1_v6_data.npy", pixels)
    np.save(root / "CIFAR-10.1" / "cifar10.1_v6_labels.npy", labels.astype(np.int32))
    (root / "CIFAR-10.2").mkdir()
    held = {"images": pixels, "labels": labels}
    np.save(root / "CIFAR-10.2" / "cifar102_test.npy", held, allow_pickle=True)
    stl = root / "stl10_binary"
    stl.mkdir()
    names = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
    (stl / "class_names.txt").write_text("\n".join(names) + "\n")
    # A picture whose left half is bright, to tell rows from columns: column by column on disk.
    picture = np.zeros((3, 96, 96), np.uint8)
    picture[:, :48] = 255
    images = np.stack([picture] * len(names) * each)
    images.tofile(stl / "test_X.bin")
    np.tile(np.arange(1, 11, dtype=np.uint8), each).tofile(stl / "test_y.bin")


def iwildcam(root, each=2, classes=4):
    home = root / "iwildcam_v2.0"
    lines, number = ["split,y,filename,location_remapped"], 0
    for split in ("train", "val", "test", "id_val", "id_test"):
        for label in range(classes):
            for camera in range(each):
                lines.append(f"{split},{label},{number}.jpg,{camera}")
                _write_one(home / "train" / f"{number}.jpg", label)
                number += 1
    (home / "metadata.csv").write_text("\n".join(lines) + "\n")
    names = "".join(f"{label},canis_{label}\n" for label in range(classes))
    (home / "categories.csv").write_text("y,name\n" + names)


FMOW_REGIONS = {"FRA": "Europe", "KEN": "Africa", "USA": "Americas"}


def fmow(root, categories=("airport", "zoo_park")):
    """One image a split, period, category and country, of which XKX is not in the mapping."""
    home = root / "fmow_v1.1"
    lines, number = ["split,category,country_code,timestamp"], 0
    for split in ("seq", "train", "val", "test"):
        for year in (2010, 2013, 2015, 2016, 2017):
            for label, category in enumerate(categories):
                for country in (*FMOW_REGIONS, "XKX"):
                    lines.append(f"{split},{category},{country},{year}-01-01T00:00:00Z")
                    _write_one(home / "images" / f"rgb_img_{number}.png", label)
                    number += 1
    (home / "rgb_metadata.csv").write_text("\n".join(lines) + "\n")
    mapping = "".join(f"{code},{region}\n" for code, region in FMOW_REGIONS.items())
    (home / "country_code_mapping.csv").write_text("alpha-3,region\n" + mapping)


def _write_one(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(number))


COOP = {
    "caltech101": ("caltech-101", "Caltech101", "101_ObjectCategories"),
    "oxford-pets": ("oxford_pets", "OxfordPets", "images"),
    "stanford-cars": ("stanford_cars", "StanfordCars", ""),
    "flowers102": ("oxford_flowers", "OxfordFlowers", "jpg"),
    "food101": ("food-101", "Food101", "images"),
    "sun397": ("sun397", "SUN397", "SUN397"),
    "dtd": ("dtd", "DescribableTextures", "images"),
    "eurosat": ("eurosat", "EuroSAT", "2750"),
    "ucf101": ("ucf101", "UCF101", "UCF-101-midframes"),
}


def coop(root, name, classes=("AnnualCrop", "big_cat", "sea"), each=2):
    """One of CoOp's folders with its split file; a class's images tell its label."""
    folder, split_name, images = COOP[name]
    splits, number = {}, 0
    for split, count in (("train", 2 * each), ("val", each), ("test", each)):
        splits[split] = []
        for label, class_name in enumerate(classes):
            for _ in range(count):
                path = f"{class_name}/{number}.jpg"
                _write_one(root / folder / images / path, label)
                splits[split].append([path, label, class_name])
                number += 1
    write_json(root / folder / f"split_zhou_{split_name}.json", splits)


def aircraft(root, folder="fgvc_aircraft", variants=("707-320", "A318 mini", "Yak-42")):
    home = root / folder
    home.mkdir(parents=True)
    (home / "variants.txt").write_text("".join(f"{v}\n" for v in variants))
    number = 0
    for split in ("train", "val", "test"):
        lines = []
        for label, variant in enumerate(variants):
            for _ in range(2):
                _write_one(home / "images" / f"{number:07d}.jpg", label)
                lines.append(f"{number:07d} {variant}\n")
                number += 1
        (home / f"images_variant_{split}.txt").write_text("".join(lines))


def zero_shot_suite(root):
    """The ten sets in CoOp's layout."""
    for name in COOP:
        coop(root, name)
    aircraft(root)


def torchvision_set(root, name, classes=("a_cat", "b_dog", "c_fox"), each=2):
    """A set as torchvision unpacks it, so far as its own reader looks at it; labels as colours."""
    rows = [(one, label, i) for label, one in enumerate(classes) for i in range(1, each + 1)]
    for path, label in _TORCHVISION[name](root, classes, rows):
        _write_one(root / path, label)


def _caltech(root, classes, rows):
    home = root / "caltech101"
    (home / "101_ObjectCategories" / "BACKGROUND_Google").mkdir(parents=True)
    (home / "Annotations").mkdir()
    return [(home / f"101_ObjectCategories/{c}/image_{i:04d}.jpg", k) for c, k, i in rows]


def _eurosat(root, classes, rows):
    return [(f"eurosat/2750/{c}/{c}_{i}.jpg", label) for c, label, i in rows]


def _sun(root, classes, rows):
    (root / "SUN397").mkdir()
    lines = "".join(f"/{c[0]}/{c}\n" for c in classes)
    (root / "SUN397" / "ClassName.txt").write_text(lines)
    return [(f"SUN397/{c[0]}/{c}/sun_{i}.jpg", label) for c, label, i in rows]


def _dtd(root, classes, rows):
    (root / "dtd/dtd/labels").mkdir(parents=True)
    files = []
    for split in ("train", "val", "test"):
        own = [(f"{c}/{split}_{i}.jpg", label) for c, label, i in rows]
        files += [(f"dtd/dtd/images/{path}", label) for path, label in own]
        lines = "".join(f"{path}\n" for path, _ in own)
        (root / f"dtd/dtd/labels/{split}1.txt").write_text(lines)
    return files


def _food(root, classes, rows):
    files = []
    for split in ("train", "test"):
        held = {c: [] for c in classes}
        for c, label, i in rows:
            held[c].append(f"{c}/{split}{i}")
            files.append((f"food-101/images/{c}/{split}{i}.jpg", label))
        write_json(root / f"food-101/meta/{split}.json", held)
    return files


def _pets(root, classes, rows):
    home = root / "oxford-iiit-pet"
    (home / "annotations").mkdir(parents=True)
    files = []
    for split in ("trainval", "test"):
        lines = "".join(f"{c}_{split}{i} {label + 1} 1 1\n" for c, label, i in rows)
        (home / f"annotations/{split}.txt").write_text(lines)
        files += [(home / f"images/{c}_{split}{i}.jpg", label) for c, label, i in rows]
    return files


def _cars(root, classes, rows):
    from scipy.io import savemat

    home = root / "stanford_cars"
    (home / "devkit").mkdir(parents=True)
    savemat(home / "devkit/cars_meta.mat", {"class_names": np.array(classes, dtype=object)})
    files = []
    tables = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
    for split, where in tables.items():
        held = [(f"{c}{i}.jpg", label + 1) for c, label, i in rows]
        table = np.array(held, dtype=[("fname", object), ("class", np.uint8)])
        savemat(home / where, {"annotations": table})
        files += [(home / f"cars_{split}/{path}", label - 1) for path, label in held]
    return files


def _flowers(root, classes, rows):
    """One image a class and split, numbered from 1 on."""
    from scipy.io import savemat

    home = root / "flowers-102"
    home.mkdir()
    labels = list(range(len(classes))) * 3
    savemat(home / "imagelabels.mat", {"labels": np.array(labels) + 1})
    numbers = np.arange(1, len(labels) + 1).reshape(3, -1)
    keys = ("trnid", "valid", "tstid")
    savemat(home / "setid.mat", dict(zip(keys, numbers, strict=True)))
    return [(home / f"jpg/image_{n:05d}.jpg", label) for n, label in enumerate(labels, 1)]


_TORCHVISION = {
    "caltech101": _caltech,
    "oxford-pets": _pets,
    "stanford-cars": _cars,
    "flowers102": _flowers,
    "food101": _food,
    "sun397": _sun,
    "dtd": _dtd,
    "eurosat": _eurosat,
}


def karpathy(root, name, images, captions=6):
    """Karpathy's JSON file with one image a split (two in train) and more captions than five."""
    listed = []
    for number, split in enumerate(("train", "restval", "train", "val", "test")):
        filepath, filename = (
            ("val2014", f"{number}.jpg") if name == "coco" else ("", f"{number}.jpg")
        )
        _write_one(root / images / filepath / filename, number)
        sentences = [{"raw": f" image {number}, caption {i}. "} for i in range(captions)]
        image = {"filename": filename, "split": split, "sentences": sentences}
        listed.append(image | ({"filepath": filepath} if filepath else {}))
    write_json(root / name / f"dataset_{name}.json", {"images": listed})


def captioned_glyphs(root, name, counts, each=3):
    """Karpathy's JSON file of COCO or Flickr30k with `counts` glyphs a split, each of which the
    tiny model can tell and has `each` captions."""
    from robustft.data.world import reference_pairs

    folder = root / name / ("." if name == "coco" else "flickr30k-images")
    folder.mkdir(parents=True, exist_ok=True)
    drawn = reference_pairs(sum(counts.values()), seed=len(name))
    splits = [split for split, count in counts.items() for _ in range(count)]
    listed = []
    for number, split in enumerate(splits):
        drawn.images[number].save(folder / f"{number}.png")
        said = drawn.captions[number]
        sentences = [{"raw": text} for text in (said, f"a photo of {said}", f"{said} here")[:each]]
        listed.append({"filename": f"{number}.png", "split": split, "sentences": sentences})
    write_json(root / name / f"dataset_{name}.json", {"images": listed})


def shards(folder, count, each=3, *, captions="txt"):
    """Tar shards as img2dataset writes them: jpg, txt and json of each sample; the image's colour
    tells its number, and so does its caption."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(count):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for i in range(each):
                number = shard * each + i
                members = {"jpg": picture(number), "json": json.dumps({"key": number}).encode()}
                if captions == "json":
                    members["json"] = json.dumps({"caption": f"picture {number}"}).encode()
                if captions == "txt":
                    members["txt"] = f"picture {number}".encode()
                if captions == "lines":
                    members["txt"] = f"picture {number}\n\nthe colour {number}\n".encode()
                for suffix, held in members.items():
                    info = tarfile.TarInfo(f"{shard:05d}{i:04d}.{suffix}")
                    info.size = len(held)
                    tar.addfile(info, io.BytesIO(held))


def imagenet_c(root, corruptions, *, nested=True, folders=3, each=1):
    """ImageNet-C's folders of some corruptions, unpacked under their archives' names or not; an
    image's colour tells its label and its severity."""
    for corruption, archive in corruptions.items():
        home = root / (f"{archive}/{corruption}" if nested else corruption)
        for severity in range(1, 6):
            for label, wnid in list(enumerate(wnids()))[:folders]:
                numbers = [10 * label + severity] * each
                write_images(home / str(severity) / wnid, numbers, suffix=".JPEG")


def breeds(root):
    """ImageNet's first 24 classes under a hierarchy of three nodes at level 4, with 9, 8 and 7 of
    them; an image's colour tells its class in ImageNet."""
    classes = wnids()[:24]
    imagenet(root, "imagenet/train", each=2, folders=classes)
    imagenet(root, "imagenet/val", folders=classes)
    edges = ["n00001740 one", "one two", "two three"]
    for node, (start, end) in {"nodeA": (0, 9), "nodeB": (9, 17), "nodeC": (17, 24)}.items():
        edges += [f"three {node}", *(f"{node} {wnid}" for wnid in classes[start:end])]
    (root / "breeds").mkdir()
    (root / "breeds" / "class_hierarchy.txt").write_text("\n".join(edges) + "\n")
    (root / "breeds" / "node_names.txt").write_text("nodeA\tfirst of A, second of A\n")
