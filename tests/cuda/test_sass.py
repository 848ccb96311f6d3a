"""What the CUDA kernels are once compiled: the machine code has what the sources are written for.

Budgets stand beside the counts of ptxas 13.0; another version may take a few instructions more.
"""

from __future__ import annotations

import functools

import pytest

from benchmarks.card import cubins, cuda_cubins, rows, sass
from robustft import backends

pytestmark = [
    pytest.mark.skipif(backends.emulating(), reason="emulated kernels are C++"),
    pytest.mark.skipif(cuda_cubins.library() is None, reason="NVRTC is not installed"),
    pytest.mark.skipif(sass.tool() is None, reason="cuobjdump is not installed"),
]
code_of = functools.cache(cuda_cubins.instructions)


def count(code: sass.Code, *names: str) -> int:
    return len(sass.having(code, *names))


def smallest(code: sass.Code, *names: str) -> sass.Code:
    """The smallest loop around these."""
    return min(sass.around(code, *names), key=len)


def the_ring(code: sass.Code, product: str, per_slice: int, cluster: int) -> sass.Code:
    """What every kernel with a ring of stages promises; the loop of the products."""
    assert count(code, "LDL", "STL") == 0
    assert count(code, "USETMAXREG") == 2  # fewer for the warpgroup that fetches, more for the rest
    assert count(code, "UBLKCP") >= 2
    # Blocks of a cluster copy for each other, and meet before: nowhere else is a fence.
    assert (count(code, r"UBLKCP\S*\.MULTICAST") > 0) == (cluster > 1)
    assert count(code, "UCGABAR_ARV") == count(code, "UCGABAR_WAIT") == cluster - 1
    assert count(code, r"MEMBAR\S*\.GPU") == cluster - 1
    assert count(code, "LDGSTS", "HMMA") == 0
    assert count(code, product) == count(code, "HGMMA") > 0
    loop = smallest(code, "HGMMA")
    slices = count(loop, "HGMMA") // 4
    # One wait a slice: a product's registers are not waited for before the next slice's are queued.
    assert count(loop, r"WARPGROUP\.DEPBAR") == slices
    assert count(loop, r"WARPGROUP\.ARRIVE") == slices
    assert count(loop, r"SYNCS\.PHASECHK") == count(loop, r"SYNCS\.ARRIVE") == slices
    assert count(loop, r"SYNCS\.ARRIVE\S*\.RED") == (slices if cluster > 1 else 0)
    assert len(loop) <= per_slice * slices
    return loop


# (rows a step, queries resident): instructions of a slice (four products), and of the test of a
# step's 64 × rows products by a warpgroup with all else that a step takes.
WGMMA = {
    "256, true": (85, 940),  # counted: 80.5, 913; 78, 919 in clusters
    "128, true": (85, 550),  # 80.5, 531; 77.5, 530
    "256, false": (85, 950),  # 82, 927; 78.5, 920
}


@pytest.mark.parametrize("cluster", [1, 2])
@pytest.mark.parametrize("kind", WGMMA)
def test_the_wgmma_screen(kind: str, cluster: int) -> None:
    code = code_of("nearest_wgmma", f"nearest::screen_wgmma<{kind}, {cluster}>", "sm_90a")
    rows = kind.split(",")[0]
    loop = the_ring(code, rf"HGMMA\.64x{rows}x16\.F32", WGMMA[kind][0], cluster)
    step = max(sass.around(code, "HGMMA"), key=len)
    assert len(step) - len(loop) <= WGMMA[kind][1]
    # A lane has half as many products as a step has rows: each takes one multiplication and
    # addition and one compare; a tile of rows takes two factors and two right sides.
    products, tiles = int(rows) // 2, int(rows) // 128
    assert (count(step, "FFMA"), count(step, "FMUL")) == (products + 2 * tiles, 2 * tiles)
    assert count(step, "FSETP") == products
    # The slots of a query's rows are asked for at once, before any is waited for.
    asked = step.index(sass.having(step, "ATOMG")[-1])
    assert count(step, "ATOMG") == 2
    assert count(step[asked:], "STG") == count(step, "STG")


# Instructions of a slice, and of what most tiles take of exponentials.
CONTRAST = {
    ("forward", "true"): (75, 300),  # counted: 69.5, 286
    ("forward", "false"): (75, 300),  # 70.5, 286
    ("backward", "true"): (75, 920),  # 69.5, 873
    ("backward", "false"): (75, 920),  # 70.5, 873
}


@pytest.mark.parametrize("cluster", [1, 2])
@pytest.mark.parametrize(("direction", "resident"), CONTRAST)
def test_the_tiles_of_mpm_nce(direction: str, resident: str, cluster: int) -> None:
    name = {"forward": "forward_tiles", "backward": "grad_tiles"}[direction]
    code = code_of(
        f"mpm_nce_{direction}", f"mpm_nce::{name}<BFloat16, {resident}, {cluster}>", "sm_90a"
    )
    per_slice, budget = CONTRAST[direction, resident]
    the_ring(code, r"HGMMA\.64x128x16\.F32\.BF16", per_slice, cluster)
    path = usual(code) if direction == "forward" else plain(code)
    # An entry takes one exponential forward, for its text and its image, and two backward.
    assert count(path, r"MUFU\.EX2") == (64 if direction == "forward" else 128)
    if direction == "forward":  # its argument comes of one multiplication and addition
        assert (count(path, "FFMA"), count(path, "FMUL")) == (64, 0)
    assert len(path) <= budget


def usual(code: sass.Code) -> sass.Code:
    """Forward's tile about the level: from the branch before the first exponential to the one that
    ends what follows the vote."""
    exponential = code.index(sass.having(code, r"MUFU\.EX2")[0])
    vote = code.index(next(x for x in sass.having(code[exponential:], r"VOTE\.ALL")))
    branches = [code.index(x) for x in sass.having(code, "BRA")]
    first = max(at for at in branches if at < exponential)
    last = [at for at in branches if at > vote][1]
    return code[first + 1 : last]


def plain(code: sass.Code) -> sass.Code:
    """Backward's tile of pairs that all count and are not positive: the shorter of the stretches
    without a branch that have its exponentials."""
    stretches, begin = [], 0
    for at, each in enumerate(code):
        if each.text.startswith("BRA"):
            stretches.append(code[begin:at])
            begin = at + 1
    return min((x for x in stretches if count(x, r"MUFU\.EX2") >= 128), key=len)


# Instructions of a slice: 64 halves of 128 rows with the tile's queries; and of a tile's test.
SCREEN = {
    "128, true": (220, 600),  # counted: 207, 579 (sm_90; sm_80: 201, 560)
    "64, true": (165, 390),  # 153, 373
    "128, false": (205, 600),  # 197, 581
}


@pytest.mark.parametrize("kind", SCREEN)
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_the_mma_screen(kind: str, architecture: str) -> None:
    code = code_of("nearest_screen", f"nearest::screen<{kind}>", architecture)
    queries = int(kind.split(",")[0])
    assert count(code, "LDL", "STL") == 0
    loop = smallest(code, "HMMA")
    # 8 warps share queries × 128 rows × 64 halves in products of 16 × 8 × 16.
    assert count(loop, r"HMMA\.16816\.F32") == count(loop, "HMMA") == queries * 128 * 4 // 128 // 8
    assert count(loop, r"LDSM\.16\.M88\.4") == queries // 16 * 2 + 8
    assert count(code, r"LDGSTS\.E\.BYPASS\.128") == count(code, "LDGSTS") > 0
    assert count(loop, "LDGSTS") > 0  # the next stage is asked for while this one is multiplied
    assert count(loop, "LDGDEPBAR") == count(loop, r"BAR\.SYNC") == 1
    tile = max(sass.around(code, "HMMA", "FFMA"), key=len)
    assert len(loop) <= SCREEN[kind][0]
    assert len(tile) - len(loop) <= SCREEN[kind][1]


# Of a row of four inputs in one warp's registers (4 chunks of 16 bytes a lane and input), all that
# is not for odd rows or other shapes: forward, backward.
DIVE = rows.CUDA


@pytest.mark.parametrize("number", ["float", "Half", "BFloat16"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_dive_reads_and_writes_128_bits(direction: str, number: str) -> None:
    for kind in (1, 4):
        code = code_of(f"dive_{direction}", f"dive::{direction}_rows<{number}, {kind}>", "sm_90")
        assert count(code, "LDL", "STL") == 0
        assert count(code, r"LDG\.E\S*128", r"LDGSTS\.E\S*128") >= 4, kind
        if direction == "backward":
            assert count(code, r"STG\.E\S*128") >= 2


@pytest.mark.parametrize("number", ["float", "BFloat16"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_row_of_dive_takes_few_instructions(direction: str, number: str) -> None:
    code = code_of(f"dive_{direction}", f"dive::{direction}_rows<{number}, 4>", "sm_90")
    # Rows that are read number by number, the first row's centre, rows squared over powers of two,
    # sums over several warps.
    rare = (r"@?LDG\.E(?!\S*128)\S*", r"@?STG\.E(?!\S*128)\S*", "FMNMX", "CALL", r"BAR\.\S+")
    ends = {each.address for each in code if each.predicate}  # others come back from rare code
    ways = [sass.way(sass.within(code, x), *rare) for x in sass.loops(code) if x[1] in ends]
    row = max(ways, key=len)
    # The next row's chunks are asked for in the place of this one's.
    assert count(row, r"LDG\.E\S*128") == 16
    assert count(row, "SHFL") == 5 * (6 if direction == "forward" else 12)
    if direction == "backward":
        assert count(row, r"STG\.E\S*128") == 8
    counted = DIVE[direction, number]
    assert 0.95 * counted <= len(row) <= 1.03 * counted, len(row)


def test_a_loop_and_its_instructions_are_found() -> None:
    text = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   HMMA.16816.F32 R4, R8, R12, R4 ;
        /*0020*/              @!P0 LDL R2, [R1+0x8] ;
        /*0030*/               @P1 BRA 0x10 ;
        /*0040*/                   STL [R1], R2 ;
        /*0050*/                   BRA 0x50 ;
    """
    code = sass.parsed(text)
    assert [each.predicate for each in code] == ["", "", "!P0", "P1", "", ""]
    assert sass.loops(code) == [(0x10, 0x30)]
    (loop,) = sass.around(code, "HMMA")
    assert [each.text.split()[0] for each in loop] == ["HMMA.16816.F32", "LDL", "BRA"]
    assert count(code, "LDL", "STL") == 2
    assert count(loop, "LDL", "STL") == count(loop, "HMMA") == 1
    assert count(code, "HM") == 0


def test_spills_count_in_the_loop_of_products_alone() -> None:
    lines = [
        "STL [R1], R2",
        "LDL R3, [R1]",  # 0x10: of a tile
        "FFMA R4, R5, R6, R4",  # 0x20: of the products
        "FFMA R7, R5, R6, R7",
        "@P0 BRA 0x20",
        "FFMA R8, R5, R6, R8",
        "FADD R8, R8, R4",
        "@P1 BRA 0x10",
    ]
    code = sass.parsed("".join(f"/*{16 * i:04x}*/ {line} ;" for i, line in enumerate(lines)))
    assert cubins.looped(code) == 2
    assert cubins.looped(code, multiplies=True) == 0
    lines[3] = "LDL R7, [R1]"
    code = sass.parsed("".join(f"/*{16 * i:04x}*/ {line} ;" for i, line in enumerate(lines)))
    assert cubins.looped(code, multiplies=True) == 1


def test_the_longest_way_leaves_out_what_is_to_be_avoided() -> None:
    text = """
        /*0010*/                   LDG.E.128 R4, [R8] ;
        /*0020*/               @P0 BRA 0x50 ;
        /*0030*/                   FMNMX R2, R2, R3, PT ;
        /*0040*/                   BRA 0x70 ;
        /*0050*/                   FADD R2, R2, R3 ;
        /*0060*/               @P1 BRA 0x10 ;
        /*0070*/               @P2 LDG.E.U16 R3, [R8] ;
        /*0080*/                   FADD R2, R2, R3 ;
        /*0090*/                   BRA 0x10 ;
    """
    code = sass.parsed(text)

    def addresses(*avoiding: str) -> list[int]:
        return [each.address for each in sass.way(code, *avoiding)]

    assert addresses("EXIT") == [0x10, 0x20, 0x30, 0x40, 0x70, 0x80, 0x90]
    assert addresses("FADD") == []
    assert addresses("FMNMX", r"@LDG\.E\.U16") == [0x10, 0x20, 0x50, 0x60]
    assert addresses(r"LDG\.E\.U16") == addresses("EXIT")
