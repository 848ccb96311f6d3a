"""Faults to plant: in which file which text becomes which, and which tests should notice.

A text must occur once in its file. Tests are arguments of pytest, after "triton:" in Triton's
interpreter, or, after "native:", of the native test program (csrc/tests). These are the faults in
C++; package.py has those in Python.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    name: str
    file: str
    text: str
    becomes: str
    tests: str


_NEAREST = "tests/ops/test_nearest_cpu.py"
_MPM_NCE = "tests/ops/test_mpm_nce_cpu.py"

MUTANTS = [
    Mutant(
        "nearest accepts an answer beyond its threshold",
        "csrc/cpu/nearest/search.cpp",
        "settle(which[q], mine, found[q]) <= threshold)",
        "settle(which[q], mine, found[q]) <= 1.5f * threshold)",
        _NEAREST,
    ),
    Mutant(
        "nearest screens without slack",
        "csrc/cpu/nearest/pack.cpp",
        "return kInt8 ? 0x1p-20 : (2 * static_cast<double>(dim) + 32) * 0x1p-24;",
        "return 0 * static_cast<double>(dim);",
        _NEAREST,
    ),
    Mutant(
        "mpm_nce compares labels by their low 32 bits",
        "csrc/cpu/mpm_nce/positives.cpp",
        "slots_[at].label != label)",
        "static_cast<int32_t>(slots_[at].label) != static_cast<int32_t>(label))",
        _MPM_NCE,
    ),
    Mutant(
        "the thread pool is not renewed after a fork",
        "csrc/cpu/threads.cpp",
        "  the_pool.store(nullptr);\n",
        "",
        "tests/ops/test_dive.py -k forked",
    ),
    Mutant(
        "a column beyond the last stands for a number",
        "csrc/cpu/mpm_nce/epilogue.hpp",
        "kNowhere = -__builtin_inff();",
        "kNowhere = -1e30f;",
        "native: mpm_nce",
    ),
    Mutant(
        "work goes on after it was stopped",
        "csrc/cpu/threads.cpp",
        "while (!stopping() && (block",
        "while ((block",
        "native: threads",
    ),
    Mutant(
        "a helper does not hear that the work is stopped",
        "csrc/cpu/watch.cpp",
        "if (watch != current.watch) current = {watch, false};",
        "",
        "native: threads",
    ),
    Mutant(
        "the poll is not at rest while it polls",
        "csrc/cpu/watch.cpp",
        "  current = {};\n",
        "",
        "native: threads",
    ),
    Mutant(
        "a residual is left out of the reach",
        "csrc/cpu/nearest/search.cpp",
        "(std::sqrt(static_cast<double>(threshold)) + query.residual) * (1 + 0x1p-20)",
        "std::sqrt(static_cast<double>(threshold)) * (1 + 0x1p-20)",
        "tests/ops/test_nearest_cpu.py tests/ops/test_nearest.py",
    ),
    Mutant(
        "the last block of panels is not swept",
        "csrc/cpu/nearest/nearest.cpp",
        "parallel((last - first + width - 1) / width, threads, body);",
        "parallel((last - first) / width, threads, body);",
        "native: nearest",
    ),
    Mutant(
        "a close distance keeps the digits that the product lost",
        "csrc/cpu/rsa.cpp",
        "constexpr float kClose = 1.0f / 64;",
        "constexpr float kClose = 0;",
        "tests/ops/test_rsa_cpu.py tests/ops/test_rsa.py",
    ),
    Mutant(
        "the smallest share of negatives is lost in the rounding",
        "csrc/cpu/mpm_nce/backward.hpp",
        "positive_inverse = positives[k] == 1 ? 0 : inverse;",
        "positive_inverse = inverse;",
        "native: mpm_nce",
    ),
    Mutant(
        "the shift does not suit, and is used",
        "csrc/cpu/mpm_nce/forward.hpp",
        'if (!(sum > kLeastSum && sum < kMostSum)) losses[index] = __builtin_nan("");',
        "",
        "native: mpm_nce",
    ),
    Mutant(
        "memory that waits is handed out though it is too small",
        "csrc/cpu/memory.cpp",
        "if (lock && waiting_.bytes >= bytes) block",
        "if (lock && waiting_.bytes > 0) block",
        "native: memory",
    ),
    Mutant(
        "dive: the last rows are left out",
        "csrc/cpu/dive.hpp",
        "return {(rows + size - 1) / size, size};",
        "return {rows / size > 0 ? rows / size : 1, size};",
        "native: dive",
    ),
]
