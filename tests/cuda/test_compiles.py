"""Every CUDA kernel compiles for cards that are not here, and does not spill."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.card import cuda_cubins, sass
from robustft import backends
from robustft.backends.cuda import launcher

pytestmark = pytest.mark.skipif(backends.emulating(), reason="emulated kernels are C++")


@pytest.fixture(scope="module")
def usages() -> list[cuda_cubins.Usage]:
    if cuda_cubins.library() is None:
        pytest.skip("NVRTC is not installed: pip install nvidia-cuda-nvrtc")
    if sass.tool() is None:
        pytest.skip("cuobjdump is not installed: pip install 'robustft[dev]'")
    return cuda_cubins.run()


def test_every_kernel_compiles_by_nvrtc_and_fits(usages: list[cuda_cubins.Usage]) -> None:
    compiled = {(u.source, u.kernel, u.architecture) for u in usages}
    for source in cuda_cubins.sources():
        names = cuda_cubins.kernels(source)
        assert names, source
        for architecture in cuda_cubins.architectures(source):
            assert {(source, name, architecture) for name in names} <= compiled
    for usage in usages:
        assert usage.spilled == 0, usage
        assert usage.registers <= 255, usage
        # What a launch gets without asking for more, and what the card keeps.
        assert usage.shared <= 49 << 10, usage


def test_the_document_is_of_these_kernels(usages: list[cuda_cubins.Usage]) -> None:
    """Registers differ with the compiler's version; what is listed must not."""
    table = cuda_cubins.DOCUMENT.read_text("utf-8")
    listed = re.findall(r"^\| (\w+) \| `(.+)` \| (\w+) \|", table, flags=re.MULTILINE)
    wanted = [(u.source, u.kernel, u.architecture.removeprefix("sm_")) for u in usages]
    assert sorted(listed) == sorted(wanted), "run python -m benchmarks cuda_cubins --write"


def test_every_source_compiles_as_cupy_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """CuPy's own way into NVRTC, with all the options that it adds; it asks a card for its name."""
    pytest.importorskip("cupy")
    from cupy._core import core
    from cupy.cuda import compiler

    def named(arch: str | None = None) -> tuple[str, str]:
        return f"-arch=sm_{arch}", "cubin"

    monkeypatch.setattr(compiler, "_get_arch_for_options_for_nvrtc", named)
    options = (*core.assemble_cupy_compiler_options(launcher.OPTIONS), "-ftz=true")
    for source in cuda_cubins.sources():
        name = cuda_cubins.kernels(source)[-1]
        for arch in ("80", "90"):
            cubin, lowered = compiler.compile_using_nvrtc(
                launcher.text(source), options, arch, f"{source}.cu", (name,)
            )
            assert cubin.startswith(b"\x7fELF")
            assert lowered[name].encode() in cubin


def _nvcc() -> str:
    homes = [Path(os.environ[x]) / "bin" for x in ("CUDA_HOME", "CUDA_PATH") if x in os.environ]
    path = os.pathsep.join([*map(str, homes), os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
    found = shutil.which("nvcc", path=path)
    if found is None:
        pytest.skip("nvcc is not installed")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["80", "89", "90a", "100"])
def test_every_source_compiles_by_nvcc(architecture: str, tmp_path: Path) -> None:
    nvcc = _nvcc()
    for source in cuda_cubins.sources():
        command = [
            nvcc, "-std=c++17", f"-gencode=arch=compute_{architecture},code=sm_{architecture}",
            "-cubin", "-Xptxas=-v", "-Werror=all-warnings", "-o", str(tmp_path / "out.cubin"),
            str(launcher.SOURCES / f"{source}.cu"),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", done.stderr)
        assert len(spills) >= 2 * len(cuda_cubins.kernels(source)), done.stderr
        assert set(spills) == {"0"}, done.stderr
