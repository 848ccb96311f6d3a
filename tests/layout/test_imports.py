"""Imports run one way between the rooms, in the order that docs/architecture.md draws."""

import ast
import re
from pathlib import Path

import robustft
from robustft import kernels

ROOT = Path(__file__).parents[2]
# Folder → what its modules' names begin with. Those of the package are named without "robustft.".
FOLDERS = {
    Path(robustft.__file__).parent: "",
    Path(kernels.__file__).parent: "kernels",
    ROOT / "benchmarks": "benchmarks",
}
# Its lazy attributes reach up on purpose.
EXEMPT = "__init__"


def _floors():
    """The drawn order from the ground up: a list of sets of rooms that do not see each other."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = re.search(r"^Imports run one way(?:.+\n)+\n((?:    .+\n)+)", text, re.MULTILINE)
    assert drawn, "docs/architecture.md: the drawing after 'Imports run one way' is not found"
    floors = [{room.strip() for room in part.split(",")} for part in drawn[1].split("→")]
    return list(reversed(floors))


FLOORS = _floors()
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}


def _room(module):
    """The room of a module: "backends.cpu" of "backends.cpu.dive"."""
    parts = module.split(".")
    pair = ".".join(parts[:2])
    return pair if pair in FLOOR else parts[0]


def _modules():
    for folder, prefix in FOLDERS.items():
        for path in folder.rglob("*.py*"):
            if path.suffix not in (".py", ".pyi"):
                continue
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((prefix, *parts) if prefix else parts).removesuffix(".__init__")
            if name != EXEMPT:
                yield path, name


def _imports(text):
    """The modules, or names in them, of ours that a source imports anywhere in it."""
    names = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: a relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    ours = (name for name in names if name.partition(".")[0] in ("robustft", "benchmarks"))
    found = [name.removeprefix("robustft.") for name in ours if "." in name]
    return [name for name in found if name != "__version__"]


def _upward(name, text):
    """What a module of this name and source imports from its own floor or above, or from none."""
    room = _room(name)
    targets = [(imported, _room(imported)) for imported in _imports(text)]
    return [
        f"{name} imports {imported}: {target} is not below {room}"
        for imported, target in targets
        if target != room and FLOOR.get(target, len(FLOORS)) >= FLOOR[room]
    ]


def test_every_room_has_its_floor_and_every_drawn_room_exists():
    assert sum(map(len, FLOORS)) == len(FLOOR), "a room is drawn twice"
    assert {_room(name) for _, name in _modules()} == set(FLOOR)


def test_no_import_runs_up():
    found = [_upward(name, path.read_text(encoding="utf-8")) for path, name in _modules()]
    assert [line for lines in found for line in lines] == []


def test_an_import_that_runs_up_is_found_wherever_it_stands():
    inside = "def f():\n    from robustft.ops import dive\n"
    assert _upward("kernels.nearest", "from robustft import backends\n")
    assert _upward("backends.cpu.dive", inside)
    assert _upward("backends.cpu.dive", "import robustft.backends.cuda.launcher\n")
    assert _upward("ops.dive", "from benchmarks import harness\n")
    assert not _upward("ops.dive", "from robustft import backends\nimport torch\n")
    assert not _upward("cli.main", inside)
