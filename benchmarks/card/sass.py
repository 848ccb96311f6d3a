"""The instructions of a cubin, as cuobjdump prints them: by function, and loops.

What a kernel's source promises (products of a warpgroup, copies in bulk, nothing spilled in the
loop) is true of the machine code or not at all; tests look here.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Instruction(NamedTuple):
    """text: without its predicate, "HGMMA.64x256x16.F32 R24, gdesc[UR8], R24"."""

    address: int
    text: str
    predicate: str = ""


Code = Sequence[Instruction]


@functools.cache
def tool() -> Path | None:
    """cuobjdump of NVIDIA's wheels, or else Triton's, with nvdisasm beside it, which it calls."""
    for package, inside in (("nvidia", "*/bin"), ("triton", "backends/nvidia/bin")):
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            for found in sorted(Path(folder).glob(f"{inside}/cuobjdump")):
                if found.with_name("nvdisasm").exists():
                    return found
    return None


def dump(cubin: bytes, what: str) -> str:
    """What cuobjdump says: "-sass", "-res-usage"."""
    program = tool()
    if program is None:
        raise FileNotFoundError(
            "no cuobjdump: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
        )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(program), what, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def functions(cubin: bytes) -> dict[str, Code]:
    """The instructions of each function, by its (mangled) name."""
    _, *parts = re.split(r"Function : (\S+)", dump(cubin, "-sass"))
    return dict(zip(parts[::2], map(parsed, parts[1::2]), strict=True))


def parsed(text: str) -> Code:
    """Of one function."""
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@(\S+)\s+)?(.+?)\s*;", text)
    return [Instruction(int(at, 16), code, predicate) for at, predicate, code in found]


def having(code: Code, *names: str) -> Code:
    """Those of these names: "HGMMA" has HGMMA.64x256x16.F32, "LDGSTS.*128" is a pattern."""
    pattern = re.compile("|".join(rf"(?:{name})(?:[. ]|$)" for name in names))
    return [each for each in code if pattern.match(each.text)]


def loops(code: Code) -> list[tuple[int, int]]:
    """First and last address of each loop: what a branch goes back over."""
    ends = ((int(to[1], 16), each.address) for each in code
            if (to := re.match(r"BRA\S*.*?(?:0x|`\(\.L_x_)([0-9a-f]+)", each.text)))  # fmt: skip
    return [(first, last) for first, last in ends if first < last]


def around(code: Code, *names: str) -> list[Code]:
    """The smallest loops that hold an instruction of these names, each once."""
    found = set()
    for each in having(code, *names):
        holding = [(a, b) for a, b in loops(code) if a <= each.address <= b]
        if holding:
            found.add(min(holding, key=lambda loop: loop[1] - loop[0]))
    return [within(code, loop) for loop in sorted(found)]


def within(code: Code, loop: tuple[int, int]) -> Code:
    """The instructions of a loop."""
    return [each for each in code if loop[0] <= each.address <= loop[1]]


def way(code: Code, *avoiding: str) -> Code:
    """The longest way through a loop, or a function, that meets no instruction of these names.

    Inner loops are gone through once. What is left out is rare, or for other shapes. With an "@"
    before its name an instruction is avoided that has a predicate, else one that has none.
    """
    marked = [each._replace(text="@" * bool(each.predicate) + each.text) for each in code]
    cold = {each.address for each in having(marked, *avoiding)}
    places = {each.address: at for at, each in enumerate(code)}
    lengths, following = [0] * (len(code) + 1), [len(code)] * len(code)
    for at in reversed(range(len(code))):
        each = code[at]
        if each.address in cold:
            continue
        branch = re.match(r"BRA(?!\.DIV)\S*(.*?)(?:0x|`\(\.L_x_)([0-9a-f]+)", each.text)
        to = int(branch[2], 16) if branch else -1
        if at == len(code) - 1 or to == code[0].address or each.text.startswith("EXIT"):
            lengths[at] = 1
        always = branch is not None and not each.predicate and "P" not in branch[1]
        thens = [] if always else [at + 1]
        if places.get(to, -1) > at:
            thens.append(places[to])
        for then in thens:
            if lengths[then] and lengths[then] >= lengths[at]:
                lengths[at], following[at] = lengths[then] + 1, then
    found: list[Instruction] = []
    at = 0
    while at < len(code) and lengths[at]:
        found.append(code[at])
        at = following[at]
    return found
