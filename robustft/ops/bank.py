"""FeatureBank: the rows that `kth_distance` and `knn` search, packed once and kept."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from robustft import atomic, backends
from robustft.backends.tensors import expect_packed, on_device, sum_dtype
from robustft.errors import InputError
from robustft.ops import _arrays, _checks
from robustft.ops._resolve import resolve

_KIND = "robustft.FeatureBank"
_BLOCK = 1 << 22  # elements that are looked at together


class Prepared(NamedTuple):
    """What a search by one backend wants to know of a bank."""

    backend: str
    streams: bool  # whether queries may lie on another device than the bank
    parts: list[Tensor]  # what the backend packed


class FeatureBank:
    """The rows that queries are compared with, prepared once and searched often.

    Args:
        features: [N, D], float32, bfloat16, float16 or float64, any strides; copied, to float32
            (float64 stays float64).
        normalize: L2-normalise the rows (a zero row stays zero). Queries are always taken as they
            are: a search by cosine needs normalised queries too.

    Errors: InputError or InputTypeError for a bad shape or dtype, and for rows that hold NaN or
    Inf, which are named.

    The rows do not change. A search of a bank whose `rows` were changed in place by torch is an
    InputError; changes that torch does not count (through NumPy, `.data`, another process that
    writes to a mapped file) go unnoticed, and what a search then finds is not defined.

    A bank can be pickled and copied. What is packed goes along, and is packed anew on a machine
    whose kernels take another format.
    """

    def __init__(self, features: Tensor, *, normalize: bool = False) -> None:
        features = _arrays.tensor("features", features)
        features = _checks.matrix("features", features, rows="N").detach()
        _checks.finite_rows("features", features)
        with torch.inference_mode(False):  # or torch would not count changes of the rows
            rows = _copied(features, sum_dtype(features))
            if normalize:
                for block in rows.split(4096):  # in float64, where no float32 row overflows
                    norms = torch.linalg.vector_norm(block.double(), dim=1, keepdim=True)
                    block /= norms.clamp_min(torch.finfo(torch.float64).tiny)
        self._set(rows, {})

    def _set(self, rows: Tensor, formats: dict[str, list[Tensor]]) -> None:
        if rows.is_inference():
            with torch.inference_mode(False):
                rows = rows.clone()
        self._rows, self._version = rows, rows._version
        self._formats = formats  # a backend's FORMAT → what its `pack` made
        self._prepared: dict[tuple[str, str], Prepared] = {}
        self.packed()

    @property
    def rows(self) -> Tensor:
        """The bank's rows [N, D], float32 or float64, contiguous; to read, not to write."""
        return self._rows

    def __len__(self) -> int:
        return self._rows.shape[0]

    @property
    def dim(self) -> int:
        """D, the width of a row."""
        return self._rows.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self._rows.device

    def __repr__(self) -> str:
        return f"FeatureBank({len(self)} rows, dim={self.dim}, {self._rows.dtype}, {self.device})"

    def packed(self, backend: str = "auto", queries: Tensor | None = None) -> list[Tensor]:
        """What the backend's search wants besides the rows, made on first use and kept with them.

        A backend's module names its format (FORMAT) and makes it (pack); backends may share one.
        queries: that are to be searched; without them the bank stands in.
        """
        return self.prepared(backend, self._rows if queries is None else queries).parts

    def prepared(self, backend: str, queries: Tensor) -> Prepared:
        """The backend that will serve these queries (in the bank's dtype), and what it packed.

        Errors: InputError for a backend that cannot, and for rows that were changed.
        """
        if not torch.compiler.is_compiling() and self._rows._version != self._version:
            raise InputError(
                "bank: got rows that were changed after they were packed, expected them unchanged"
            )
        name, device = resolve("nearest", queries, backend, self._rows.dtype), queries.device.type
        if (name, device) not in self._prepared:  # torch.compile can trace no further
            module = backends.load("nearest", device, self._rows.dtype, name)
            streams = getattr(module, "STREAMS", False)
            serves = streams or device == self.device.type
            parts = self._parts(module) if serves else []
            self._prepared[name, device] = Prepared(name, streams, parts)
        return self._prepared[name, device]

    def _parts(self, module: ModuleType) -> list[Tensor]:
        """What the module packs of the rows: made now, or found and looked at."""
        if module.FORMAT in self._formats:
            expect_packed(self._formats[module.FORMAT], module.layout(self._rows))
        else:
            with on_device(self._rows.device):
                self._formats[module.FORMAT] = module.pack(self._rows)
        return self._formats[module.FORMAT]

    def to(self, device: torch.device | str) -> FeatureBank:
        """The bank on another device (itself if it is there already)."""
        device = torch.device(device)
        with torch.inference_mode(False):
            rows = self._rows.to(device)
        return self if rows is self._rows else self._of(rows, {})

    @classmethod
    def _of(cls, rows: Tensor, formats: dict[str, list[Tensor]]) -> FeatureBank:
        bank = cls.__new__(cls)
        bank._set(rows, formats)
        return bank

    def __getstate__(self) -> dict[str, Any]:
        return {"rows": self._rows, "_formats": self._formats}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._set(state["rows"], dict(state["_formats"]))

    def save(self, path: str | Path) -> None:
        """Write the rows and all that is packed to a safetensors file, whole or not at all.

        Errors: OSError if it cannot be written; a file of that name is then as it was.
        """
        tensors = {"rows": self._rows}
        for name, parts in self._formats.items():
            tensors |= {f"{name}.{i}": part.contiguous() for i, part in enumerate(parts)}
        checksums = _checksums(tensors)
        metadata = {"kind": _KIND, "version": "2", "checksums": json.dumps(checksums)}
        with atomic.replacing(path) as temporary:
            try:
                save_file(tensors, temporary, metadata=metadata)
            except safetensors.SafetensorError as error:
                raise OSError(f"{path}: {error}") from error

    @classmethod
    @torch.inference_mode(False)
    def load(cls, path: str | Path, mmap: bool = True, *, verify: bool = True) -> FeatureBank:
        """A saved bank, on the CPU.

        Args:
            path: a file that `save` wrote. What an older version packed is packed anew.
            mmap: keep the file mapped and read its pages as they are needed. The file must then
                stay as it is: one that is cut short under use ends the process (SIGBUS), as with
                any mapped file. `save` and other programs that replace a file do no harm.
            verify: read the file through once and compare its checksums (some seconds for 10 GB).
                Without it only names, shapes and dtypes are looked at: for files that nothing can
                have damaged, as what a damaged one does is not defined.

        Errors: InputError for a file that is no bank or is damaged; OSError for one that cannot be
        read.
        """
        tensors, checksums = _read(Path(path))
        if not mmap:
            tensors = {name: _copied(x, x.dtype) for name, x in tensors.items()}
        if verify and checksums:
            for name, found in _checksums(tensors).items():
                if checksums[name] != found:
                    raise InputError(f"path: {path} is damaged (checksum of {name!r})")
        rows = tensors.pop("rows")
        if rows.dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"path: got rows of {rows.dtype} in {path}, expected float32 or float64"
            )
        _checks.matrix(f"path: {path}: rows", rows, rows="N")
        if verify:
            _checks.finite_rows(f"path: {path}: rows", rows)
        formats: dict[str, list[Tensor]] = {}
        for name in sorted(tensors, key=lambda name: (len(name), name)):  # .9 before .10
            formats.setdefault(name.rpartition(".")[0], []).append(tensors[name])
        try:
            return cls._of(rows, formats)
        except InputError as error:  # packed parts that do not fit the rows
            raise InputError(f"path: {path}: {error}") from None


def _copied(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Contiguous; on the CPU in large pages, as a search reads rows here and there."""
    if x.is_cpu and backends.status("cpu").runs:
        from robustft.backends.cpu.pointers import empty

        copy = empty(tuple(x.shape), dtype)
    else:
        copy = torch.empty(x.shape, dtype=dtype, device=x.device)
    return copy.copy_(x)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, int]]:
    """All that a bank's file holds that can be checked, by name, and the checksums to check."""
    with open(path, "rb") as file:  # a missing file is an OSError, whatever safetensors says
        file.read(1)
    try:
        with safetensors.safe_open(path, framework="pt") as archive:
            metadata = archive.metadata() or {}
            names = set(archive.keys())
            kind, version = metadata.get("kind"), metadata.get("version")
            if kind != _KIND or "rows" not in names:
                raise InputError(
                    f"path: {path} holds {kind or sorted(names)[:3]}, expected {_KIND}"
                )
            if version == "1":  # without checksums
                return {"rows": archive.get_tensor("rows")}, {}
            if version != "2":
                raise InputError(f"path: {path} has version {version!r}, expected '1' or '2'")
            try:
                checksums = json.loads(metadata["checksums"])
            except (KeyError, ValueError):
                checksums = None
            if not isinstance(checksums, dict) or set(checksums) != names:
                raise InputError(f"path: {path} is damaged (its names and checksums differ)")
            return {name: archive.get_tensor(name) for name in names}, checksums
    except safetensors.SafetensorError as error:
        raise InputError(f"path: {path} is no safetensors file ({error})") from error


def _checksums(tensors: dict[str, Tensor]) -> dict[str, int]:
    """CRC-32 of each tensor's name, dtype, shape and bytes: any flipped byte changes it.

    What is packed of the rows goes on from theirs, and so belongs to no other.
    """
    found: dict[str, int] = {}
    for name, tensor in sorted(tensors.items(), key=lambda item: item[0] != "rows"):
        header = f"{name} {tensor.dtype} {tuple(tensor.shape)}"
        crc = zlib.crc32(header.encode(), found.get("rows", 0))
        for block in tensor.detach().flatten().split(_BLOCK):
            crc = zlib.crc32(block.cpu().view(torch.uint8).numpy(), crc)
        found[name] = crc
    return found
