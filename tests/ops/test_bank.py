"""FeatureBank: a copy, a file, a pickle, and what is found when one of them is damaged."""

import contextlib
import copy
import json
import math
import os
import pickle
import subprocess
import sys

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

import robustft
from robustft import backends
from robustft.errors import InputError, InputTypeError
from robustft.ops import FeatureBank, knn, kth_distance

Q, R = torch.ones(3, 2), torch.ones(4, 2)


def normal(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def test_bank_is_a_copy_that_does_not_change():
    rows, queries = normal(129, 7, seed=1), normal(5, 7, seed=2)
    bank = FeatureBank(rows)
    want = kth_distance(queries, bank, 3)
    assert (len(bank), bank.dim, bank.rows.dtype) == (129, 7, torch.float32)
    rows.zero_()
    assert torch.equal(kth_distance(queries, bank, 3), want)
    assert bank.to("cpu") is bank
    assert robustft.FeatureBank is FeatureBank
    assert "129 rows, dim=7" in repr(bank)


def test_bank_normalizes():
    rows = normal(9001, 3, seed=1)
    rows[3], rows[5], rows[7] = 0, rows[5] * 1e30, rows[7] * 1e-30
    want = rows.double() / rows.double().norm(dim=1, keepdim=True).clamp_min(1e-300)
    torch.testing.assert_close(
        FeatureBank(rows, normalize=True).rows, want.float(), rtol=2e-7, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bank_survives_a_file_bit_for_bit(tmp_path, dtype):
    bank, queries = FeatureBank(normal(129, 7, seed=1, dtype=dtype)), normal(5, 7, seed=2)
    path = tmp_path / "new" / "bank.safetensors"
    bank.save(path)
    assert [p.name for p in path.parent.iterdir()] == ["bank.safetensors"]
    want = knn(queries, bank, 9)
    for mmap in (True, False):
        loaded = FeatureBank.load(path, mmap=mmap)
        assert torch.equal(loaded.rows, bank.rows)
        assert all(map(torch.equal, loaded.packed(), bank.packed()))
        assert all(map(torch.equal, knn(queries, loaded, 9), want))
    bank.save(path)  # over the file that `loaded` may still have mapped
    assert all(map(torch.equal, knn(queries, loaded, 9), want))


@pytest.mark.skipif(sys.platform != "linux", reason="sets a limit on file sizes")
def test_a_bank_that_cannot_be_written_loses_nothing(tmp_path):
    import resource

    path = tmp_path / "bank"
    FeatureBank(normal(129, 7)).save(path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="bank"):
            FeatureBank(normal(509, 7)).save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["bank"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_bank_is_mapped_not_read(tmp_path):
    path = tmp_path / "bank.safetensors"
    FeatureBank(normal(129, 7)).save(path)

    def mapped():
        with open("/proc/self/maps") as maps:
            return str(path) in maps.read()

    bank = FeatureBank.load(path, mmap=True)
    assert mapped()
    del bank
    bank = FeatureBank.load(path, mmap=False)
    assert not mapped()
    assert len(bank) == 129


def test_another_format_is_packed_anew(tmp_path, monkeypatch):
    bank, queries = FeatureBank(normal(129, 7)), normal(5, 7, seed=2)
    bank.save(tmp_path / "bank")
    module = backends.load("nearest", "cpu", torch.float32, "auto")
    formats = {module.FORMAT, "other-2"}
    monkeypatch.setattr(module, "FORMAT", "other-2")
    loaded = FeatureBank.load(tmp_path / "bank")
    assert torch.equal(kth_distance(queries, loaded, 9), kth_distance(queries, bank, 9))
    assert set(loaded._formats) == formats


def test_load_names_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError):
        FeatureBank.load(tmp_path / "missing")
    (tmp_path / "text").write_text("no tensors here")
    with pytest.raises(InputError, match="no safetensors file"):
        FeatureBank.load(tmp_path / "text")
    save_file({"rows": torch.ones(2, 2)}, tmp_path / "foreign")
    with pytest.raises(InputError, match=r"holds \['rows'\], expected robustft.FeatureBank"):
        FeatureBank.load(tmp_path / "foreign")


def metadata(path):
    with safetensors.safe_open(path, framework="pt") as archive:
        return archive.metadata()


@pytest.fixture
def saved(tmp_path):
    """A file of 40 rows, width 3, and what is in it."""
    path = tmp_path / "bank"
    FeatureBank(normal(40, 3, seed=1)).save(path)
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}  # it is mapped
    return path, tensors, metadata(path)


def name_of(tensors, part):
    """The name of the part-th packed tensor."""
    return next(name for name in tensors if name.endswith(f".{part}"))


def test_every_flipped_byte_is_found_or_changes_nothing(saved):
    path, _, _ = saved
    bank, queries = FeatureBank.load(path, mmap=False), normal(5, 3, seed=2)
    want, whole = knn(queries, bank, 9), path.read_bytes()
    end_of_header = 8 + int.from_bytes(whole[:8], "little")
    places = [*range(end_of_header), *range(end_of_header, len(whole), 41)]
    found = 0
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            loaded = FeatureBank.load(path, mmap=False)
        except InputError as error:
            found += "bank" in str(error) and "\n" not in str(error)
        else:
            assert place < end_of_header  # a space, or the name of something that is packed anew
            assert torch.equal(loaded.rows, bank.rows)
            assert all(map(torch.equal, knn(queries, loaded, 9), want))
    assert found > len(places) - end_of_header


def test_a_damaged_part_is_named(saved):
    path, tensors, _ = saved
    whole = path.read_bytes()
    for name, tensor in tensors.items():
        data = tensor.numpy().tobytes()
        at = whole.rindex(data)
        flipped = bytearray(whole)
        flipped[at + len(data) // 2] ^= 16
        path.write_bytes(flipped)
        with pytest.raises(InputError, match=f"is damaged .checksum of '{name}'"):
            FeatureBank.load(path)


# What can be wrong with a file whose checksums are right: every search of such a bank read what
# was not there, or answered wrongly.
MISFITS = {
    "short constants": (2, lambda x: x[:-1] if len(x) > 1 else x[..., :-1]),
    "panels of another dtype": (1, lambda x: x.short()),
    "a short mean": (0, lambda x: x[:-1]),
    "a mean of another dtype": (0, lambda x: x.double()),
    "panels of another shape": (1, lambda x: x.flatten()),
}
BAD_ROWS = {
    "too many": lambda x: torch.cat([x, x]),
    "too few": lambda x: x[:-9],
    "too wide": lambda x: torch.cat([x, x], 1),
    "float16": lambda x: x.half(),
    "int32": lambda x: x.int(),
    "three dimensions": lambda x: x[None],
    "none": lambda x: x[:0],
    "NaN": lambda x: x.index_fill(0, torch.tensor([3]), math.nan),
    "Inf": lambda x: x.index_fill(0, torch.tensor([3]), math.inf),
}


def forge(path, tensors):
    """A file of these tensors with checksums that are right."""
    from robustft.ops.bank import _checksums

    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    sums = json.dumps(_checksums(tensors))
    kind = {"kind": "robustft.FeatureBank", "version": "2", "checksums": sums}
    save_file(tensors, path, metadata=kind)


@pytest.mark.parametrize("fault", MISFITS)
def test_packed_parts_that_do_not_fit_are_refused(saved, fault, native):
    path, tensors, _ = saved
    part, change = MISFITS[fault]
    name = name_of(tensors, part)
    forge(path, tensors | {name: change(tensors[name])})
    with pytest.raises(InputError, match=rf"bank: packed\[{part}\]: got .*expected"):
        FeatureBank.load(path)
    del tensors[name_of(tensors, 2)]
    forge(path, tensors)
    with pytest.raises(InputError, match="bank: packed: got 2 tensors, expected 3"):
        FeatureBank.load(path)


def test_parts_that_were_packed_of_other_rows_are_refused(saved):
    path, tensors, _ = saved
    other, elsewhere = FeatureBank(tensors["rows"][:-1].clone()), path.with_name("other")
    other.save(elsewhere)
    sums = json.loads(metadata(path)["checksums"])
    sums["rows"] = json.loads(metadata(elsewhere)["checksums"])["rows"]
    mixed = metadata(path) | {"checksums": json.dumps(sums)}
    save_file(tensors | {"rows": other.rows}, path, metadata=mixed)
    with pytest.raises(InputError, match="is damaged"):
        FeatureBank.load(path)


@pytest.mark.parametrize("fault", BAD_ROWS)
def test_rows_that_do_not_fit_are_refused(saved, fault, native):
    path, tensors, _ = saved
    forge(path, tensors | {"rows": BAD_ROWS[fault](tensors["rows"])})
    with pytest.raises(InputError, match="bank"):
        FeatureBank.load(path)


def test_a_file_without_checksums_is_packed_anew(saved):
    path, tensors, _ = saved
    want = knn(Q.new_ones(2, 3), FeatureBank(tensors["rows"]), 5)
    tensors[name_of(tensors, 1)].zero_()  # nobody would notice
    save_file(tensors, path, metadata={"kind": "robustft.FeatureBank", "version": "1"})
    loaded = FeatureBank.load(path)
    assert all(map(torch.equal, knn(Q.new_ones(2, 3), loaded, 5), want))
    tensors["rows"][7, 1] = math.nan
    save_file(tensors, path, metadata={"kind": "robustft.FeatureBank", "version": "1"})
    with pytest.raises(InputError, match=r"rows: got NaN or Inf in 1 rows \(7\)"):
        FeatureBank.load(path)


def test_a_version_of_the_future_is_refused(saved):
    path, tensors, written = saved
    save_file(tensors, path, metadata=written | {"version": "3"})
    with pytest.raises(InputError, match="version '3', expected '1' or '2'"):
        FeatureBank.load(path)


def test_without_verify_the_file_is_not_read_through(saved, monkeypatch):
    path, _, _ = saved
    monkeypatch.setattr("robustft.ops.bank._checksums", lambda tensors: pytest.fail("read"))
    assert len(FeatureBank.load(path, verify=False)) == 40


def test_a_pickle_and_a_copy_search_as_the_bank_does():
    bank, queries = FeatureBank(normal(129, 7, seed=1)), normal(5, 7, seed=2)
    want = knn(queries, bank, 9)
    for again in (pickle.loads(pickle.dumps(bank)), copy.deepcopy(bank), copy.copy(bank)):
        assert set(again._formats) == set(bank._formats)
        assert all(map(torch.equal, knn(queries, again, 9), want))
    assert len(bank.packed()) > 0


def test_a_pickle_is_packed_anew_for_another_instruction_set(tmp_path, native):
    from robustft import _native

    script = """
import pickle, sys, torch
from robustft import _native
from robustft.ops import FeatureBank, knn
bank = pickle.load(open(sys.argv[1], "rb"))
queries = torch.load(sys.argv[2])
same = FeatureBank(bank.rows)
assert all(map(torch.equal, knn(queries, bank, 9), knn(queries, same, 9)))
print(_native.nearest_format(), *bank._formats)
"""
    bank_file, queries_file = tmp_path / "bank.pickle", tmp_path / "queries.pt"
    bank_file.write_bytes(pickle.dumps(FeatureBank(normal(1029, 37, seed=1))))
    torch.save(normal(15, 37, seed=2), queries_file)
    done = subprocess.run(
        [sys.executable, "-c", script, str(bank_file), str(queries_file)],
        env=os.environ | {"ROBUSTFT_CPU_ISA": "baseline", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    present, *known = done.stdout.split()
    assert present in known
    assert _native.nearest_format() in known


def test_rows_cannot_be_replaced():
    bank = FeatureBank(normal(129, 7))
    with pytest.raises(AttributeError):
        bank.rows = normal(3, 7)


CHANGES = {
    "multiplied": lambda rows: rows.mul_(2),
    "one entry": lambda rows: rows[3].zero_(),
    "a view": lambda rows: rows.view(-1)[5:6].fill_(1),
    "detached": lambda rows: rows.detach().add_(1),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("inference", [False, True])
def test_rows_that_were_changed_in_place_are_found(change, inference):
    with torch.inference_mode(inference):
        bank, queries = FeatureBank(normal(129, 7)), normal(5, 7, seed=2)
        kth_distance(queries, bank, 3)
    CHANGES[change](bank.rows)
    for search in (kth_distance, knn):
        with pytest.raises(InputError, match="bank: got rows that were changed"):
            search(queries, bank, 3)


def test_a_bank_loaded_in_inference_mode_counts_changes(saved):
    path, _, _ = saved
    with torch.inference_mode():
        for bank in (FeatureBank.load(path), pickle.loads(pickle.dumps(FeatureBank.load(path)))):
            kth_distance(normal(5, 3), bank, 3)
            bank.rows.zero_()
            with pytest.raises(InputError, match="changed"):
                kth_distance(normal(5, 3), bank, 3)


def test_a_search_chooses_its_backend_once(monkeypatch):
    bank, queries = FeatureBank(normal(129, 7, seed=1)), normal(5, 7, seed=2)
    kth_distance(queries, bank, 3)
    chosen = []
    choose = backends.choose
    monkeypatch.setattr(backends, "choose", lambda *args: chosen.append(args[3]) or choose(*args))
    kth_distance(queries, bank, 3)
    knn(queries, bank, 3)
    assert chosen == ["auto", "cpu"] * 2  # once, then by name
    kth_distance(queries, bank.rows, 3)
    assert chosen[4:] == ["auto", "cpu"]


def test_a_bank_may_stay_on_the_host_where_a_backend_streams_it(monkeypatch):
    """With meta tensors in the place of a GPU's: what is asked for is all there is to see."""
    asked = []

    class Module:
        FORMAT, STREAMS = "streamed-1", True

        @staticmethod
        def pack(rows):
            return [rows[0]]

    bank, other, queries = FeatureBank(R), FeatureBank(R), Q.to("meta")
    load = backends.load
    monkeypatch.setattr(
        backends,
        "load",
        lambda op, device, *rest: asked.append(device) or (Module if device == "meta" else load),
    )
    assert kth_distance(queries, bank, 1, backend="triton").shape == (3,)
    assert knn(queries, bank, 2, backend="triton")[1].shape == (3, 2)
    assert set(asked) == {"meta"}
    assert torch.equal(bank.packed("triton", queries)[0], R[0])
    with pytest.raises(InputError, match="queries: got device meta, expected cpu"):
        kth_distance(queries, R, 1, backend="triton")
    Module.STREAMS = False
    with pytest.raises(InputError, match="queries: got device meta, expected cpu"):
        kth_distance(queries, other, 1, backend="triton")


def test_bank_errors_name_the_argument():
    rows = torch.ones(20, 2)
    rows[[3, 5, 7, 8, 9, 11], 1] = math.nan
    with pytest.raises(InputError, match=r"NaN or Inf in 6 rows \(3, 5, 7, 8, 9, …\)"):
        FeatureBank(rows)
    with pytest.raises(InputError, match=r"features: got shape \(20,\), expected \[N, D\]"):
        FeatureBank(rows[:, 0])
    with pytest.raises(InputError, match="features: got an empty tensor"):
        FeatureBank(rows[:0])
    with pytest.raises(InputTypeError, match=r"features: got dtype torch\.int64"):
        FeatureBank(rows.nan_to_num().long())


@pytest.mark.parametrize("current", [0, 1])
def test_a_bank_is_packed_with_its_own_device_current(monkeypatch, current):
    """Two cards, of which a bank is on the second: launches go to torch's current device."""
    from types import SimpleNamespace

    from robustft.backends import tensors

    entered = []
    place = SimpleNamespace(type="cuda", index=1)

    @contextlib.contextmanager
    def device(given):
        entered.append(given)
        yield
        entered.remove(given)

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.setattr(torch.cuda, "device", device)
    at_packing = []
    module = SimpleNamespace(FORMAT="cards", pack=lambda rows: at_packing.append([*entered]))
    bank = FeatureBank(normal(9, 4))
    monkeypatch.setattr("robustft.ops.bank.on_device", lambda _: tensors.on_device(place))
    bank._parts(module)
    assert at_packing == [[place] if current == 0 else []]
    assert entered == []
