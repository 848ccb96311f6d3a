"""Imports run one way between the rooms, in the order that docs/architecture.md draws."""

import ast
from pathlib import Path

import robustft
from robustft import kernels

# From the ground up: a room may import from lower floors, not from its own floor or above.
FLOORS = (
    {"errors"},
    {"files", "extras", "scalars", "jsonlines"},
    {"accuracy"},
    {"backends.options", "backends.simulation", "backends.tensors", "data"},
    {"backends.reference"},
    {"backends.search"},
    {"backends.cpu", "backends.cuda", "kernels"},
    {"backends"},
    {"ops", "models"},
    {"losses", "ensemble"},
    {"evaluate"},
    {"train"},
    {"methods"},
    {"report"},
    {"cli"},
    {"__main__"},
)
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
FOLDERS = {Path(robustft.__file__).parent: "", Path(kernels.__file__).parent: "kernels"}


def _room(module):
    """The room of a module named below robustft: "backends.cpu" of "backends.cpu.dive"."""
    parts = module.split(".")
    pair = ".".join(parts[:2])
    return pair if pair in FLOOR else parts[0]


def _modules():
    for folder, prefix in FOLDERS.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((prefix, *parts) if prefix else parts).removesuffix(".__init__")
            if name != "__init__":  # its lazy attributes reach up on purpose
                yield path, name


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in names if name.startswith("robustft."))
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("robustft."))


def test_every_room_has_its_floor():
    assert {_room(name) for _, name in _modules()} <= set(FLOOR)


def test_no_import_runs_up():
    upward = []
    for path, name in _modules():
        room = _room(name)
        for imported in _imports(path):
            target = _room(imported.removeprefix("robustft."))
            if target != room and FLOOR.get(target, -1) >= FLOOR[room]:
                upward.append(f"{path.name} of {room} imports {imported}")
    assert upward == []
