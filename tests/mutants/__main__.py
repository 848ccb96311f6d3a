"""python -m tests.mutants [part of a name]...: plants the faults of table.py and package.py, one
after the other, each in a copy of the tree, and says of which of them a test knows. Run by hand;
exit code 1 if one survives. With compiler caches (ccache) a fault in C++ takes a minute or so.

A fault counts as caught only where the test that failed passes without it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from . import package, table
from .table import Mutant

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
_PYTEST = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]


def main(parts: list[str]) -> int:
    """Plant those whose names contain one of `parts`, or all."""
    mutants = [*package.MUTANTS, *table.MUTANTS]
    wanted = [m for m in mutants if not parts or any(part in m.name for part in parts)]
    if not wanted:
        print(f"mutants: got {' '.join(parts)}, expected parts of names in tests/mutants/*.py")
        return 2
    survived = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        names = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
        for name in filter(None, names.split("\0")):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
        for mutant in wanted:
            before = (tree / mutant.file).read_text()
            if before.count(mutant.text) != 1:
                print(
                    f"mutants: {mutant.file}: got {before.count(mutant.text)} times "
                    f"{mutant.text!r}, expected one"
                )
                return 2
            (tree / mutant.file).write_text(before.replace(mutant.text, mutant.becomes))
            outcome, failed = _outcome(tree, mutant)
            (tree / mutant.file).write_text(before)
            if failed and not _passes(tree, mutant, failed):
                outcome = f"not told apart by {failed}, which fails without the fault, too:"
            survived += outcome not in ("caught", "hangs")
            print(f"{outcome:9} {mutant.name}" + (f" ({failed})" if failed else ""), flush=True)
    return 1 if survived else 0


def _outcome(tree: Path, mutant: Mutant) -> tuple[str, str]:
    """What became of it, and which test of pytest's failed.

    Caught; "hangs", which a run of the tests would notice too; survived; not built; not run.
    """
    in_native = mutant.tests.startswith("native:")
    compiled = mutant.file.startswith(("csrc/cpu", "csrc/bindings"))
    environment = _environment(tree, mutant)
    build = tree / "build"
    if compiled:
        if not _make(tree, build, in_native):
            return "not built", ""
        if not in_native:
            (module,) = build.glob("module/_native.*so")
            environment["ROBUSTFT_NATIVE"] = str(module)
    arguments = shlex.split(mutant.tests.removeprefix("native:").removeprefix("triton:"))
    if in_native:
        command = [str(build / "tests" / "csrc" / "tests" / "native_tests"), *arguments]
    else:
        command = [*_PYTEST, *arguments]
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, check=False,
            timeout=300 if in_native else 900,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "hangs", ""
    if not in_native and done.returncode not in (0, 1):
        return "not run", ""
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    named = failed[1] if failed and not in_native else ""
    return ("survived" if done.returncode == 0 else "caught"), named


def _passes(tree: Path, mutant: Mutant, test: str) -> bool:
    """Whether a test passes in the tree without the fault, with the installed native module."""
    return _quiet([*_PYTEST, test], tree, _environment(tree, mutant)) == 0


def _environment(tree: Path, mutant: Mutant) -> dict[str, str]:
    environment = os.environ | {"MUTANT_TREE": str(tree), "PYTHONPATH": str(HERE / "site")}
    if mutant.tests.startswith("triton:"):
        environment["TRITON_INTERPRET"] = "1"
    return environment


def _make(tree: Path, build: Path, tests: bool) -> bool:
    """Compile the module, or the native tests, of the tree."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = os.environ | {"PATH": path}
    folder = build / ("tests" if tests else "module")
    options = ["-DROBUSTFT_TESTS=ON", "-DROBUSTFT_MODULE=OFF"] if tests else []
    if not tests:
        nanobind = [sys.executable, "-m", "nanobind", "--cmake_dir"]
        options = [
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dnanobind_DIR={subprocess.check_output(nanobind, text=True).strip()}",
        ]
    configure = ["cmake", "-S", str(tree), "-B", str(folder), "-G", "Ninja", *options]
    return all(
        _quiet(command, tree, environment) == 0
        for command in (configure, ["cmake", "--build", str(folder)])
    )


def _quiet(command: list[str], folder: Path, environment: dict[str, str]) -> int:
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
