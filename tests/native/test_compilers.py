"""The native code by itself: no warnings from two compilers, its tests on two architectures.

The test program (csrc/tests) needs no Python, so it also runs where only an emulator does.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from .builds import Build, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# clang finds neither headers nor libraries of Debian's MinGW by itself.
MINGW = max(Path("/usr/lib/gcc/x86_64-w64-mingw32").glob("*-posix"), default=Path("mingw"))
HEADERS = MINGW / "include" / "c++"
CROSS = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64")

BUILDS = [
    Build("gcc", "g++", flags="-Werror", module=True),
    Build("clang", "clang++", flags="-Werror", module=True),
    Build(
        "aarch64",
        "aarch64-linux-gnu-g++",
        flags="-Werror",
        cmake=(*CROSS, "-DCMAKE_EXE_LINKER_FLAGS=-static"),  # no library of it to find
        runner=("qemu-aarch64",),
        left_out=("forked",),  # qemu ends a forked child that starts a thread
    ),
    Build(
        "aarch64-clang",
        "clang++",
        flags="-Werror",
        cmake=(
            *CROSS,
            "-DCMAKE_CXX_COMPILER_TARGET=aarch64-linux-gnu",
            "-DCMAKE_EXE_LINKER_FLAGS=-static",
        ),
        runner=("qemu-aarch64",),
        left_out=("forked",),
    ),
    Build(
        "windows",
        "clang++",
        flags=f"-Werror -isystem {HEADERS} -isystem {HEADERS / MINGW.parent.name}",
        cmake=(
            "-DCMAKE_SYSTEM_NAME=Windows",
            "-DCMAKE_SYSTEM_PROCESSOR=AMD64",
            "-DCMAKE_CXX_COMPILER_TARGET=x86_64-w64-mingw32",
            "-DCMAKE_RC_COMPILER=x86_64-w64-mingw32-windres",
            f"-DCMAKE_EXE_LINKER_FLAGS=-static -L{MINGW}",
            "-DCMAKE_CXX_STANDARD_LIBRARIES=-lstdc++ -lwinpthread -lkernel32",
        ),
        runner=("/usr/lib/wine/wine64",),
        program="native_tests.exe",
    ),
]


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.name)
def test_compiles_without_warnings_and_passes_the_native_tests(build: Build) -> None:
    build.require_tools()
    if build.name == "windows" and not MINGW.is_dir():
        pytest.skip("MinGW is not installed")
    build.make()
    print(run(build.tests))
