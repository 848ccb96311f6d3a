"""kth_distance and knn: the distance to the zero-shot-failure set of VRF (arXiv 2411.06966)."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from robustft import backends, extras, files
from robustft.errors import InputError, InputTypeError
from robustft.ops import _arrays, _checks
from robustft.ops._register import register

_KIND = "robustft.FeatureBank"


class FeatureBank:
    """The rows that queries are compared with, prepared once and searched often.

    Args:
        features: [N, D], float32, bfloat16, float16 or float64, any strides; copied, to float32
            (float64 stays float64).
        normalize: L2-normalise the rows (a zero row stays zero). Queries are always taken as they
            are: a search by cosine needs normalised queries too.

    Errors: InputError or InputTypeError for a bad shape or dtype, and for rows that hold NaN or
    Inf, which are named.
    """

    rows: Tensor

    def __init__(self, features: Tensor, *, normalize: bool = False) -> None:
        features = _arrays.tensor("features", features)
        features = _checks.matrix("features", features, rows="N").detach()
        _refuse_non_finite("features", features)
        dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
        rows = features.to(dtype, copy=True, memory_format=torch.contiguous_format)
        if normalize:
            for block in rows.split(4096):  # in float64, where no float32 row overflows
                norms = torch.linalg.vector_norm(block.double(), dim=1, keepdim=True)
                block /= norms.clamp_min(torch.finfo(torch.float64).tiny)
        self._set(rows, {})

    def _set(self, rows: Tensor, formats: dict[str, list[Tensor]]) -> None:
        self.rows = rows
        self._formats = formats
        self._packed: dict[tuple[str, str, int], list[Tensor]] = {}
        self.packed()

    def __len__(self) -> int:
        return self.rows.shape[0]

    @property
    def dim(self) -> int:
        return self.rows.shape[1]

    @property
    def device(self) -> torch.device:
        return self.rows.device

    def __repr__(self) -> str:
        return f"FeatureBank({len(self)} rows, dim={self.dim}, {self.rows.dtype}, {self.device})"

    def packed(self, backend: str = "auto", queries: Tensor | None = None) -> list[Tensor]:
        """What the backend's search wants besides the rows, made on first use and kept with them.

        A backend's module names its format (FORMAT) and makes it (pack); backends may share one.
        queries: that are to be searched; without them the bank stands in.
        """
        x = self.rows if queries is None else queries
        key = backend, x.device.type, backends.line("nearest", x.device.type, x.numel())
        if key not in self._packed:  # torch.compile can trace no further
            module = _backend(x, self.rows.dtype, backend)
            if module.FORMAT not in self._formats:
                self._formats[module.FORMAT] = module.pack(self.rows)
            self._packed[key] = self._formats[module.FORMAT]
        return self._packed[key]

    def to(self, device: torch.device | str) -> FeatureBank:
        """The bank on another device (itself if it is there already)."""
        device = torch.device(device)
        rows = self.rows.to(device)
        if rows is self.rows:
            return self
        bank = FeatureBank.__new__(FeatureBank)
        bank._set(rows, {})
        return bank

    def save(self, path: str | Path) -> None:
        """Write the rows and all that is packed to a safetensors file, whole or not at all.

        Errors: OSError if it cannot be written; a file of that name is then as it was.
        """
        safetensors = extras.require("safetensors", extra="openclip")
        save_file = extras.require("safetensors.torch", extra="openclip").save_file
        tensors = {"rows": self.rows}
        for name, packed in self._formats.items():
            tensors |= {f"{name}.{i}": part.contiguous() for i, part in enumerate(packed)}
        with files.replacing(path) as temporary:
            try:
                save_file(tensors, temporary, metadata={"kind": _KIND, "version": "1"})
            except safetensors.SafetensorError as error:
                raise OSError(f"{path}: {error}") from error

    @classmethod
    def load(cls, path: str | Path, mmap: bool = True) -> FeatureBank:
        """A saved bank, on the CPU; with `mmap` the file's pages are read as they are needed.

        Errors: InputError for a file that is no bank; OSError for one that cannot be read.
        """
        safetensors = extras.require("safetensors", extra="openclip")
        with open(path, "rb") as file:  # a missing file is an OSError, whatever safetensors says
            file.read(1)
        try:
            with safetensors.safe_open(path, framework="pt") as archive:
                kind = (archive.metadata() or {}).get("kind")
                names = list(archive.keys())
                if kind != _KIND or "rows" not in names:
                    raise InputError(f"path: {path} holds {kind or names[:3]}, expected {_KIND}")
                tensors = {name: archive.get_tensor(name) for name in names}
        except safetensors.SafetensorError as error:
            raise InputError(f"path: {path} is no safetensors file ({error})") from error
        if not mmap:
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        rows = tensors.pop("rows")
        formats: dict[str, list[Tensor]] = {}
        for name in sorted(tensors, key=lambda name: int(name.rpartition(".")[2])):
            formats.setdefault(name.rpartition(".")[0], []).append(tensors[name])
        bank = cls.__new__(cls)
        bank._set(rows, formats)
        return bank


@_arrays.answers_in_kind
def kth_distance(
    queries: Tensor,
    bank: FeatureBank | Tensor,
    k: int,
    *,
    squared: bool = True,
    backend: str = "auto",
) -> Tensor:
    """The distance from each query to its k-th nearest bank row, exactly.

    Args:
        queries: [Q, D], float32, bfloat16, float16 or float64, any strides. 16-bit features are
            taken to float32 exactly; with float64 on either side all is float64.
        bank: a FeatureBank, or the rows [N, D]; on the queries' device. A FeatureBank may stay on
            the CPU for queries on a GPU, if the backend streams banks (triton, cuda).
        k: 1 … N.
        squared: Σ(q − v)², or its root.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns: [Q], float32 (float64 for float64), no gradient. NaN for a query with NaN or Inf.
        A squared distance beyond the dtype's largest number is inf.

    Errors: InputError or InputTypeError for bad shapes, dtypes, devices, k or backend, and for bank
    rows with NaN or Inf (inside torch.compile, which cannot look, all distances are NaN instead).
    """
    queries, rows, packed = _prepare(queries, bank, k, backend)
    distances: Tensor = _kth_distance(queries, rows, packed, k, bool(squared), backend)
    return distances


@_arrays.answers_in_kind
def knn(
    queries: Tensor,
    bank: FeatureBank | Tensor,
    k: int,
    *,
    squared: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The k nearest bank rows of each query, exactly: (distances, indices), both [Q, k].

    Distances ascend; rows of equal squared distance come in the order of their indices (int64).
    A query with NaN or Inf has distances NaN and indices −1. Arguments, dtypes and errors as in
    `kth_distance`.
    """
    queries, rows, packed = _prepare(queries, bank, k, backend)
    distances, indices = _knn(queries, rows, packed, k, bool(squared), backend)
    return distances, indices


def _prepare(
    queries: Tensor, bank: FeatureBank | Tensor, k: int, backend: str
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Checked queries and rows of one dtype, and what is packed of the rows (may be nothing)."""
    _checks.matrix("queries", queries, rows="Q")
    if isinstance(bank, FeatureBank):
        rows = bank.rows
    elif isinstance(bank, Tensor):
        rows = _checks.matrix("bank", bank, rows="N").detach()
    else:
        raise InputTypeError(
            f"bank: got {type(bank).__name__}, expected a FeatureBank or a torch.Tensor"
        )
    if queries.shape[1] != rows.shape[1]:
        raise InputError(f"queries: got width {queries.shape[1]}, expected {rows.shape[1]}")
    double = torch.float64 in (queries.dtype, rows.dtype)
    dtype = torch.float64 if double else torch.float32
    if not (isinstance(bank, FeatureBank) and _streams(queries, rows, dtype, backend)):
        _checks.same_device("queries", queries, rows)
    if isinstance(k, bool) or not isinstance(k, int):
        raise InputTypeError(f"k: got {type(k).__name__}, expected an int")
    if not 1 <= k <= rows.shape[0]:
        raise InputError(f"k: got {k}, expected 1 to {rows.shape[0]}, the number of bank rows")
    if not isinstance(bank, FeatureBank) and not torch.compiler.is_compiling():
        _refuse_non_finite("bank", rows)

    packed: list[Tensor] = []
    if isinstance(bank, FeatureBank) and rows.dtype == dtype:
        packed = bank.packed(backend, queries)
    return queries.detach().to(dtype), rows.to(dtype), packed


def _streams(queries: Tensor, rows: Tensor, dtype: torch.dtype, backend: str) -> bool:
    """Whether rows on the CPU may be searched for queries on another device."""
    if rows.device.type != "cpu" or queries.device.type == "cpu":
        return False
    return getattr(_backend(queries, dtype, backend), "STREAMS", False)


def _backend(queries: Tensor, dtype: torch.dtype, requested: str) -> ModuleType:
    return backends.load("nearest", queries.device.type, dtype, requested, queries.numel())


def _refuse_non_finite(name: str, rows: Tensor) -> None:
    if not rows.isfinite().all():
        bad = (~rows.isfinite().all(1)).nonzero()[:, 0]
        first = ", ".join(str(int(i)) for i in bad[:5]) + (", …" if len(bad) > 5 else "")
        raise InputError(f"{name}: got NaN or Inf in {len(bad)} rows ({first}), expected none")


def _fake_kth_distance(queries: Tensor, *_: Any) -> Tensor:
    return queries.new_empty(queries.shape[0])


def _fake_knn(queries: Tensor, rows: Tensor, packed: Any, k: int, *_: Any) -> Any:
    shape = (queries.shape[0], k)
    return queries.new_empty(shape), queries.new_empty(shape, dtype=torch.int64)


# queries and rows have one dtype, float32 or float64. What `packed` holds is the backend's own
# affair (its `pack`); an empty list means that nothing was prepared.
_SEARCH = ("Tensor queries", "Tensor rows", "Tensor[] packed", "int k", "bool squared")
_kth_distance = register("nearest", "kth_distance", _SEARCH, "Tensor", _fake_kth_distance)
_knn = register("nearest", "knn", _SEARCH, "(Tensor, Tensor)", _fake_knn)
