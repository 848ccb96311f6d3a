"""Reading pickles without running anything in them.

A pickle is a program for a stack machine: opcodes that push plain values, name things to import,
and call them. Here `pickletools` of the standard library splits the bytes into opcodes, and the
machine below keeps its own stack. It imports nothing that a file names and calls nothing but the
few functions of its own tables, which make plain values, containers and tensors. Any other class
becomes a `Record`: its name, and the arguments and the state it would have been given, all inert.
So a whole pickled module can be read where its classes are not installed.

A class or function of Python's standard library that no checkpoint has a use for (posix.system,
builtins.eval, subprocess.Popen) is no record: the file is refused.
"""

from __future__ import annotations

import io
import pickletools
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, cast

from robustft.errors import InputError

_ALLOWED_STDLIB = frozenset({
    "argparse.Namespace", "builtins.bytearray", "builtins.bytes", "builtins.complex",
    "builtins.dict", "builtins.frozenset", "builtins.getattr", "builtins.list", "builtins.object",
    "builtins.range", "builtins.set", "builtins.slice", "builtins.tuple", "_codecs.encode",
    "collections.Counter",
    "collections.OrderedDict", "collections.defaultdict", "copyreg._reconstructor",
    "datetime.datetime", "datetime.timedelta", "enum.Enum", "functools.partial",
    "pathlib.Path", "pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib.WindowsPath",
    "types.SimpleNamespace",
})  # fmt: skip
# Python 2's names of modules, beside those of this Python.
_STDLIB = frozenset(sys.stdlib_module_names) | {"__builtin__", "commands"}
_MARK = object()


@dataclass(frozen=True)
class Name:
    """Something that a pickle names: never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Record:
    """What a pickle would have built of a class: its name, arguments and state, all inert."""

    __slots__ = ("args", "items", "kind", "state")

    def __init__(self, kind: Any, args: tuple[Any, ...] = ()) -> None:
        self.kind, self.args = kind, args
        self.state: Any = None
        self.items: list[Any] = []

    def attributes(self) -> dict[str, Any]:
        """The object's __dict__; empty where it would have had none."""
        state = self.state[0] if isinstance(self.state, tuple) and self.state else self.state
        return state if isinstance(state, dict) else {}

    def __repr__(self) -> str:
        return f"Record({self.kind})"


class Bounded(io.RawIOBase):
    """A file of known size: asking for more than is left is an error before memory is taken."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self.size = file, size

    def read(self, count: int = -1) -> bytes:
        if count > self.size - self._file.tell():
            raise InputError(f"damaged: {count} bytes are announced and not there")
        return self._file.read(count)

    def readline(self, limit: int | None = -1) -> bytes:
        return self._file.readline(-1 if limit is None else limit)

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)


def _number(dtype: Any, data: Any) -> Any:
    """A NumPy scalar, as learning rates of cosine schedules are saved."""
    code = dtype.args[0] if isinstance(dtype, Record) and dtype.args else None
    forms = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i", "b1": "<?"}
    if code in forms and isinstance(data, bytes) and len(data) == struct.calcsize(forms[code]):
        return struct.unpack(forms[code], data)[0]
    return Record(Name("numpy", "scalar"), (dtype, data))


def _encoded(data: Any, encoding: str = "latin1") -> bytes:
    """Bytes as protocols before 3 write them."""
    if isinstance(data, str) and encoding in ("latin1", "latin-1"):
        return data.encode("latin-1")
    if not isinstance(data, bytes):  # of a number Python would make as many zeros
        raise InputError(f"damaged: bytes of a {type(data).__name__} in {encoding!r}")
    return data


_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda pairs=(): dict(pairs),
    "builtins.dict": lambda pairs=(): dict(pairs),
    "builtins.list": lambda values=(): list(values),
    "builtins.tuple": lambda values=(): tuple(values),
    "builtins.set": lambda values=(): set(values),
    "builtins.frozenset": lambda values=(): frozenset(values),
    "builtins.bytes": lambda data=b"", *encoding: _encoded(data, *encoding),
    "builtins.bytearray": lambda data=b"", *encoding: bytearray(_encoded(data, *encoding)),
    "_codecs.encode": _encoded,
    "numpy.core.multiarray.scalar": _number,
    "numpy._core.multiarray.scalar": _number,
}


def _named(module: Any, name: Any) -> Name:
    if not (isinstance(module, str) and isinstance(name, str)):
        raise InputError("damaged: a name that is no text")
    module = "builtins" if module == "__builtin__" else module
    found = Name(module, name)
    if module.partition(".")[0] in _STDLIB and str(found) not in _ALLOWED_STDLIB:
        raise InputError(
            f"holds {found}, which loading would run; expected a checkpoint of tensors and of "
            "the classes of models"
        )
    return found


class Machine:
    """One pickle, from where the file stands.

    persistent: what a reference to something outside of the pickle means; calls: functions by name
    that stand for those of the file, besides the ones above.
    """

    def __init__(
        self,
        file: Bounded,
        persistent: Callable[[Any], Any],
        calls: Mapping[str, Callable[..., Any]],
    ) -> None:
        self.file, self.persistent = file, persistent
        self.calls = {**_CALLS, **calls}
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """What the program leaves. Errors: InputError, and whatever a damaged one runs into."""
        for name, arg in self._opcodes():
            if name == "STOP":
                return self.stack.pop()
            step = _STEPS.get(name)
            if step is None:
                raise InputError(f"damaged: an opcode {name}, which no checkpoint has")
            step(self, arg)
        raise InputError("damaged: it ends in the middle")

    def _opcodes(self) -> Iterator[tuple[str, Any]]:
        # pickletools looks no further than it reads, so that more may follow a pickle.
        for opcode, arg, _ in pickletools.genops(cast(IO[bytes], self.file)):
            yield opcode.name, arg

    def call(self, function: Any, args: Any) -> Any:
        """The own function of that name, or a record of the call."""
        if not isinstance(args, tuple):
            raise InputError(f"damaged: a call with {type(args).__name__}, expected a tuple")
        if isinstance(function, Record):  # what getattr would have found
            raise InputError(f"holds a call of {function.args}, which loading would run")
        own = self.calls.get(str(function)) if isinstance(function, Name) else None
        if own is not None:
            return own(*args)
        if str(function) == "copyreg._reconstructor" and args:
            return Record(args[0])
        return Record(function, args)

    def marked(self) -> list[Any]:
        """What lies above the last mark, taken off with it."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise InputError("damaged: a mark is missing")
        found = self.stack[at + 1 :]
        del self.stack[at:]
        return found

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def take(self, count: int) -> tuple[Any, ...]:
        found = tuple(self.stack[-count:])
        if len(found) < count:
            raise InputError("damaged: the stack is empty")
        del self.stack[-count:]
        return found

    def build(self, state: Any) -> None:
        target = self.stack[-1]
        if isinstance(target, Record):
            target.state = state
        # The state of a dictionary or tensor (its attributes) is of no use here.

    def extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, set):
            target.update(values)
        else:
            (target.items if isinstance(target, Record) else target).extend(values)

    def fill(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Record):
            target.items.extend(zip(pairs[::2], pairs[1::2], strict=True))
        elif isinstance(target, dict):
            target.update(zip(pairs[::2], pairs[1::2], strict=True))
        else:
            raise InputError(f"damaged: entries of a {type(target).__name__}")


def _constant(value: Any) -> Callable[[Machine, Any], None]:
    return lambda m, _: m.push(value)


def _argument(m: Machine, arg: Any) -> None:
    m.push(arg)


def _paired(values: list[Any]) -> dict[Any, Any]:
    return dict(zip(values[::2], values[1::2], strict=True))


def _tuple_of(count: int) -> Callable[[Machine, Any], None]:
    return lambda m, _: m.push(m.take(count))


def _global(m: Machine, arg: Any) -> None:
    module, _, name = arg.partition(" ")
    m.push(_named(module, name))


def _new(m: Machine, _: Any) -> None:
    kind, args = m.take(2)
    m.push(m.call(kind, args))


def _new_with_keywords(m: Machine, _: Any) -> None:
    kind, args, keywords = m.take(3)
    m.push(Record(kind, (args, keywords)))


def _object(m: Machine, _: Any) -> None:
    kind, *args = m.marked()
    m.push(m.call(kind, tuple(args)))


def _instance(m: Machine, arg: Any) -> None:
    module, _, name = arg.partition(" ")
    m.push(m.call(_named(module, name), tuple(m.marked())))


def _put(m: Machine, arg: Any) -> None:
    m.memo[arg] = m.stack[-1]


def _pop(m: Machine, _: Any) -> None:
    m.take(1)


_VALUES = (
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8"
)
_STEPS: dict[str, Callable[[Machine, Any], Any]] = {
    **dict.fromkeys(_VALUES.split(), _argument),
    **dict.fromkeys(("PROTO", "FRAME"), lambda m, _: None),
    "MARK": lambda m, _: m.push(_MARK),
    "POP": _pop,
    "POP_MARK": lambda m, _: m.marked(),
    "DUP": lambda m, _: m.push(m.stack[-1]),
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_SET": lambda m, _: m.push(set()),
    "EMPTY_TUPLE": _constant(()),
    "DICT": lambda m, _: m.push(_paired(m.marked())),
    "LIST": lambda m, _: m.push(m.marked()),
    "TUPLE": lambda m, _: m.push(tuple(m.marked())),
    "FROZENSET": lambda m, _: m.push(frozenset(m.marked())),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "APPEND": lambda m, _: m.extend(list(m.take(1))),
    "APPENDS": lambda m, _: m.extend(m.marked()),
    "ADDITEMS": lambda m, _: m.extend(m.marked()),
    "SETITEM": lambda m, _: m.fill(list(m.take(2))),
    "SETITEMS": lambda m, _: m.fill(m.marked()),
    "PUT": _put,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": lambda m, _: _put(m, len(m.memo)),
    "GET": lambda m, arg: m.push(m.memo[arg]),
    "BINGET": lambda m, arg: m.push(m.memo[arg]),
    "LONG_BINGET": lambda m, arg: m.push(m.memo[arg]),
    "GLOBAL": _global,
    "STACK_GLOBAL": lambda m, _: m.push(_named(*m.take(2))),
    "REDUCE": _new,
    "NEWOBJ": _new,
    "NEWOBJ_EX": _new_with_keywords,
    "OBJ": _object,
    "INST": _instance,
    "BUILD": lambda m, _: m.build(*m.take(1)),
    "PERSID": lambda m, arg: m.push(m.persistent(arg)),
    "BINPERSID": lambda m, _: m.push(m.persistent(*m.take(1))),
}
