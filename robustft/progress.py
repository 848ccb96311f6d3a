"""How far long work is, and about how long it still takes: a bar where standard error is a
terminal, elsewhere a line a minute there.

Nothing is shown that nobody asked for (`showing`); the command line does, on its main process.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

from robustft.optional import require
from robustft.readable import readable

T = TypeVar("T")
_SHOWN: ContextVar[bool] = ContextVar("robustft.progress", default=False)
_EVERY = 60.0  # seconds between two lines, where there is no terminal
_LINE = "{desc}: {n_fmt} of {total_fmt} {unit}{postfix}, {elapsed}, about {remaining} left"


@contextlib.contextmanager
def showing(on: bool) -> Iterator[None]:
    """Whether what is begun within the block is shown."""
    before = _SHOWN.set(on)
    try:
        yield
    finally:
        _SHOWN.reset(before)


def bar(what: str, total: int, unit: str, *, done: int = 0) -> Any:
    """What counts `total` units, `done` of which were done before, as tqdm does: `update(n=1)`,
    `set_postfix(**values)`, `close()`, or a with block."""
    if not _SHOWN.get():
        return _Silent()
    tqdm = require("tqdm", extra="train").tqdm
    fixed: dict[str, Any] = {
        "desc": readable(what),
        "total": total,
        "initial": done,
        "leave": False,
    }
    if sys.stderr.isatty():
        return tqdm(
            unit=unit, mininterval=0.5, delay=0.5, ncols=shutil.get_terminal_size().columns, **fixed
        )

    class Lines(tqdm):  # type: ignore[misc,valid-type]
        def display(self, msg: str | None = None, pos: int | None = None) -> bool:
            if msg is None:
                print(self, file=self.fp, flush=True)
            return False  # there is nothing to clear

    return Lines(
        unit=f"{unit}s", bar_format=_LINE, mininterval=_EVERY, delay=_EVERY, miniters=1, **fixed
    )


def each(items: Iterable[T], what: str, total: int, unit: str) -> Iterator[T]:
    """The items, with a bar that counts them."""
    with bar(what, total, unit) as shown:
        for item in items:
            yield item
            shown.update()


class _Silent:
    """A bar that is not shown, for which tqdm need not be there."""

    def update(self, n: float = 1) -> None: ...

    def set_postfix(self, **values: Any) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *error: object) -> None: ...


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """For a block that prints while a bar may stand on the terminal."""
    tqdm = sys.modules.get("tqdm")
    if tqdm is None or not sys.stderr.isatty():
        yield
        return
    with tqdm.tqdm.external_write_mode():
        yield
