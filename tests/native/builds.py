"""Builds of the native code beside the installed one, in build/native-<name>."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Build:
    """How csrc/ is compiled, and how its test program runs."""

    name: str
    compiler: str
    flags: str = ""
    module: bool = False  # the Python module too
    cmake: tuple[str, ...] = ()
    sanitize: str = ""
    runner: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()  # tests that the runner cannot do
    environment: tuple[tuple[str, str], ...] = ()
    program: str = "native_tests"

    @property
    def folder(self) -> Path:
        return ROOT / "build" / f"native-{self.name}"

    @property
    def tests(self) -> list[str]:
        """The command that runs the test program."""
        struck = [f"-{name}" for name in self.left_out]
        return [*self.runner, str(self.folder / "csrc" / "tests" / self.program), *struck]

    def require_tools(self) -> None:
        """Skip the test, with the reason, where a tool is missing."""
        for tool in ("cmake", self.compiler, *self.runner[:1]):
            if shutil.which(tool, path=_path()) is None:
                pytest.skip(f"{tool} is not installed")
        if self.module and importlib.util.find_spec("nanobind") is None:
            pytest.skip("nanobind is not installed")

    def make(self) -> None:
        """Compile; what the compiler says is shown if it fails."""
        options = [
            f"-DCMAKE_CXX_COMPILER={self.compiler}",
            f"-DCMAKE_CXX_FLAGS={self.flags}",
            f"-DROBUSTFT_SANITIZE={self.sanitize}",
            "-DROBUSTFT_TESTS=ON",
            f"-DROBUSTFT_MODULE={'ON' if self.module else 'OFF'}",
            *self.cmake,
        ]
        if self.module:
            nanobind = [sys.executable, "-m", "nanobind", "--cmake_dir"]
            options += [
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-Dnanobind_DIR={subprocess.check_output(nanobind, text=True).strip()}",
            ]
        if shutil.which("ninja", path=_path()) is not None:
            options += ["-G", "Ninja"]
        cmake = shutil.which("cmake", path=_path())
        run([cmake, "-S", str(ROOT), "-B", str(self.folder), *options])
        run([cmake, "--build", str(self.folder), "--parallel"])

    def find_module(self) -> Path:
        """The Python module that `make` built."""
        (path,) = self.folder.glob("_native.*so")
        return path


def run(command: list[str], environment: dict[str, str] | None = None) -> str:
    """Run to the end, and fail the test with all that was said if that is not 0."""
    done = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd=ROOT,
    )
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-20000:]}")
    return done.stdout


def _path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
