"""Build CUDA sources for the CPU: python tests/cuda/emulator/build.py OUT [SOURCE...]

OUT: the shared library, rebuilt if a source is newer. SOURCE: .cu files, by default all of
csrc/cuda. ROBUSTFT_CUDA_EMULATOR=OUT then makes backend "cuda" run on CPU tensors.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
CUDA = HERE.parents[2] / "csrc" / "cuda"
# -march=native: the library runs where it is built. FMAs are contracted, as nvcc does.
FLAGS = ["-std=c++17", "-O2", "-g1", "-fPIC", "-fvisibility=hidden", "-march=native"]
FLAGS += ["-ffp-contract=fast", "-fno-math-errno", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]


def compiler() -> str | None:
    """The C++ compiler: $CXX, g++ or clang++."""
    names = (os.environ.get("CXX"), "g++", "clang++")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def build(
    out: Path,
    sources: list[Path] | None = None,
    cxx: str | None = None,
    flags: tuple[str, ...] = (),
) -> Path:
    """Compile to `out` what is older than its sources; what the compiler says is raised."""
    cxx = cxx or compiler()
    if cxx is None:
        raise RuntimeError("no C++ compiler found: install g++ or clang, or set CXX")
    sources = sorted(CUDA.glob("*.cu")) if sources is None else sources
    headers = [*HERE.glob("*.hpp"), *CUDA.glob("*.cuh")]
    newest = max(p.stat().st_mtime for p in (Path(__file__), *headers))
    objects = out.parent / f"{out.stem}.objects"
    objects.mkdir(parents=True, exist_ok=True)

    def compiled(source: Path) -> Path:
        to = objects / f"{source.stem}{source.suffix}.o"
        if to.exists() and to.stat().st_mtime > max(newest, source.stat().st_mtime):
            return to
        language = ["-x", "c++", "-include", str(HERE / "emulator.hpp")]
        if source.suffix != ".cu":
            language = []
        _run([cxx, *FLAGS, *flags, *language, f"-I{CUDA}", "-c", str(source), "-o", str(to)])
        return to

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = list(pool.map(compiled, [*sorted(HERE.glob("*.cpp")), *sources]))
    if not out.exists() or any(x.stat().st_mtime > out.stat().st_mtime for x in made):
        _run([cxx, *FLAGS, *flags, "-shared", *map(str, made), "-o", str(out)])
    return out


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("sources", type=Path, nargs="*")
    options = parser.parse_args()
    build(options.out.resolve(), [x.resolve() for x in options.sources] or None)


if __name__ == "__main__":
    main()
