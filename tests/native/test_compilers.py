"""The native code by itself: no warnings from two compilers, its tests on two architectures.

The test program (csrc/tests) needs no Python, so it also runs where only an emulator does.
"""

from __future__ import annotations

import pytest

from .builds import Build, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

BUILDS = [
    Build("gcc", "g++", flags="-Werror", module=True),
    Build("clang", "clang++", flags="-Werror", module=True),
    Build(
        "aarch64",
        "aarch64-linux-gnu-g++",
        flags="-Werror",
        cmake=(
            "-DCMAKE_SYSTEM_NAME=Linux",
            "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
            "-DCMAKE_EXE_LINKER_FLAGS=-static",  # no library of that architecture to find
        ),
        runner=("qemu-aarch64",),
        left_out=("forked",),  # qemu ends a forked child that starts a thread
    ),
]


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.name)
def test_compiles_without_warnings_and_passes_the_native_tests(build: Build) -> None:
    build.require_tools()
    build.make()
    print(run(build.tests))
