"""A VRF's file is believed only when it is what was written."""

import json
import struct
import warnings

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from robustft import VRF
from robustft.errors import InputError

from .test_vrf import TEST, TRAIN, fitted


def parts(path):
    with safe_open(str(path), "pt") as file:
        return file.metadata()["robustft.vrf"], file.get_tensor("failures")


def old_file(path, change=None, bank=None):
    """A file as version 1 wrote it, without a checksum, `change` applied to its metadata."""
    fitted(k=4).save(path)
    text, rows = parts(path)
    state = json.loads(text.partition("\n")[2])
    state["format"] = 1
    for key in ("omega", "space", "bank"):
        del state[key]
    state |= change or {}
    bank = rows if bank is None else bank
    save_file({"failures": bank}, path, metadata={"robustft.vrf": json.dumps(state)})


@pytest.mark.parametrize("options", [{"omega": "linear"}, {"space": "logit", "bank": "all"}])
def test_the_options_come_back(tmp_path, options):
    path = tmp_path / "vrf.safetensors"
    vrf = fitted(**options)
    vrf.save(path)
    again = VRF.load(path)
    assert again.name == vrf.name
    assert again.selection_ == vrf.selection_
    assert torch.equal(again.predict_proba(*TEST[:3]), vrf.predict_proba(*TEST[:3]))


def test_the_same_vrf_is_the_same_file(tmp_path):
    for name in ("a", "b"):
        fitted().save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_one_changed_byte_is_found_wherever_it_is(tmp_path):
    path = tmp_path / "vrf.safetensors"
    VRF(a=1e-05, b=0.5, calibrate=False).fit(*(x[:60] for x in TRAIN)).save(path)
    data = path.read_bytes()
    header = 8 + struct.unpack("<Q", data[:8])[0]
    places = [*range(header), *range(header, len(data), 37)]
    broken = tmp_path / "broken"
    for place in places:
        for bit in (0x01, 0x20):  # 0x20 turns 1e-05 into 1E-05, and a space into a NUL
            changed = bytearray(data)
            changed[place] ^= bit
            broken.write_bytes(changed)
            with pytest.raises(InputError, match="broken"):
                VRF.load(broken)


def test_a_cut_or_lengthened_file_is_refused(tmp_path):
    path = tmp_path / "vrf.safetensors"
    fitted().save(path)
    data = path.read_bytes()
    for changed in (b"", data[:7], data[:-1], data + b"\0", data[: len(data) // 2]):
        path.write_bytes(changed)
        with pytest.raises(InputError, match=r"vrf\.safetensors"):
            VRF.load(path)


def test_a_file_without_a_checksum_is_read(tmp_path):
    path = tmp_path / "old.safetensors"
    old_file(path)
    vrf = fitted(k=4)
    assert torch.equal(VRF.load(path).predict_proba(*TEST[:3]), vrf.predict_proba(*TEST[:3]))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"p": "x"}, "p"),
        ({"p": 7.0}, "p"),
        ({"k": 2.5}, "k"),
        ({"k": [1]}, "k"),
        ({"squared": 1}, "squared"),
        ({"a": 1.0}, "a, b"),
        ({"a_": None}, "a_"),
        ({"a_": float("nan")}, "a_"),
        ({"b_": 0.0}, "b_"),
        ({"temperature_zeroshot_": -1.0}, "temperature_zeroshot_"),
        ({"temperature_finetuned_": "1"}, "temperature_finetuned_"),
        ({"selection_": {"a": 1}}, "selection_"),
        ({"selection_": 5}, "selection_"),
        ({"more": 1}, "more"),
        ({"format": 3}, "format"),
        ({"format": [1]}, "format"),
        ({"format": 2}, "checksum"),
    ],
)
def test_odd_metadata_is_named(tmp_path, change, named):
    path = tmp_path / "odd"
    old_file(path, change)
    with pytest.raises(InputError, match=f"odd.*{named}"):
        VRF.load(path)


@pytest.mark.parametrize(
    "text", ["[1]", "null", "7", "", "[" * 100_000, '{"a": 1' + "0" * 5000 + "}"]
)
def test_metadata_that_is_no_object_is_refused(tmp_path, text):
    path = tmp_path / "odd"
    save_file({"failures": torch.zeros(2, 2)}, path, metadata={"robustft.vrf": text})
    with pytest.raises(InputError, match="odd"):
        VRF.load(path)


@pytest.mark.parametrize(
    "bank",
    [
        torch.zeros(5),
        torch.zeros(5, 0),
        torch.zeros(5, 13, dtype=torch.float64),
        torch.zeros(5, 13, dtype=torch.int32),
        torch.full((5, 13), torch.nan),
        torch.full((5, 13), torch.inf),
    ],
)
def test_a_bank_that_is_no_bank_is_refused(tmp_path, bank):
    path = tmp_path / "odd"
    old_file(path, bank=bank)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match="odd"):
            VRF.load(path)
