"""Pickles are read, never run: tensors come back, classes stay inert, code is refused."""

from __future__ import annotations

import collections
import functools
import io
import math
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from robustft.errors import InputError
from robustft.models.pickles import Record
from robustft.models.torch_files import read_pickled

VALUES = {
    "numbers": [0, -1, 255, 65536, -(2**40), 2**200, 0.1, -math.inf, True, False, None],
    "texts": ["", "é\n", "a" * 300, b"", b"\x00" * 300, bytearray(b"ab")],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    "sets": {"frozen": frozenset({1, 2}), "open": {3, 4}},
    "ordered": collections.OrderedDict(a=1, b=[2, {"c": 3}]),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_come_back_from_every_protocol(tmp_path, protocol):
    path = tmp_path / "values.pkl"
    shared = [1]
    values = {**VALUES, "shared": [shared, shared]}
    path.write_bytes(pickle.dumps(values, protocol=protocol))
    found = read_pickled(path)
    assert found == values
    assert found["shared"][0] is found["shared"][1]


LAYOUTS = {
    "zip": torch.save,
    "stream": functools.partial(torch.save, _use_new_zipfile_serialization=False),
    "pickle": lambda value, path: path.write_bytes(pickle.dumps(value)),
    "pickle-2": lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2)),
}
DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_come_back_bit_for_bit(tmp_path, layout):
    path = tmp_path / "tensors.pt"
    base = torch.randn(6, 5)
    tensors = {str(dtype): (100 * torch.randn(3, 2)).to(dtype) for dtype in DTYPES}
    tensors |= {"view": base[1:4, 2:], "transposed": base.T, "scalar": torch.tensor(2.5)}
    tensors |= {"empty": torch.empty(0, 4), "parameter": nn.Parameter(torch.randn(2, 3))}
    LAYOUTS[layout](tensors, path)
    found = read_pickled(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_classes_that_are_not_installed_are_records(tmp_path, layout, monkeypatch):
    elsewhere = ModuleType("elsewhere")
    kind = type("Thing", (), {"__module__": "elsewhere"})
    elsewhere.Thing = kind
    monkeypatch.setitem(sys.modules, "elsewhere", elsewhere)
    thing = kind()
    thing.__dict__.update(weight=torch.ones(3), size=(2, 3), part=functools.partial(kind))
    path = tmp_path / "thing.pt"
    LAYOUTS[layout]([thing, nn.Linear(2, 2)], path)
    monkeypatch.delitem(sys.modules, "elsewhere")
    first, second = read_pickled(path)
    assert isinstance(first, Record)
    assert str(first.kind) == "elsewhere.Thing"
    assert torch.equal(first.attributes()["weight"], torch.ones(3))
    assert first.attributes()["size"] == (2, 3)
    assert str(second.kind) == "torch.nn.modules.linear.Linear"
    assert "elsewhere" not in sys.modules


def test_numbers_of_numpy_are_numbers(tmp_path):
    path = tmp_path / "optimizer.pt"
    torch.save({"lr": np.float64(1e-5), "step": np.int64(7), "half": np.float32(0.5)}, path)
    assert read_pickled(path) == {"lr": 1e-5, "step": 7, "half": 0.5}


class Calls:
    """Unpickled, it calls a function."""

    def __init__(self, function, *arguments):
        self.what = function, arguments

    def __reduce__(self):
        return self.what


class Builds:
    """Unpickled, it hands a state to an object of another class."""

    def __reduce__(self):
        return object.__new__, (subprocess.Popen,), {"args": "x"}


HOSTILE = {
    "os.system": lambda mark: Calls(os.system, f"touch {mark}"),
    "eval": lambda mark: Calls(eval, f"open({str(mark)!r}, 'w')"),
    "exec": lambda mark: Calls(exec, f"open({str(mark)!r}, 'w')"),
    "open": lambda mark: Calls(open, str(mark), "w"),
    "popen": lambda mark: Calls(subprocess.Popen, ["touch", str(mark)]),
    "write_text": lambda mark: Calls(Path.write_text, mark, "run"),
    "import": lambda mark: Calls(__import__, "antigravity"),
    "built": lambda mark: Builds(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", HOSTILE)
def test_code_is_refused_and_not_run(tmp_path, layout, name):
    mark, path = tmp_path / "mark", tmp_path / "hostile.pt"
    LAYOUTS[layout]({"state_dict": [torch.ones(1), HOSTILE[name](mark)]}, path)
    with pytest.raises(InputError, match=r"hostile\.pt: holds .*, which loading would run"):
        read_pickled(path)
    assert not mark.exists()


def test_code_within_the_bytes_of_a_tensor_is_refused_and_not_run(tmp_path):
    """A tensor in a bare pickle is bytes that torch would unpickle without a restriction."""
    mark, path = tmp_path / "mark", tmp_path / "hostile.pt"
    inner = pickle.dumps(HOSTILE["os.system"](mark))
    path.write_bytes(pickle.dumps(Calls(torch.storage._load_from_bytes, inner)))
    with pytest.raises(InputError, match=r"hostile\.pt: holds .*system"):
        read_pickled(path)
    assert not mark.exists()


def test_a_gadget_of_an_installed_package_is_inert(tmp_path):
    mark, path = tmp_path / "mark", tmp_path / "gadget.pt"
    path.write_bytes(pickle.dumps(Calls(torch.save, {}, str(mark))))
    found = read_pickled(path)
    assert (str(found.kind), found.args) == ("torch.serialization.save", ({}, str(mark)))
    assert not mark.exists()


def opcodes(*parts):
    return b"\x80\x04" + b"".join(parts) + b"."


@pytest.mark.parametrize(
    "data",
    {
        "nothing": b"",
        "no end": pickle.dumps([1, 2])[:-1],
        "announced": opcodes(b"\x8e" + (2**40).to_bytes(8, "little"), b"x"),
        "extension": opcodes(b"\x82\x01"),
        "no stack": opcodes(b"0"),
        "no mark": opcodes(b"N", b"t"),
        "no memo": opcodes(b"h\x05"),
        "a text built": opcodes(b"\x8c\x01a", b"}", b"\x8c\x01b", b"N", b"s", b"\x93"),
        "entries of a tuple": opcodes(b")", b"N", b"N", b"s"),
        "a reference": opcodes(b"\x8c\x01a", b"Q"),
        "no text": b"\x00not a checkpoint" * 5,
    }.items(),
    ids=lambda item: item[0],
)
def test_damage_is_an_error_that_names_the_file(tmp_path, data):
    path = tmp_path / "damaged.pt"
    path.write_bytes(data[1])
    with pytest.raises(InputError, match=r"damaged\.pt: ") as raised:
        read_pickled(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_cut_is_an_error(tmp_path, layout):
    path = tmp_path / "cut.pt"
    LAYOUTS[layout]({"weight": torch.randn(20, 20), "name": "x"}, path)
    whole = path.read_bytes()
    for end in range(0, len(whole) - 1, 13):
        path.write_bytes(whole[:end])
        with pytest.raises(InputError, match=r"cut\.pt: "):
            read_pickled(path)


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (5,), (1,)), (3, (2,), (1,)), (0, (2, 2), (3, 1)), (-1, (1,), (1,)), (0, (2,), (-1,)),
     (0, (10**9, 10**9), (0, 0)), (0, (2, 3), (0, 1))],
)  # fmt: skip
def test_a_tensor_reaches_no_further_than_its_storage(tmp_path, offset, size, stride):
    """The storage lies within the mapped file: beyond it other bytes begin."""

    class Reaching:
        def __reduce__(self):
            storage = torch.ones(4)._typed_storage()
            return torch._utils._rebuild_tensor_v2, (storage, offset, size, stride, False, {})

    path = tmp_path / "reaching.pt"
    torch.save([Reaching(), torch.zeros(100)], path)
    with pytest.raises(InputError, match=r"reaching\.pt: damaged: a tensor of shape"):
        read_pickled(path)


def test_a_compressed_archive_and_one_of_something_else(tmp_path):
    path, other = tmp_path / "plain.pt", tmp_path / "compressed.pt"
    weight = torch.randn(7, 3)
    torch.save({"weight": weight}, path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(other, "w", zipfile.ZIP_DEFLATED) as to:
        for name in source.namelist():
            to.writestr(name, source.read(name))
    assert torch.equal(read_pickled(other)["weight"], weight)
    with zipfile.ZipFile(path, "w") as to:
        to.writestr("a/readme.txt", "x")
    with pytest.raises(InputError, match=r"without data\.pkl"):
        read_pickled(path)


def test_an_archive_is_read_when_it_is_used(tmp_path):
    """An optimizer's moments, twice the model, cost nothing to pass by."""
    path = tmp_path / "large.pt"
    torch.save({"a": torch.zeros(10**6), "b": torch.ones(3)}, path)
    found = read_pickled(path)
    path_of_map = Path("/proc/self/maps")
    if path_of_map.exists():
        assert str(path) in path_of_map.read_text()
    assert torch.equal(found["b"], torch.ones(3))
    found["a"].add_(1)  # a copy in memory, not the file
    assert torch.equal(read_pickled(path)["a"], torch.zeros(10**6))


def test_nothing_is_read_beyond_a_pickle(tmp_path):
    path = tmp_path / "two.pkl"
    path.write_bytes(pickle.dumps({"a": 1}) + b"anything")
    assert read_pickled(path) == {"a": 1}
    buffer = io.BytesIO(path.read_bytes())
    assert pickle.load(buffer) == {"a": 1}
