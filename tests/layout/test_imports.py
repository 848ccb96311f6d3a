"""Imports run one way between the rooms."""

import ast
from pathlib import Path

import robustft

ROOT = Path(robustft.__file__).parent
# From the ground up: a room may import from lower floors, not from its own floor or above.
FLOORS = (
    {"errors"},
    {"files", "extras", "streaming", "tensors"},
    {"reference", "backends", "data"},
    {"ops", "models", "screening"},
    {"losses", "ensemble"},
    {"evaluate"},
    {"train", "report", "cpu", "cuda"},
    {"methods"},
    {"cli"},
    {"__main__"},
)
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in names if name.startswith("robustft."))
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("robustft."))


def test_no_import_runs_up():
    upward = []
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if room == "__init__":  # its lazy attributes reach up on purpose
            continue
        for name in _imports(path):
            target = name.split(".")[1]
            if target != room and FLOOR.get(target, -1) >= FLOOR[room]:
                upward.append(f"{path.relative_to(ROOT)} imports {name}")
    assert upward == []
