"""What a model said about each image: kept beside the result lines, whole, small and checked."""

import io
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from robustft.accuracy import Predictions
from robustft.data.datasets import ImageDataset
from robustft.data.images import FileImages, StoredImages
from robustft.data.pictures import UnreadableImageError
from robustft.ensemble import VRF
from robustft.errors import InputError
from robustft.evaluate import append_result, check_result, read_results
from robustft.evaluate.curves import vrf_distances, vrf_lines
from robustft.evaluate.sample_images import MOST_ANEW, MOST_BYTES, MOST_IMAGES, SetFile, read_set
from robustft.evaluate.samples import EXTREMES, Measured, read_samples, samples_of
from robustft.evaluate.suite import Suite
from robustft.models import Classifier, load_clip

NAMES = ["zero", "one", "two"]
TEMPLATES = ["the digit {}"]


@pytest.fixture(scope="module")
def clip():
    return load_clip("robustft-tiny", "glyphs")


def drawn(count, name, seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 24, 24, 3), dtype=np.uint8)
    labels = rng.integers(0, 3, count)
    return ImageDataset(pixels, labels, classnames=NAMES, name=name, split="test")


def evaluated(clip, path, *datasets, **who):
    """The lines of the zero-shot model on sets of which the first is the training data's own."""
    suite = Suite(clip, NAMES, TEMPLATES, datasets, id_name=datasets[0].name)
    outputs = suite.outputs(Classifier.zero_shot(clip, NAMES, TEMPLATES))
    who = {"method": "zero-shot", "seed": 0, **who}
    return [append_result(path, line) for line in suite.records(outputs, **who)]


def line(path, count=40, name="Drawn", method="ft", seed=0, share=0.5, **more):
    """A line with samples, of which about a share is right, as a suite would make it."""
    data = drawn(count, name)
    rng = np.random.default_rng(seed)
    predicted = torch.where(
        torch.from_numpy(rng.random(count) < share), data.labels, (data.labels + 1) % 3
    )
    said = Predictions(predicted, torch.from_numpy(rng.random(count)))
    top1 = float((predicted == data.labels).double().mean())
    record = {"dataset": name, "role": "id", "split": "test", "method": method, "seed": seed}
    record |= {"n": count, f"{name}:top1": top1, **more}
    record["samples"] = Measured(data.labels, said, None, SetFile(data), None)
    return append_result(path, record)


def test_a_samples_file_has_a_row_for_each_image_that_could_be_read(clip, tmp_path):
    source = drawn(120, "Files")
    paths = [tmp_path / f"{i}.png" for i in range(120)]
    for path, picture in zip(paths, source.images.pixels, strict=True):
        Image.fromarray(picture).save(path)
    paths[7].write_bytes(b"half")
    files = ImageDataset(
        FileImages(paths), source.labels, classnames=NAMES, name="Files", split="test"
    ).with_transform(clip.preprocess_val)
    with pytest.warns(UserWarning, match="left out"):
        (found,) = evaluated(clip, tmp_path / "results.jsonl", files)
    columns = load_file(tmp_path / found["samples"])
    rows = np.delete(np.arange(120), 7)
    assert columns["index"].tolist() == rows.tolist()
    assert columns["label"].tolist() == source.labels[rows].tolist()
    assert (columns["label"] == columns["predicted"]).mean() == found["Files:top1"]
    samples = samples_of(read_results(tmp_path / "results.jsonl")[0])
    known = read_set(tmp_path / "samples" / samples.images)
    assert known.paths == [str(path) for path in paths]
    assert known.classnames == tuple(NAMES)
    assert not known.thumbnails


def test_of_images_in_memory_all_are_kept_small_or_a_fixed_choice(clip, tmp_path):
    small, large = drawn(40, "Small"), drawn(MOST_IMAGES + 100, "Large")
    sets = [small.preloaded(clip.preprocess_val), large.with_transform(clip.preprocess_val)]
    evaluated(clip, tmp_path / "results.jsonl", *sets)
    read = read_results(tmp_path / "results.jsonl")
    of_small, of_large = (read_set(tmp_path / "samples" / samples_of(r).images) for r in read)
    assert sorted(of_small.thumbnails) == list(range(40))
    rows = sorted(of_large.thumbnails)
    assert 50 < len(rows) <= MOST_IMAGES
    assert rows[-1] > MOST_IMAGES, "not the first ones"
    assert sum(map(len, of_large.thumbnails.values())) <= MOST_BYTES
    (tmp_path / "again").mkdir()
    evaluated(clip, tmp_path / "again" / "results.jsonl", *sets)
    for path in (tmp_path / "samples").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / "samples" / path.name).read_bytes()


def test_images_that_are_made_anew_when_they_are_asked_for_are_made_for_a_few_thumbnails(tmp_path):
    made = []

    class Made(StoredImages):
        def _read(self, index):
            made.append(index)
            if index < 200:
                raise UnreadableImageError("gone since it was evaluated")
            return Image.new("RGB", (200, 100), (index, 0, 0))

    data = drawn(250, "Made")
    data.images = Made(250)
    name = SetFile(data).write(tmp_path)
    found = read_set(tmp_path / name)
    assert len(made) == MOST_ANEW
    assert sorted(found.thumbnails) == [index for index in sorted(made) if index >= 200] != []
    for data in found.thumbnails.values():
        assert Image.open(io.BytesIO(data)).size == (96, 48)


def test_a_million_images_take_8_bytes_each(tmp_path):
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 1000, 10**6))
    data = ImageDataset(
        np.zeros((1, 8, 8, 3), np.uint8), [0], classnames=[f"c{i}" for i in range(1000)],
        name="Large", split="test",
    )  # fmt: skip
    record = {"dataset": "Large", "role": "id", "split": "test", "method": "ft", "seed": 0}
    record |= {"n": 10**6, "Large:top1": 1.0}
    said = Predictions(labels, torch.from_numpy(rng.random(10**6)))
    record["samples"] = Measured(labels, said, None, SetFile(data), None)
    written = append_result(tmp_path / "results.jsonl", record)
    assert 8e6 <= (tmp_path / written["samples"]).stat().st_size < 8e6 + 2000


def test_vrf_keeps_its_distances_weights_and_both_models(clip, tmp_path):
    home = drawn(MOST_IMAGES + 300, "Home")
    suite = Suite(
        clip, NAMES, TEMPLATES, [home.with_transform(clip.preprocess_val)], id_name="Home"
    )
    first = Classifier.zero_shot(clip, NAMES, TEMPLATES)
    before = suite.outputs(first)
    out = before["Home"]
    generator = torch.Generator().manual_seed(0)
    moved = out.logits + 3 * torch.randn(out.logits.shape, generator=generator)
    after = {"Home": type(out)(out.features, moved, out.labels, out.split, out.dataset)}
    fitted = VRF(calibrate=False, a=0.3, b=0.1, k=2).fit(
        out.features[:200], moved[:200], out.logits[:200], out.labels[:200]
    )
    both = {"before": before, "after": after}
    distances = vrf_distances(fitted, **both)
    (found,) = vrf_lines(fitted, suite, distances, **both, val=home, base="ft", seed=0)
    append_result(tmp_path / "results.jsonl", found)
    samples = samples_of(read_results(tmp_path / "results.jsonl")[0])
    bank = fitted.failures_.double().numpy()
    rows = out.features.double().numpy()
    squares = ((rows[:, None] - bank[None]) ** 2).sum(axis=2)
    distance = np.sort(squares, axis=1)[:, 1]
    np.testing.assert_allclose(samples.weighing.distance, distance, atol=1e-5)
    weight = 1 / (1 + np.exp((distance - 0.3) / 0.1))
    np.testing.assert_allclose(samples.weighing.weight, weight, atol=1e-4)
    for said, logits in (
        (samples.weighing.finetuned, moved),
        (samples.weighing.zeroshot, out.logits),
    ):
        exact = np.exp(logits.double().numpy())
        exact /= exact.sum(axis=1, keepdims=True)
        assert said.predicted.tolist() == exact.argmax(axis=1).tolist()
        np.testing.assert_allclose(said.confidence, exact.max(axis=1), atol=1e-6)
    known = read_set(tmp_path / "samples" / samples.images)
    pictured = {**known.thumbnails, **samples.thumbnails}
    order = samples.weighing.distance.argsort(stable=True).tolist()
    assert set(order[:EXTREMES] + order[-EXTREMES:]) <= set(pictured)


def test_evaluating_again_replaces_and_α_is_not_part_of_the_name(tmp_path):
    path = tmp_path / "results.jsonl"
    first = line(path, share=0.2, base="ft", method="wise-ft", alpha=0.3)
    second = line(path, share=0.9, base="ft", method="wise-ft", alpha=0.7)
    assert first["samples"] == second["samples"]
    assert first["Drawn:top1"] != second["Drawn:top1"]
    assert len(list((tmp_path / "samples").iterdir())) == 2
    early, late = read_results(path)
    assert float(samples_of(late).right.double().mean()) == late["Drawn:top1"]
    with pytest.raises(InputError, match="samples of another evaluation"):
        samples_of(early)


def test_points_of_a_curve_that_were_not_chosen_have_none(clip, tmp_path):
    data = drawn(30, "Home").with_transform(clip.preprocess_val)
    (found,) = evaluated(clip, tmp_path / "results.jsonl", data, selected=False, alpha=0.5)
    assert "samples" not in found
    assert not (tmp_path / "samples").exists()


HOSTILE = "../../../<img src=x onerror=alert(1)>\n{{7*7}}\x1b[31m\udce9" + "x" * 300


def test_any_name_stays_within_the_folder(tmp_path):
    written = line(tmp_path / "a" / "results.jsonl", name=HOSTILE, method=HOSTILE, base="../b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]
    assert {p.suffix for p in (tmp_path / "a" / "samples").iterdir()} == {".safetensors"}
    (read,) = read_results(tmp_path / "a" / "results.jsonl")
    found = samples_of(read)
    assert found.who["dataset"] == HOSTILE
    assert len(written["samples"].encode()) < 200


@pytest.mark.parametrize(
    "name",
    [
        "../results.safetensors",
        "samples/../x.safetensors",
        "/etc/passwd",
        "samples/.hidden.safetensors",
        "samples/x.npz",
        "samples/a/b.safetensors",
        5,
    ],
)
def test_a_line_that_names_another_place_is_refused(name):
    record = {"dataset": "D", "role": "id", "split": "test", "method": "ft", "seed": 0, "n": 1}
    with pytest.raises(InputError, match=r"samples: got .*, expected samples/NAME\.safetensors"):
        check_result({**record, "D:top1": 0.5, "samples": name})


def test_a_file_that_is_gone_damaged_or_another_lines_is_one_line(tmp_path):
    path = tmp_path / "results.jsonl"
    names = [line(path, seed=seed)["samples"] for seed in (0, 1, 2)]
    read = read_results(path)
    files = [tmp_path / name for name in names]
    whole = files[0].read_bytes()
    files[0].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        samples_of(read[0])
    files[0].write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match="is damaged"):
        samples_of(read[0])
    files[0].write_bytes(files[1].read_bytes())
    with pytest.raises(InputError, match="got samples of another evaluation"):
        samples_of(read[0])
    files[0].unlink()
    with pytest.raises(FileNotFoundError):
        samples_of(read[0])
    os.mkfifo(files[0])
    with pytest.raises(InputError, match="got no file"):
        samples_of(read[0])
    assert len(samples_of(read[2]).labels) == 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": torch.zeros(3)}, "label of torch.float32"),
        ({"predicted": torch.zeros(4, dtype=torch.int16)}, r"predicted of torch.int16 \[4\]"),
        ({"index": torch.tensor([0, 2, 2], dtype=torch.int32)}, "do not ascend"),
        ({"distance": torch.zeros(3)}, "weight"),
        ({"thumbnails": torch.zeros(2).byte()}, "ends"),
        (
            {
                "thumbnails": torch.zeros(2).byte(),
                "ends": torch.tensor([5]),
                "rows": torch.tensor([0]),
            },
            "pictures that do not fit",
        ),
    ],
)
def test_columns_that_do_not_fit_are_one_line(tmp_path, change, message):
    from robustft.models.tensor_files import write_tensors

    columns = {
        "label": torch.zeros(3, dtype=torch.int16),
        "predicted": torch.zeros(3, dtype=torch.int16),
        "confidence": torch.zeros(3),
        **change,
    }
    facts = {"format": 1, "who": {}, "images": "set-x.safetensors"}
    write_tensors(tmp_path / "x.safetensors", columns, "robustft.samples", facts)
    with pytest.raises(InputError, match=message):
        read_samples(tmp_path / "x.safetensors")


def test_paths_that_unpack_to_more_than_was_meant_are_refused(tmp_path, monkeypatch):
    import zlib

    from robustft.evaluate import sample_images
    from robustft.models.tensor_files import write_tensors

    monkeypatch.setattr(sample_images, "_LONGEST", 1000)
    bomb = torch.frombuffer(bytearray(zlib.compress(b"a\0" * 10**6)), dtype=torch.uint8)
    facts = {"format": 1, "dataset": "D", "classnames": ["a"], "count": 10**6, "border": 0}
    write_tensors(tmp_path / "set.safetensors", {"paths": bomb}, "robustft.set", facts)
    with pytest.raises(InputError, match="cut off or of more than 1000 bytes"):
        read_set(tmp_path / "set.safetensors")


def test_a_results_file_without_samples_is_read_as_before(tmp_path):
    record = {"dataset": "D", "role": "id", "split": "test", "method": "ft", "seed": 0, "n": 1}
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps({**record, "D:top1": 0.5}) + "\n")
    (read,) = read_results(path)
    assert samples_of(read) is None
