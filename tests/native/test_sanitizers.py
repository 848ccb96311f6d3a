"""The native code under sanitizers: its own test program, then the tests of all ops.

Python and torch are not built with sanitizers: the runtime is preloaded into them, and what they do
among themselves is none of our business (leaks of the interpreter, torch's own threads).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .builds import ROOT, Build, run

pytestmark = [pytest.mark.sanitize, pytest.mark.timeout(3600)]

ADDRESS = Build(
    "address",
    "g++",
    sanitize="address,undefined",
    module=True,
    # A child forked while another thread is in the sanitizer's allocator inherits its lock, held.
    left_out=("forked_while",),
    # gcc's frames that detect a use after return are not aligned for vectors of 64 bytes.
    environment=(
        ("ASAN_OPTIONS", "detect_stack_use_after_return=0"),
        ("UBSAN_OPTIONS", "print_stacktrace=1"),
    ),
)
THREAD = Build(
    "thread",
    "g++",
    sanitize="thread",
    module=True,
    # The sanitizer itself ends a child that was forked while other threads ran and starts as many.
    left_out=("forked_while",),
    environment=(
        # die_after_fork: by default it ends every forked child that starts a thread.
        # ignore_noninstrumented_modules: torch's copies and frees are not reported, locks count.
        ("TSAN_OPTIONS", "die_after_fork=0:ignore_noninstrumented_modules=1:halt_on_error=1"),
    ),
)
RUNTIMES = {"address": "libasan.so", "thread": "libtsan.so"}

ISAS = ("baseline", "avx2", "avx512", "avx512vnni", "avx512bf16", "amx")

# Left out: what runs no kernel of ours, and torch.compile's compilers, which take the time.
DESELECT = "not reference and not bad_input and not compile and not opcheck"

builds = pytest.mark.parametrize("build", [ADDRESS, THREAD], ids=lambda build: build.name)


@builds
def test_native_tests(build: Build) -> None:
    build.require_tools()
    build.make()
    print(run(build.tests, os.environ | dict(build.environment)))


@builds
@pytest.mark.parametrize("isa", ISAS)
def test_ops(build: Build, isa: str) -> None:
    build.require_tools()
    build.make()
    # Without torch's own threads: libgomp's are unknown to the thread sanitizer. Ours follow
    # torch.get_num_threads(), which tests of threads raise.
    environment = os.environ | dict(build.environment)
    environment |= {
        "ASAN_OPTIONS": "detect_stack_use_after_return=0:detect_leaks=0",  # the interpreter's
        "LD_PRELOAD": f"{library(build)} {cxx_library(build)}",
        "PYTHONPATH": str(Path(__file__).parent / "site"),
        "ROBUSTFT_NATIVE": str(build.find_module()),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "ROBUSTFT_PATIENCE": "10",
    }
    script = "from robustft import _native as native; print(native.__file__, *native.isas())"
    file, *isas = run([sys.executable, "-c", script], environment).split()
    assert file == str(build.find_module())
    if isa not in isas:
        pytest.skip(f"this processor or build does not run {isa}")
    tests = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    tests += ["-k", DESELECT if isa == ISAS[0] else f"{DESELECT} and not every_"]
    # What lies before the kernels is the same on all: once will do.
    folder = ROOT / "tests" / "ops"
    of_kernels = [*sorted(folder.glob("test_*_cpu.py")), folder / "test_properties.py"]
    tests += map(str, [folder] if isa == ISAS[0] else of_kernels)
    print(run(tests, environment | {"ROBUSTFT_CPU_ISA": isa}).splitlines()[-1])


def library(build: Build) -> str:
    """The runtime of the build's sanitizer; it must be loaded before everything else."""
    name = RUNTIMES[build.name]
    path = subprocess.check_output([build.compiler, f"-print-file-name={name}"], text=True).strip()
    if path == name:
        pytest.skip(f"{build.compiler} comes without {name}")
    return path


def cxx_library(build: Build) -> str:
    """libstdc++: its exceptions are intercepted when the runtime starts, or never."""
    return subprocess.check_output(
        [build.compiler, "-print-file-name=libstdc++.so.6"], text=True
    ).strip()
