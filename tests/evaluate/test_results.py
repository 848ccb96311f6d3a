"""Result lines: written, read back, and refused when broken."""

import json

import numpy as np
import pytest
import torch

from robustft.errors import InputError
from robustft.evaluate import append_result, check_result, read_results

LINE = {
    "dataset": "Digits",
    "role": "id",
    "split": "test",
    "method": "flyp",
    "seed": 0,
    "n": 360,
    "Digits:top1": 0.95,
}
GEOMETRY = {**LINE, "role": "geometry", "RSA:euclidean": 0.9, "RSA:cosine": 0.8}
RATIO = {
    "role": "ratio",
    "distance": 0.4,
    "n": 20,
    "accuracy_finetuned": 0.9,
    "accuracy_zeroshot": 0.6,
    "ratio": 1.5,
    "base": "ft",
    "seed": 1,
}


def test_lines_come_back_with_their_defaults(tmp_path):
    path = tmp_path / "runs" / "results.jsonl"
    for record in (LINE, GEOMETRY, RATIO, {**LINE, "alpha": 0.5, "selected": False, "lr": 1e-5}):
        append_result(path, record)
    got = read_results(path)
    assert len(path.read_text().splitlines()) == 4
    assert got[0] == {**LINE, "base": None, "alpha": None, "selected": True}
    assert got[1]["RSA:cosine"] == 0.8
    assert got[2]["ratio"] == 1.5
    assert (got[3]["alpha"], got[3]["selected"], got[3]["lr"]) == (0.5, False, 1e-5)


def test_numbers_of_numpy_and_torch_become_plain_ones_and_nan_becomes_null(tmp_path):
    path = tmp_path / "results.jsonl"
    append_result(
        path,
        {
            **LINE,
            "n": np.int64(7),
            "Digits:top1": torch.tensor(0.5),
            "loss": float("nan"),
            "norms": (np.float32(2.0), float("inf")),
        },
    )
    text = path.read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    got = read_results(path)[0]
    assert (got["n"], got["Digits:top1"], got["loss"]) == (7, 0.5, None)
    assert got["norms"] == [2.0, None]
    for odd in (float("nan"), float("inf"), -float("inf")):
        assert append_result(path, {**LINE, "Digits:top1": odd})["Digits:top1"] is None
        assert read_results(path)[-1]["Digits:top1"] is None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"role": "train"}, "role"),
        ({"role": None}, "role"),
        ({"seed": 0.5}, "seed"),
        ({"seed": -1}, "seed"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"method": ""}, "method"),
        ({"dataset": 3}, "dataset"),
        ({"split": None}, "split"),
        ({"alpha": 1.5}, "alpha"),
        ({"selected": 1}, "selected"),
        ({"base": 7}, "base"),
        ({"Digits:top1": 95.0}, "Digits:top1"),
        ({"dataset": "Letters"}, "Letters:top1: missing"),
        ({"extra": object()}, "extra"),
        ({"chosen_on": "val"}, "chosen_on: got 'val'"),
        ({"chosen_on": {"dataset": "D", "split": "val", "n": 0}}, "n: got 0"),
        ({"Digits:brier": 2.5}, "Digits:brier"),
        ({"Digits:nll": -0.1}, "Digits:nll"),
        ({"extra": torch.zeros(3)}, "extra"),
    ],
)
def test_a_wrong_field_is_named_and_nothing_is_written(tmp_path, change, field):
    path = tmp_path / "results.jsonl"
    append_result(path, LINE)
    with pytest.raises(InputError, match=field):
        append_result(path, {**LINE, **change})
    assert len(read_results(path)) == 1


@pytest.mark.parametrize("record", [LINE, GEOMETRY, RATIO])
def test_every_field_is_needed(record):
    for key in record:
        if key in ("base", "Digits:top1") and record is not LINE:
            continue
        with pytest.raises(InputError, match=key):
            check_result({k: v for k, v in record.items() if k != key})


@pytest.mark.parametrize(
    "broken", [b'{"role": "id", "seed"', b"[1, 2]", b'{"role": "id"}', b"\xff\xfe", b"NaN"]
)
def test_a_broken_line_is_named(tmp_path, broken):
    path = tmp_path / "results.jsonl"
    good = json.dumps(LINE).encode()
    path.write_bytes(good + b"\n\n" + broken + b"\n" + good + b"\n")
    with pytest.raises(InputError, match=r"results\.jsonl, line 3: "):
        read_results(path)


def test_a_missing_file_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_results(tmp_path / "absent.jsonl")
