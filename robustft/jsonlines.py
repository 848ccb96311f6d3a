"""Files of JSON lines: a record is there whole or not at all, whoever writes and whatever ends.

A writer holds the file's lock while it appends, and takes back what a full disk let it write of a
line. What a killed process left of its last line is set aside by the next writer (into PATH.broken)
and left out by readers.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robustft import locks
from robustft.errors import InputError, warn

try:
    import fcntl
except ImportError:  # Windows: a file beside is locked
    fcntl = None  # type: ignore[assignment]

_LONGEST = 1 << 20
"""Bytes in a line. A record has some hundreds; a file without line ends is not read whole."""

_BLOCK = 1 << 16


def append(path: str | Path, value: Any) -> None:
    """Append `value` as one line of JSON; null stands for numbers that are not finite.

    Processes may append to one file at once. Errors: OSError, the file as it was before.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    line = _encode(value)
    handle = os.open(target, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            _write(handle, line)
            return
        with _locked(handle, target):
            end = _end_of_lines(handle, target)
            try:
                _write(handle, line)
            except BaseException:
                os.ftruncate(handle, end)
                raise
    finally:
        os.close(handle)


def read(path: str | Path, *, skip_broken: bool = False) -> Iterator[tuple[int, Any]]:
    """Yield (line number, value) of every line; blank lines are skipped.

    A last line without its end that is no JSON is what an interrupted writer left: it is left out,
    with a warning. `skip_broken` leaves out every line that is no JSON.

    Errors: OSError, or InputError naming the file and the line.
    """
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(_LONGEST + 1):
            number += 1
            if len(line) > _LONGEST:
                raise InputError(
                    f"{path}, line {number}: got more than {_LONGEST} bytes, expected one record"
                )
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")  # an editor's byte order mark
            if not line.strip():
                continue
            try:
                value = _decode(line)
            except ValueError as error:
                if not line.endswith(b"\n"):
                    warn(
                        f"{path}, line {number}: its end is missing (the disk was full, or its "
                        "writer was killed); the line is left out"
                    )
                elif not skip_broken:
                    raise InputError(f"{path}, line {number}: not JSON ({error})") from error
                continue
            yield number, value


def _decode(line: bytes) -> Any:
    """Errors: ValueError, whatever is wrong."""
    try:
        return json.loads(line.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _encode(value: Any) -> bytes:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)
    try:
        return text.encode("utf-8") + b"\n"
    except UnicodeEncodeError:  # lone surrogates, as in a file name that is no UTF-8
        return json.dumps(json.loads(text)).encode("ascii") + b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _end_of_lines(handle: int, path: Path) -> int:
    """The length of the file once its last line is whole: ended, or set aside if it is no JSON."""
    size = os.fstat(handle).st_size
    start, tail = size, b""
    while start > 0 and b"\n" not in tail:
        block = min(_BLOCK, start)
        start -= block
        os.lseek(handle, start, os.SEEK_SET)
        tail = os.read(handle, block) + tail
    half = tail[tail.rfind(b"\n") + 1 :]
    if not half:
        return size
    try:
        _decode(half)
    except ValueError:
        aside = path.with_name(path.name + ".broken")
        with open(aside, "ab") as file:
            file.write(half + b"\n")
        os.ftruncate(handle, size - len(half))
        warn(f"{path}: the end of its last line was missing; what there was of it is in {aside}")
        return size - len(half)
    _write(handle, b"\n")
    return size + 1


def _write(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


@contextlib.contextmanager
def _locked(handle: int, path: Path) -> Iterator[None]:
    """The file's lock, which a dead process does not keep; without it where there are none."""
    if fcntl is None:
        with locks.held(path.with_name(f"{path.name}.lock")):
            yield
        return
    held = False
    with contextlib.suppress(OSError):  # some network file systems have none
        fcntl.flock(handle, fcntl.LOCK_EX)
        held = True
    try:
        yield
    finally:
        if held:
            fcntl.flock(handle, fcntl.LOCK_UN)
