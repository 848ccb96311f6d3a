"""Compile every kernel of csrc/cuda for cards that need not be here.

    python -m benchmarks cuda_cubins [--write]    the table; --write: into docs/tables/cuda.md

NVRTC, which torch brings, gets each source with the options that a launch passes
(robustft/backends/cuda/launcher.py) and every instantiation that the source names; cuobjdump, of
NVIDIA's wheels or Triton's, reads registers, local memory (spills) and static shared memory from
the cubin. No driver is needed.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.card import sass
from robustft.backends.cuda import launcher

ARCHITECTURES = ("sm_80", "sm_89", "sm_90", "sm_100")
DOCUMENT = Path(__file__).parents[2] / "docs" / "tables" / "cuda.md"
_EACH = 8  # instantiations a compilation: the source is parsed in 0.1 s, each takes 0.2 to 1 s


@dataclass(frozen=True)
class Usage:
    """What a compiled kernel takes of a multiprocessor."""

    source: str
    kernel: str
    architecture: str
    registers: int
    spilled: int  # bytes of local memory a thread
    shared: int  # bytes, static; sm_90 and later keep 1 KB of them for themselves


def library() -> Path | None:
    """NVRTC, as the nvidia wheels install it."""
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec is not None else None
    found = (p for folder in folders or () for p in sorted(Path(folder).rglob("libnvrtc.so.*")))
    return next(found, None)


def sources() -> list[str]:
    return sorted(path.stem for path in launcher.SOURCES.glob("*.cu"))


def kernels(source: str) -> list[str]:
    """What launch() may name, as the source lists it."""
    return re.findall(r"^INSTANTIATE\((.+)\);$", launcher.text(source), flags=re.MULTILINE)


def architectures(source: str) -> list[str]:
    """Those to compile for: a source that needs sm_90a is empty for all others."""
    return ["sm_90a"] if launcher.needs_sm_90a(source) else list(ARCHITECTURES)


def compiled(source: str, names: tuple[str, ...], architecture: str) -> list[Usage]:
    """What some kernels of a source take; what the compiler says is raised."""
    code, lowered = cubin(source, names, architecture)
    return [
        Usage(source, lowered[found[1]], architecture, *map(int, (found[2], found[3], found[4])))
        for found in re.finditer(
            r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", sass.dump(code, "-res-usage")
        )
        if found[1] in lowered
    ]


def instructions(source: str, kernel: str, architecture: str) -> sass.Code:
    """The machine code of one kernel."""
    code, lowered = cubin(source, (kernel,), architecture)
    (name,) = lowered
    return sass.functions(code)[name]


def cubin(source: str, names: tuple[str, ...], architecture: str) -> tuple[bytes, dict[str, str]]:
    """Some kernels of a source compiled, and their names by the mangled ones."""
    nvrtc = ctypes.CDLL(str(library()))
    program = ctypes.c_void_p()

    def call(function: str, *args: object) -> int:
        return getattr(nvrtc, function)(program, *args)

    code = launcher.text(source).encode()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), code, source.encode() + b".cu", 0, None, None)
    for name in names:
        call("nvrtcAddNameExpression", name.encode())
    options = [x.encode() for x in launcher.compiler_options(architecture)]
    failed = call("nvrtcCompileProgram", len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    call("nvrtcGetProgramLogSize", ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    call("nvrtcGetProgramLog", log)
    if failed or b"warning" in log.value:
        raise RuntimeError(f"{source}.cu for {architecture}:\n{log.value.decode()}")
    lowered = {}
    for name in names:
        found = ctypes.c_char_p()
        call("nvrtcGetLoweredName", name.encode(), ctypes.byref(found))
        assert found.value is not None, name
        lowered[found.value.decode()] = name
    call("nvrtcGetCUBINSize", ctypes.byref(size))
    compiled = ctypes.create_string_buffer(size.value)
    call("nvrtcGetCUBIN", compiled)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return compiled.raw, lowered


def run() -> list[Usage]:
    """Everything, in parallel processes, in the order of the sources and the architectures."""
    jobs = [
        (source, names, architecture)
        for source in sources()
        for architecture in architectures(source)
        for names in _cut(kernels(source))
    ]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return [usage for found in pool.map(compiled, *zip(*jobs, strict=True)) for usage in found]


def _cut(names: list[str]) -> list[tuple[str, ...]]:
    return [tuple(names[i : i + _EACH]) for i in range(0, len(names), _EACH)]


def report(found: list[Usage]) -> str:
    """A markdown table."""
    head = ["source", "kernel", "sm", "registers", "spilled", "static shared"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for u in found:
        sm = u.architecture.removeprefix("sm_")
        lines.append(
            f"| {u.source} | `{u.kernel}` | {sm} | {u.registers} | {u.spilled} | {u.shared} |"
        )
    return "\n".join(lines)


def write(found: list[Usage]) -> None:
    DOCUMENT.write_text(
        "# Registers, spills and shared memory of the CUDA kernels\n\n"
        "Every kernel of `csrc/cuda`, compiled by NVRTC with the options of a launch for sm_80, "
        "sm_89, sm_90\n(sm_90a where a kernel needs it) and sm_100, by "
        "`python -m benchmarks cuda_cubins --write`; no card\nis involved. Registers and spilled "
        "bytes are a thread's; shared memory is a block's static part, in\nbytes, 1,024 of which "
        "sm_90 and later keep for themselves.\n\n" + report(found) + "\n",
        encoding="utf-8",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks cuda_cubins", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {DOCUMENT.name}")
    options = parser.parse_args(arguments)
    found = run()
    print(report(found))
    if options.write:
        write(found)
