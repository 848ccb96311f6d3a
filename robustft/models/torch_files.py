"""Checkpoints that are pickles: tensors and inert records, nothing in them is executed.

Three layouts: a bare pickle (WiSE-FT's and FLYP's files), torch.save's zip archive (also
TorchScript's), and torch.save's older stream, which a tensor in a bare pickle holds as bytes. The
machine that runs the pickles is in robustft.models.pickles.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from robustft.errors import InputError
from robustft.models.pickles import Bounded, Machine, Name

_MAGIC = 0x1950A86A20F9469CFC6C  # with which torch.save's older stream begins
_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}


def read_pickled(path: str | Path) -> Any:
    """What a torch or pickle file holds: plain values, tensors on the CPU, and `Record`s.

    Tensors of a zip archive are views of the file, mapped into memory: read when they are used.

    Errors: InputError, naming the file, for one that is damaged, is no pickle, or names code;
    OSError for one that cannot be read.
    """
    path = Path(path)
    with open(path, "rb") as file:
        head = file.read(4)
        file.seek(0)
        try:
            if head[:2] == b"PK":
                return _read_zip(path)
            return _read_stream(Bounded(file, path.stat().st_size))
        except (InputError, OSError) as error:
            if isinstance(error, InputError):
                raise InputError(f"{path}: {error}") from error
            raise
        except RecursionError as error:
            raise InputError(f"{path}: nested too deeply, expected a checkpoint") from error
        except Exception as error:  # what a damaged program does to a machine is open-ended
            raise InputError(
                f"{path}: not a whole torch or pickle file ({type(error).__name__}: {error})"
            ) from error


def _read_stream(file: Bounded) -> Any:
    """A bare pickle, or torch.save's older stream of several."""
    content = _run(file, _no_storages)
    if content != _MAGIC:
        return content
    for _ in range(2):  # the protocol's version; the machine that wrote it
        _run(file, _no_storages)
    storages: dict[str, Tensor] = {}

    def storage(which: tuple[Any, ...]) -> Any:
        if which[0] == "module":
            return which[1]
        flat = _empty_storage(which, storages, file.size)
        if len(which) > 5 and which[5] is not None:
            raise InputError("holds a view of a storage, as torch did before 0.4; save it anew")
        return flat

    content = _run(file, storage)
    for key in _run(file, _no_storages):
        flat = storages.get(str(key))
        if flat is None:
            raise InputError(f"damaged: a storage {key!r} that nothing refers to")
        (count,) = struct.unpack("<q", file.read(8))
        if count != len(flat):
            raise InputError(f"damaged: {count} numbers in storage {key!r}, expected {len(flat)}")
        data = bytearray(file.read(count * flat.element_size()))
        if data:
            flat.copy_(torch.frombuffer(data, dtype=flat.dtype))
    return content


def _read_zip(path: Path) -> Any:
    """torch.save's zip archive, or TorchScript's, of which only the tensors are of use."""
    with zipfile.ZipFile(path) as archive:
        names = {name: archive.getinfo(name) for name in archive.namelist()}
        program = next((name for name in names if name.endswith("/data.pkl")), None)
        if program is None:
            raise InputError("a zip archive without data.pkl, expected a file of torch.save")
        root = program.removesuffix("data.pkl")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise InputError("saved on a big-endian machine, expected little-endian numbers")
        whole = _mapped(path)
        loaded: dict[str, Tensor] = {}

        def storage(which: tuple[Any, ...]) -> Tensor:
            dtype, key, count = _storage_of(which)
            if key not in loaded:
                info = names.get(f"{root}data/{key}")
                if info is None:
                    raise InputError(f"damaged: its storage {key!r} is not there")
                loaded[key] = _entry(archive, info, whole, dtype, count)
            return loaded[key]

        data = archive.read(program)
        return _run(Bounded(io.BytesIO(data), len(data)), storage)


def _mapped(path: Path) -> Tensor:
    """The bytes of a file as a tensor, copied on write."""
    size = path.stat().st_size
    whole = torch.UntypedStorage.from_file(str(path), False, size)
    return torch.empty(0, dtype=torch.uint8).set_(cast(torch.UntypedStorage, whole))


def _entry(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, whole: Tensor, dtype: torch.dtype, count: int
) -> Tensor:
    """The numbers of one entry: a view of the file where they lie aligned in it."""
    nbytes = count * torch.empty((), dtype=dtype).element_size()
    if info.file_size != nbytes:
        raise InputError(f"damaged: {info.filename} has {info.file_size} bytes, expected {nbytes}")
    if info.compress_type == zipfile.ZIP_STORED:
        header = bytes(whole[info.header_offset : info.header_offset + 30].numpy())
        if header[:4] != b"PK\x03\x04":
            raise InputError(f"damaged: no entry where {info.filename} should be")
        name, extra = struct.unpack("<HH", header[26:30])
        start = info.header_offset + 30 + name + extra
        piece = whole[start : start + nbytes]
        if len(piece) == nbytes and (nbytes == 0 or piece.data_ptr() % 8 == 0):
            return piece.view(dtype)
    data = bytearray(archive.read(info))
    return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _storage_of(which: Any) -> tuple[torch.dtype, str, int]:
    """Dtype, key and length in ("storage", type, key, device, count, …)."""
    if not (isinstance(which, tuple) and len(which) >= 5 and which[0] == "storage"):
        raise InputError(f"damaged: a reference to {str(which)[:60]}, expected a storage")
    kind = which[1].name.rpartition(".")[2] if isinstance(which[1], Name) else str(which[1])
    if kind not in _DTYPES:
        raise InputError(f"holds a {kind}, expected one of {', '.join(_DTYPES)}")
    if not isinstance(which[4], int) or which[4] < 0:
        raise InputError(f"damaged: a storage of {which[4]!r} numbers")
    return _DTYPES[kind], str(which[2]), which[4]


def _empty_storage(which: tuple[Any, ...], storages: dict[str, Tensor], size: int) -> Tensor:
    dtype, key, count = _storage_of(which)
    if key not in storages:
        if count * torch.empty((), dtype=dtype).element_size() > size:
            raise InputError(f"damaged: a storage of {count} numbers in a file of {size} bytes")
        storages[key] = torch.empty(count, dtype=dtype)
    return storages[key]


def _run(file: Bounded, persistent: Callable[[Any], Any]) -> Any:
    return Machine(file, persistent, _CALLS).run()


def _no_storages(which: Any) -> Any:
    raise InputError(f"damaged: a reference to {str(which)[:60]} outside of torch's layout")


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    if not isinstance(storage, Tensor):
        raise InputError(f"damaged: a tensor over {storage!r}, expected a storage")
    shape, steps = [int(n) for n in size], [int(n) for n in stride]
    count = math.prod(shape)
    reach = offset + sum((n - 1) * step for n, step in zip(shape, steps, strict=True)) + 1
    outside = min((offset, *shape, *steps), default=0) < 0 or (count > 0 and reach > len(storage))
    if outside or count > max(1, len(storage)):  # a step of 0 makes much of little
        raise InputError(f"damaged: a tensor of shape {shape} over {len(storage)} numbers")
    # The storage may itself be a piece of a larger one, in which as_strided counts.
    return storage.as_strided(shape, steps, storage.storage_offset() + (offset if count else 0))


def _storage_bytes(data: Any) -> Any:
    return _read_stream(Bounded(io.BytesIO(data), len(data)))


_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch.storage._load_from_bytes": _storage_bytes,
    "torch.Size": lambda sizes=(): tuple(sizes),
}
