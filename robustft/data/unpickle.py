"""Reading arrays out of pickles that others wrote, without executing anything in them.

CIFAR-10's batches and CIFAR-10.2's .npy files are pickled dictionaries. What may be built is named
here; a pickle that asks for anything else is refused before it is called.
"""

from __future__ import annotations

import codecs
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from robustft.errors import InputError

# The functions by which NumPy rebuilds arrays and numbers; their module's name changed in NumPy 2.
_REBUILD = {"_reconstruct": np.empty(0).__reduce__()[0], "scalar": np.float64(0).__reduce__()[0]}
_ARRAYS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,
    **{("numpy.core.multiarray", name): function for name, function in _REBUILD.items()},
    **{("numpy._core.multiarray", name): function for name, function in _REBUILD.items()},
}


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ARRAYS:
            return _ARRAYS[module, name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_arrays(path: Path, *, npy: bool = False) -> dict[str, Any]:
    """The dictionary of arrays, lists and texts in a pickle, its keys as text.

    npy: the pickle is the one object of a .npy file.
    Errors: InputError for a file that is damaged, holds anything else, or asks for more than that.
    """
    try:
        stream = io.BytesIO(path.read_bytes())
        if npy:
            version = np.lib.format.read_magic(stream)
            header = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            _, _, dtype = header(stream)
            if not dtype.hasobject:
                raise InputError(f"{path}: got an array of {dtype}, expected a dictionary")
        found = _Arrays(stream, encoding="bytes").load()
        if npy and isinstance(found, np.ndarray) and found.size == 1:
            found = found.item()
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # whatever bytes do to pickle
        raise InputError(f"{path}: not a dictionary of arrays: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: got a {type(found).__name__}, expected a dictionary of arrays")
    return {key.decode() if isinstance(key, bytes) else str(key): v for key, v in found.items()}
