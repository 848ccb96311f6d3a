"""What the compiler put into the objects of the installed build, as docs/building.md demands.

An inline function with external linkage that two instruction sets share is kept once by the linker,
maybe in its AVX-512 form, and an old processor then meets an instruction that it does not have.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

BUILD = Path(__file__).parents[2] / "build"
# Registers and prefixes that the baseline of x86-64 lacks: AVX's wider registers, AVX-512's masks,
# AMX's tiles, and any mnemonic in AVX's encoding (all begin with v; verr and verw are older).
NEWER = re.compile(r"%[yzt]mm\d|%k[0-7]\b|\tv(?!err|erw)[a-z]")
# Decided by cpuid before they are used, not by flags of the compiler.
ALLOWED = re.compile(r"\bxgetbv\b")


def objects(*folders: str) -> list[Path]:
    """Objects of this interpreter's build under CMakeFiles/<folder>; skips where there are none."""
    # A wheel's tag begins with cp311-..., or cp312-abi3-... where the stable ABI serves.
    tags = [f"cp{sysconfig.get_config_var('py_version_nodot')}-*", "cp312-abi3-*"]
    for tag in tags:
        for build in sorted(BUILD.glob(tag)):
            found = [x for folder in folders for x in build.glob(f"CMakeFiles/{folder}/**/*.o")]
            if found:
                return found
    pytest.skip("no object files in build/: this is not an editable install")


def output(*command: str) -> list[str]:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.check_output(command, text=True).splitlines()


def test_kernel_objects_export_their_tables_alone(native: str) -> None:
    found = objects("kernels_*.dir")
    for path in found:
        isa = re.search(r"kernels_(\w+)\.dir", str(path))[1]
        lines = output("nm", "-C", "--defined-only", "--extern-only", str(path))
        symbols = {line.split(maxsplit=2)[2] for line in lines}
        assert symbols, path
        assert all(re.fullmatch(rf"robustft::\w+_{isa}", x) for x in symbols), (path, symbols)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="looks for instructions of x86-64")
def test_what_every_processor_runs_has_no_newer_instruction(native: str) -> None:
    host = objects("_native.dir", "nanobind-static.dir", "kernels_baseline.dir")
    for path in host:
        lines = output("objdump", "-d", "--no-show-raw-insn", str(path))
        newer = [line for line in lines if NEWER.search(line) and not ALLOWED.search(line)]
        assert not newer, (path, newer[:5])
    # The pattern is not blind: an AVX-512 object is full of them.
    (path,) = [x for x in objects("kernels_avx512.dir") if x.name.startswith("dive.")]
    assert any(NEWER.search(line) for line in output("objdump", "-d", str(path)))
