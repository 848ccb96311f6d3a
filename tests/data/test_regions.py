"""Segmentation sets: masks in every form, label maps, crops, counts, and every refusal."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from robustft.cli.app import run
from robustft.data import load_dataset
from robustft.data.classes import LabelSpace
from robustft.data.crops import Crop, MaskedCrops
from robustft.data.masks import decode_runs, open_masks, read_label_map
from robustft.data.regions import RegionDataset
from robustft.data.registry import REGISTRY
from robustft.errors import InputError, InputWarning
from robustft.evaluate import collect
from robustft.evaluate.roles import make_entry
from robustft.evaluate.segmentation import segment
from robustft.models import Classifier, load_clip
from tests import scenes

SET = """
rooms:
  title: Rooms
  reader: regions
  classnames: [wall, floor, bed, lamp]
  weight: quality
  test: {at: [rooms], masks_in: masks, images: 3, classes: 4}
own:
  title: Own
  reader: regions
  classnames: [wall, floor, bed, lamp]
  train: {at: [rooms]}
  test: {at: [rooms]}
"""


@pytest.fixture(autouse=True)
def _as_before(monkeypatch, tmp_path):
    list(REGISTRY)
    monkeypatch.setattr(REGISTRY, "_sets", dict(REGISTRY._sets))
    monkeypatch.setattr("robustft.cache.folder", lambda: tmp_path / "cache")


def register(root, text=SET):
    (root / "sets.yaml").write_text(text)
    REGISTRY.register_file(root / "sets.yaml")


def majority(truth, mask):
    labels = truth[mask & (truth >= 0)]
    return max(sorted(set(labels.tolist())), key=labels.tolist().count)


@pytest.mark.parametrize("kind", ["npz", "json", "pictures"])
def test_regions_have_the_class_of_most_of_their_pixels(tmp_path, kind):
    found = scenes.noise(tmp_path / "rooms", 3, kind=kind)
    register(tmp_path, SET if kind != "pictures" else SET.replace("weight: quality", ""))
    data = load_dataset(f"rooms@{tmp_path}", "test")
    assert isinstance(data, RegionDataset)
    expected, weights = [], []
    for _, truth, masks, quality in found:
        for mask, weight in zip(masks, quality, strict=True):
            if (truth[mask] >= 0).any():
                expected.append(majority(truth, mask))
                weights.append(1.0 if kind == "pictures" else weight)
    assert data.labels.tolist() == expected
    assert data.weight.tolist() == pytest.approx(weights)
    for k, (_, truth, _, _) in enumerate(found):
        assert np.array_equal(data.truth(k).numpy(), truth)
    assert data.held == f"{len(expected)} regions of 3 images"


def test_the_ground_truths_own_regions_are_one_a_class(tmp_path):
    found = scenes.noise(tmp_path / "rooms", 3)
    register(tmp_path)
    data = load_dataset(f"own@{tmp_path}", "test")
    there = [sorted(set(truth[truth >= 0].tolist())) for _, truth, _, _ in found]
    assert data.labels.tolist() == [label for labels in there for label in labels]
    for row in range(len(data)):
        truth = found[int(data.scene[row])][1]
        assert np.array_equal(data.mask(row).numpy(), truth == int(data.labels[row]))


def test_a_crop_is_the_box_with_the_background_filled_and_square(tmp_path):
    pixels = np.arange(10 * 12 * 3, dtype=np.uint8).reshape(10, 12, 3)
    mask = np.zeros((10, 12), dtype=bool)
    mask[2:4, 5:11] = True
    mask[2, 5] = False
    plain = np.asarray(Crop(square=False)(Image.fromarray(pixels), mask))
    assert plain.shape == (2, 6, 3)
    assert plain[0, 0].tolist() == [123, 117, 104], "CLIP's mean, 255 · (0.481, 0.458, 0.408)"
    assert np.array_equal(plain.reshape(-1, 3)[1:], pixels[2:4, 5:11].reshape(-1, 3)[1:])
    wide = np.asarray(Crop(expand=2.0, square=False, fill=(0, 0, 0))(Image.fromarray(pixels), mask))
    assert wide.shape == (4, 10, 3), "1 to 5 and 2 to 14, which the image ends at 12"
    assert np.array_equal(wide[1:3, 4:9], pixels[2:4, 6:11])
    assert wide.sum() == pixels[mask].sum()
    assert Crop()(Image.fromarray(pixels), mask).size == (6, 6)
    for wrong in ({"expand": 0.5}, {"fill": (0, 0)}, {"fill": (0, 0, 256)}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            Crop(**wrong)


def test_run_lengths_are_cocos():
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (7, 5), (13, 4)):
        mask = rng.random(shape) < 0.5
        assert np.array_equal(decode_runs(scenes.runs(mask)["counts"], shape), mask)
    with pytest.raises(InputError, match="got 5 pixels, expected 2 × 3"):
        decode_runs([2, 3], (2, 3))


def test_compressed_run_lengths_and_sa_1bs_form_are_read_by_pycocotools(tmp_path):
    coco = pytest.importorskip("pycocotools.mask")
    masks = np.random.default_rng(0).random((3, 9, 11)) < 0.5
    encoded = [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    records = [
        {"segmentation": {**x, "counts": x["counts"].decode()}, "predicted_iou": 0.1 * n}
        for n, x in enumerate(encoded)
    ]
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"image": {}, "annotations": records}))
    found = open_masks(path, "predicted_iou")
    assert all(np.array_equal(found.read(n), mask) for n, mask in enumerate(masks))
    assert found.weights.tolist() == pytest.approx([0.0, 0.1, 0.2])


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_label_maps_of_16_bits_and_palettes_are_numbers(tmp_path, name):
    values = np.array([[0, 1, 846], [300, 65535, 7]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / name)
    assert np.array_equal(read_label_map(tmp_path / name), values)
    palette = Image.fromarray(np.array([[0, 20, 255]], dtype=np.uint8), mode="P")
    palette.putpalette([255 - x // 3 for x in range(768)])
    palette.save(tmp_path / "p.png")
    assert read_label_map(tmp_path / "p.png").tolist() == [[0, 20, 255]]


def test_sixteen_bits_and_a_first_class_of_one(tmp_path):
    found = scenes.noise(tmp_path / "rooms", 3, bits=16, first=1)
    text = SET.replace("reader: regions", "reader: regions\n  first: 1\n  ignore: 65535")
    register(tmp_path, text)
    data = load_dataset(f"own@{tmp_path}", "test")
    assert np.array_equal(data.truth(2).numpy(), found[2][1])


def test_synonyms_are_one_class_and_a_tables_column_names_them(tmp_path):
    scenes.noise(tmp_path / "rooms", 3)
    (tmp_path / "rooms" / "info.txt").write_text(
        "Idx\tRatio\tName\n1\t.1\twall\n2\t.1\tfloor, flooring\n3\t.1\tbed\n4\t.1\tlamp, light\n"
    )
    register(tmp_path, SET.replace("[wall, floor, bed, lamp]", "info.txt\n  synonyms: ','"))
    data = load_dataset(f"own@{tmp_path}", "test")
    assert data.classnames == ["wall", "floor", "flooring", "bed", "lamp", "light"]
    assert data.merged == [[0], [1, 2], [3], [4, 5]]
    assert data.class_subset.tolist() == [0, 1, 3, 4]
    assert set(data.labels.tolist()) == {0, 1, 3, 4}
    assert set(data.truth(0).unique().tolist()) <= {-1, 0, 1, 3, 4}


def test_validation_is_carved_by_whole_images_and_subsets_keep_their_scenes(tmp_path):
    scenes.noise(tmp_path / "rooms", 12)
    register(tmp_path)
    train, val = (load_dataset(f"own@{tmp_path}", s, val_fraction=0.25) for s in ("train", "val"))
    assert (len(train.scenes), len(val.scenes)) == (9, 3)
    assert not set(train.scenes) & set(val.scenes)
    for row in range(len(val)):
        assert val.crops.pictures[row] == val.scenes[int(val.scene[row])].picture
        truth = val.truth(int(val.scene[row]))
        assert torch.equal(val.mask(row), truth == val.labels[row])


def test_the_index_is_kept_until_a_file_changes(tmp_path):
    from robustft.data import regions

    scenes.noise(tmp_path / "rooms", 2)
    register(tmp_path, SET.replace("images: 3", "images: 2"))
    first = load_dataset(f"rooms@{tmp_path}", "test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regions, "_regions", None)
        again = load_dataset(f"rooms@{tmp_path}", "test")
    assert again.labels.tolist() == first.labels.tolist()
    assert again.weight.tolist() == first.weight.tolist()
    Image.fromarray(np.zeros_like(read_label_map(first.scenes[0].truth), dtype=np.uint8)).save(
        first.scenes[0].truth
    )
    changed = load_dataset(f"rooms@{tmp_path}", "test")
    assert set(changed.labels[changed.scene == 0].tolist()) == {0}


def test_a_picture_of_a_mask_that_is_drawn_anew_is_seen(tmp_path):
    scenes.noise(tmp_path / "rooms", 2, kind="pictures")
    register(tmp_path, SET.replace("images: 3", "images: 2").replace("weight: quality", ""))
    before = load_dataset(f"rooms@{tmp_path}", "test")
    identity = before.images.identity()
    picture = tmp_path / "rooms" / "masks" / "0" / "0.png"
    folder = picture.parent.stat()
    other = np.zeros_like(np.asarray(Image.open(picture)))
    other[-3:, -3:] = 255
    Image.fromarray(other).save(picture)
    assert picture.parent.stat().st_mtime_ns == folder.st_mtime_ns, "written in place"
    after = load_dataset(f"rooms@{tmp_path}", "test")
    assert int(after.mask(0).sum()) == 9
    assert int(after.labels[0]) == majority(after.truth(0).numpy(), other > 0)
    assert before.images.identity() != identity


def test_what_identifies_crops_is_the_files_the_masks_and_the_cut(tmp_path):
    scenes.noise(tmp_path / "rooms", 3)
    register(tmp_path)
    crops = load_dataset(f"own@{tmp_path}", "test").images
    before = crops.identity()
    assert crops.take(range(len(crops))).identity() == before
    assert crops.take([1, 0]).identity() != crops.take([0, 1]).identity()
    wider = MaskedCrops(crops.pictures, crops.masks, crops.numbers, Crop(expand=1.5))
    assert wider.identity() != before
    Image.new("RGB", (99, 99)).save(crops.pictures[0])
    assert crops.identity() != before


def test_a_damaged_image_is_left_out_with_its_pixels(tmp_path):
    found = scenes.noise(tmp_path / "rooms", 110, classes=2, masks=0)
    register(tmp_path, SET.replace("wall, floor, bed, lamp", "wall, floor"))
    clip = load_clip("robustft-tiny", "glyphs")
    data = load_dataset(f"own@{tmp_path}", "test").with_transform(clip.preprocess_val)
    data.scenes[7].picture.write_text("x")
    with pytest.warns(InputWarning, match="could not be read, so left out"):
        outputs = collect(Classifier.zero_shot(clip, data.classnames, "photo"), data)
    assert len(outputs) == len(data) - int((data.scene == 7).sum())
    assert outputs.labels.tolist() == data.labels[outputs.index].tolist()
    confusion = segment(data, outputs.logits, rows=outputs.index)
    gone = int(data.scenes[7].picture.stem)
    pixels = [int((truth >= 0).sum()) for _, truth, _, _ in found]
    assert int(confusion.sum()) == sum(pixels) - pixels[gone]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: (r / "masks/1.npz").unlink(),
            "1 of 3 images lack a file, the first is .*masks/1",
        ),
        (lambda r: (r / "labels/1.png").unlink(), "the first is .*labels/1.png"),
        (lambda r: Image.new("RGB", (9, 9)).save(r / "labels/1.png"), "picture of the mode RGB"),
        (
            lambda r: Image.new("L", (9, 9), 7).save(r / "labels/1.png"),
            "got the value 7, expected 0",
        ),
        (lambda r: Image.new("L", (9, 9)).save(r / "labels/1.png"), "expected 9 × 9"),
        (
            lambda r: Image.fromarray(np.full((9, 9), 70000, np.int32)).save(
                r / "labels/1.png", "TIFF"
            ),
            "got the value 70000",
        ),
        (lambda r: (r / "labels/1.png").write_text("x"), "not a label map"),
        (lambda r: (r / "masks/1.npz").write_text("x"), "not an .npz of masks"),
        (
            lambda r: np.savez(r / "masks/1.npz", masks=np.zeros((2, 3)), quality=[1]),
            "expected bool",
        ),
        (lambda r: np.savez(r / "masks/1.npz", masks=np.array([None])), "not an .npz of masks"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, change, message):
    scenes.noise(tmp_path / "rooms", 3)
    change(tmp_path / "rooms")
    register(tmp_path)
    with pytest.raises(InputError, match=message):
        load_dataset(f"rooms@{tmp_path}", "test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{}]", "expected records with run lengths"),
        ('[{"segmentation": {"size": [2, 2], "counts": [9]}, "quality": 1}]', "mask 0: counts: "),
        ('[{"segmentation": {"size": [2, 2], "counts": [4]}, "quality": -1}]', "weights: expected"),
    ],
)
def test_wrong_records_are_named(tmp_path, text, message):
    scenes.noise(tmp_path / "rooms", 3, kind="json")
    (tmp_path / "rooms/masks/1.json").write_text(text)
    register(tmp_path)
    with pytest.raises(InputError, match=message):
        load_dataset(f"rooms@{tmp_path}", "test")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("weight: quality", "first: -1", "first: got -1"),
        ("weight: quality", "ignore: [x]", "ignore: got 'x'"),
        ("weight: quality", "assembly: mean", "assembly: got 'mean', expected one of sum, highest"),
        ("weight: quality", "fill: 3", "rooms@"),
        ("masks_in: masks", "masks_in: other", "no folder .*other, expected masks of each image"),
        ("masks_in: masks", "images_in: other", "no folder .*other, expected images"),
        ("classnames: [wall, floor, bed, lamp]", "", "classnames: got none"),
        ("classes: 4", "classes: 5", "got 4 classes, expected 5"),
        ("images: 3", "images: 9", "got 3 images, expected 9"),
    ],
)
def test_wrong_options_are_named(tmp_path, old, new, message):
    scenes.noise(tmp_path / "rooms", 3)
    register(tmp_path, SET.replace(old, new))
    with pytest.raises(InputError, match=message):
        load_dataset(f"rooms@{tmp_path}", "test")


@pytest.mark.parametrize(
    ("name", "classes", "first"),
    [
        ("ade20k-150", 150, ["class 1", "class 2", "also this"]),
        ("pascal-context-59", 59, ["aeroplane", "bicycle", "bird"]),
        ("voc2012-20", 20, ["aeroplane", "bicycle", "bird"]),
        ("coco-stuff-171", 171, ["person", "bicycle", "car"]),
    ],
)
def test_the_registered_sets_are_read_in_their_layouts(tmp_path, name, classes, first):
    scenes.registered(tmp_path)
    train, test = (load_dataset(f"partial:{name}@{tmp_path}", split) for split in ("train", "test"))
    assert train.labels.tolist() == [0, 1] * 2, "one of three images is carved for validation"
    masked = name != "coco-stuff-171"
    assert test.labels.tolist() == ([0, 1, 0] * 3 if masked else [0, 1] * 3)
    called = test.classnames if test.class_subset is None else test.class_subset
    assert (len(called), test.classnames[:3]) == (classes, first)
    truth = test.truth(0)
    assert (truth[:, :12] == 0).all()
    assert (truth[:, 12] == -1).all()
    assert (truth[:, 13:] == 1).all()
    if masked:
        own = load_dataset(f"partial:{name}-oracle@{tmp_path}", "test")
        assert own.labels.tolist() == [0, 1] * 3
        assert own[0]["image"].size == (16, 16), "a box of 12 × 16, stretched"


def test_what_of_them_is_there_is_said(tmp_path, capsys):
    scenes.registered(tmp_path)
    where = ["--data-location", str(tmp_path)]
    assert run(["data", "check", "partial:voc2012-20", *where]) == 0
    printed = capsys.readouterr().out
    assert "voc2012-20 test: 3 images, 20 classes" in printed
    assert "got 3 images, expected 1,449 (from memory)" in printed
    (tmp_path / "VOCdevkit/VOC2012/masks").rename(tmp_path / "elsewhere")
    assert run(["data", "check", "voc2012-20", *where]) == 2
    assert "sets called -oracle take the ground truth's own regions" in capsys.readouterr().out


def test_the_ground_truth_follows_the_labels_into_other_classes(tmp_path):
    found = scenes.noise(tmp_path / "rooms", 4)
    register(tmp_path)
    own = load_dataset(f"own@{tmp_path}", "test")
    training = ["bed", "sofa", "lamp", "wall", "floor"]
    space = LabelSpace([f"class {name}" for name in training], training)
    entry = make_entry(own, space, stated=None, own=False)
    assert (entry.role, entry.dataset.class_subset.tolist()) == ("ood", [0, 2, 3, 4])
    there = np.array([3, 4, 0, 2, -1])  # of wall, floor, bed, lamp, none
    for k, (_, truth, _, _) in enumerate(found):
        assert np.array_equal(entry.dataset.truth(k).numpy(), there[truth])
    assert entry.dataset.labels.tolist() == there[own.labels].tolist()


@pytest.mark.parametrize(("half", "kept"), [("base", (0, 1)), ("novel", (2, 3))])
def test_of_half_the_classes_only_their_pixels_count(tmp_path, half, kept):
    found = scenes.noise(tmp_path / "rooms", 4)
    register(tmp_path)
    data = load_dataset(f"{half}:own@{tmp_path}", "test")
    assert data.classnames == [["wall", "floor", "bed", "lamp"][label] for label in kept]
    for k, (_, truth, _, _) in enumerate(found):
        expected = np.where(np.isin(truth, kept), truth - kept[0], -1)
        assert np.array_equal(data.truth(k).numpy(), expected)
    assert set(data.labels.tolist()) == {0, 1}
