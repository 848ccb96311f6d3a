"""Compile every Triton kernel in every configuration for cards that need not be here.

    python -m benchmarks cubins [--write]     the table; --write puts it into docs/tables/triton.md

For each kernel, storage type and bucket of widths the static table (kernels/configs.py) names a
configuration for a compute capability; this compiles it to a cubin and reads registers, local
memory (spills) and shared memory from it. No GPU or driver is needed: ptxas comes with Triton,
cuobjdump with it or in NVIDIA's wheels.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.card import sass

CAPABILITIES = (80, 89, 90, 100)
# Bytes of shared memory that a program may have.
SHARED = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10}
# Spilled bytes a thread that may be, where none of them is touched in the loop of the products.
COLD = 1024
DOCUMENT = Path(__file__).parents[2] / "docs" / "tables" / "triton.md"

_FUSED = r"FFMA\d?"  # of float32; sm_100 takes two at a time
_TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_ALL = tuple(_TYPES)
_LABELS = {"row_labels": "i64", "column_labels": "i64", "mask": "u8"}
_MPM_NCE = {"SYMMETRIC": True, "SMOOTH": True, "NO_SELF": False}
_TILES = _MPM_NCE | {"PAIRS": 1, "MARGIN": True, "EVEN": False}
_FLAGS = ("NO_SELF", "EVEN")  # constants whose kernels are compiled both ways


@dataclass(frozen=True)
class Case:
    """One kernel in one configuration."""

    module: str
    kernel: str
    dtype: torch.dtype
    width: int
    capability: int
    flag: str = ""  # a constant that is True instead of False

    @property
    def name(self) -> str:
        return f"{self.module}.{self.kernel}" + (f" {self.flag}" if self.flag else "")


@dataclass(frozen=True)
class Usage:
    """What a compiled kernel takes of a multiprocessor."""

    case: Case
    options: str
    registers: int
    spilled: int  # bytes of local memory a thread
    looped: int  # accesses of local memory in the loop of the products (all, if there is none)
    shared: int


# (module, kernel) → pointers and their types ("x": the storage type), floats, constants but tiles.
_KERNELS: dict[tuple[str, str], tuple[dict[str, str], tuple[str, ...], dict[str, Any]]] = {
    ("dive", "forward_rows"): (
        dict.fromkeys(("f", "f0", "g", "g0"), "x") | {"scratch": "fp32"},
        (),
        {"NORMALIZE": True},
    ),
    ("dive", "forward_merge"): (
        dict.fromkeys(("scratch", "mean", "avl", "pvl", "new_mean"), "fp32"),
        ("momentum",),
        {"BLOCK_P": 64, "BLOCK_C": 64, "MERGES": 16, "num_warps": 4},
    ),
    ("dive", "backward_rows"): (
        dict.fromkeys(("f", "f0", "g", "g0", "grad_f", "grad_g"), "x")
        | dict.fromkeys(("mean", "grad_avl", "grad_pvl"), "fp32"),
        (),
        {"NORMALIZE": True},
    ),
    ("vrf", "forward_rows"): (
        dict.fromkeys(("finetuned", "zeroshot", "out"), "x") | {"distance": "fp32"},
        ("a", "b", "rate_finetuned", "rate_zeroshot"),
        {"LOG": True},
    ),
    ("vrf", "backward_rows"): (
        dict.fromkeys(("finetuned", "zeroshot", "grad", "grad_finetuned", "grad_zeroshot"), "x")
        | dict.fromkeys(("distance", "grad_distance"), "fp32"),
        ("a", "b", "rate_finetuned", "rate_zeroshot"),
        {"LOG": True},
    ),
    ("mpm_nce", "forward_tiles"): (
        {"x": "x", "y": "x"} | dict.fromkeys(("scale", "scratch"), "fp32") | _LABELS,
        ("margin",),
        _TILES | {"SLABS": False, "TILES": 8},
    ),
    ("mpm_nce", "forward_merge"): (
        dict.fromkeys(("scratch", "rows_out", "columns_out", "loss", "anchors_out"), "fp32"),
        ("smoothing",),
        _MPM_NCE | {"BLOCK_P": 32, "ANCHORS": 32, "num_warps": 4},
    ),
    ("mpm_nce", "forward_fold"): (
        dict.fromkeys(("scratch", "rows_out"), "fp32"),
        ("smoothing",),
        {"SMOOTH": True, "NO_SELF": False, "BLOCK_P": 32, "ANCHORS": 32, "num_warps": 4},
    ),
    ("mpm_nce", "grad_tiles"): (
        {"x": "x", "y": "x", "grad_z": "x"}
        | dict.fromkeys(
            ("scale", "row_statistics", "column_statistics", "anchors", "parts"), "fp32"
        )
        | _LABELS,
        ("margin", "smoothing", "factor"),
        _TILES,
    ),
    ("mpm_nce", "grad_finish"): (
        {"grad_x": "x", "grad_y": "x"}
        | dict.fromkeys(("x_product", "y_product", "parts", "grad_scale", "scale", "grad"), "fp32"),
        ("factor",),
        {"SUM": True, "BLOCK": 2048, "num_warps": 4},
    ),
    ("nearest", "round_rows"): (
        {"halves": "fp16"} | dict.fromkeys(("x", "mean", "numbers"), "fp32"),
        (),
        {"SCALED": False, "R": 4, "BLOCK_K": 128, "num_warps": 4},
    ),
    ("nearest", "aim_rows"): (
        dict.fromkeys(("products", "q", "sample", "aims"), "fp32"),
        ("slack",),
        {"R": 1, "BLOCK": 4096, "num_warps": 16},
    ),
    ("nearest", "screen_tiles"): (
        {"q": "fp16", "v": "fp16", "lists": "i32", "counts": "i32"}
        | dict.fromkeys(("q_numbers", "aims", "v_numbers", "values"), "fp32"),
        (),
        {},
    ),
    ("nearest", "resolve_rows"): (
        dict.fromkeys(("lists", "counts", "kept", "ranks"), "i32")
        | dict.fromkeys(("q", "v", "values", "upper"), "fp32"),
        ("slack",),
        {"EVERY": False, "R": 1, "BLOCK": 1024, "num_warps": 4},
    ),
    ("nearest", "exact_rows"): (
        {"q": "fp32", "v": "fp32", "lists": "i32", "kept": "i32", "values": "fp32"},
        (),
        {"BLOCK_C": 8, "BLOCK_K": 128, "num_warps": 4},
    ),
    ("nearest", "select_rows"): (
        {"counts": "i32", "kept": "i32", "ranks": "i32", "safe": "i1"}
        | dict.fromkeys(("values", "q", "aims", "kth"), "fp32"),
        (),
        {"R": 1, "BLOCK": 256, "num_warps": 1},
    ),
    ("rsa", "moments_tiles"): (
        dict.fromkeys(("a", "b", "a_norms", "b_norms", "out"), "fp32"),
        (),
        {"COSINE": False, "EVEN_A": True, "EVEN_B": True},
    ),
}
# Kernels whose row is held in registers take its bucket; what is not listed has one width, 512.
_ROW = {"dive": "BLOCK_D", "vrf": "BLOCK_K"}
_ALIGNED = ("dim", "dim_a", "dim_b", "width", "capacity")
_WIDTHS = {"dive": (256, 512, 768, 1024, 2048, 4096), "vrf": (512, 1000, 2048, 4096, 8192)}
_FIXED = {  # kernels that see float32 or float16 numbers only
    ("dive", "forward_merge"), ("mpm_nce", "forward_merge"), ("mpm_nce", "forward_fold"),
    ("rsa", "moments_tiles"),
    *(key for key in _KERNELS if key[0] == "nearest"),
}  # fmt: skip


def cases(capabilities: tuple[int, ...] = CAPABILITIES) -> Iterator[Case]:
    for capability in capabilities:
        for module, kernel in _KERNELS:
            fixed = (module, kernel) in _FIXED
            for dtype in _ALL[:1] if fixed else _ALL:
                for width in _WIDTHS[module] if module in _WIDTHS and not fixed else (512,):
                    yield Case(module, kernel, dtype, width, capability)
                for flag in _FLAGS:
                    if flag in _KERNELS[module, kernel][2]:
                        yield Case(module, kernel, dtype, 512, capability, flag)


def kernels(module: str) -> list[str]:
    """The kernels of a module that the table of configurations is for."""
    return [kernel for name, kernel in _KERNELS
            if name == module and "num_warps" not in _KERNELS[name, kernel][2]]  # fmt: skip


def compiled(case: Case, instead: dict[str, Any] | None = None) -> Usage:
    """Compile one case, with the table's options or others, and read what it takes."""
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from robustft.kernels import configs

    function = getattr(importlib.import_module(f"robustft.kernels.{case.module}"), case.kernel)
    pointers, floats, constants = _KERNELS[case.module, case.kernel]
    options = constants | ({case.flag: True} if case.flag else {})
    if "num_warps" not in constants:
        options |= instead or configs.choose(case.module, case.capability, case.dtype, case.width)
    if case.module in _ROW:
        options.setdefault(_ROW[case.module], configs.bucket(case.width))
    options |= {
        name: value
        for name, value in {
            "EVEN_K": True, "PRECISION": "ieee", "UPCAST": False,
        }.items()
        if name in function.arg_names
    }  # fmt: skip
    signature, aligned = {}, {}
    for index, name in enumerate(function.arg_names):
        if name in pointers:
            kind = pointers[name]
            signature[name] = "*" + (_TYPES[case.dtype] if kind == "x" else kind)
        elif name in floats:
            signature[name] = "fp32"
        else:
            signature[name] = "constexpr" if name in options else "i32"
        # As a launch finds them: pointers, widths and row strides are multiples of 16.
        if name in pointers or name.endswith(("stride",)) or name in _ALIGNED:
            aligned[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(
        fn=function,
        signature=signature,
        constexprs={k: v for k, v in options.items() if k in function.arg_names},
        attrs=aligned,
    )
    launch = {k: v for k, v in options.items() if k in ("num_warps", "num_stages")}
    target = GPUTarget("cuda", case.capability, 32)
    try:
        kernel = triton.compile(source, target=target, options=launch)
    except RuntimeError as error:
        raise RuntimeError(f"{case} with {options}") from error
    registers, spilled, looped = _resources(kernel.asm["cubin"], "PRECISION" in options)
    tiles = " ".join(
        f"{name}={options[name]}"
        for name in options
        if name.startswith(("BLOCK", "num_")) or name in ("TILES", "ANCHORS")
    )
    return Usage(case, tiles, registers, spilled, looped, kernel.metadata.shared)


def _resources(cubin: bytes, multiplies: bool) -> tuple[int, int, int]:
    """Registers, spilled bytes, and accesses of those in the loop of the products.

    multiplies: the kernel has one, in float32 perhaps without tensor cores.
    """
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", sass.dump(cubin, "-res-usage"))
    assert found is not None
    spilled = int(found[2]) + int(found[3])
    (code,) = sass.functions(cubin).values() if spilled else ((),)
    return int(found[1]), spilled, looped(code, multiplies)


def looped(code: sass.Code, multiplies: bool = False) -> int:
    """Accesses of local memory in the smallest loops around tensor-core products; if there are
    none, in the loop where products of the vector units are densest, or in all the code."""
    parts = sass.around(code, r"\w*MMA")
    if not parts and multiplies:
        parts = sorted(sass.around(code, _FUSED), key=_density)[-1:]
    parts = parts or [code]
    return sum(len(sass.having(part, "LDL", "STL")) for part in parts)


def _density(code: sass.Code) -> float:
    return len(sass.having(code, _FUSED)) / len(code)


def report(found: list[Usage]) -> str:
    """A markdown table."""
    head = [
        "kernel",
        "dtype",
        "width",
        "sm",
        "configuration",
        "registers",
        "spilled",
        "in the loop",
        "shared",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for u in found:
        c = u.case
        lines.append(
            f"| {c.name} | {str(c.dtype).removeprefix('torch.')} | {c.width} | {c.capability} "
            f"| {u.options} | {u.registers} | {u.spilled} | {u.looped} | {u.shared} |"
        )
    return "\n".join(lines)


def run(wanted: list[Case]) -> list[Usage]:
    """Compile in parallel processes."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compiled, wanted, chunksize=4))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks cubins", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {DOCUMENT.name}")
    table = report(run(list(cases())))
    print(table)
    if parser.parse_args(arguments).write:
        import triton

        DOCUMENT.write_text(
            "# Registers, spills and shared memory\n\n"
            "Every Triton kernel in every configuration of `kernels/configs.py`, compiled for "
            "sm_80, sm_89, sm_90 and\nsm_100 by `python -m benchmarks cubins --write` with Triton "
            f"{triton.__version__}; no card is involved. Registers and\nspilled bytes are a "
            "thread's, shared memory is a program's, in bytes. In the loop: accesses of "
            "spilled\nregisters in the loop of the products; what mpm_nce spills otherwise is for "
            "rare branches.\n\n" + table + "\n",
            encoding="utf-8",
        )
