"""mpm_nce's CUDA kernels in the emulator, against float64: loss, statistics and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.card import cuda_cubins, small_cases
from robustft import backends
from robustft.backends import contrast
from robustft.backends.cuda import launcher, ring
from robustft.backends.cuda import mpm_nce as cuda
from robustft.backends.options import MpmNceOptions, Positives
from robustft.backends.proof import mpm_nce as proof
from robustft.errors import InputError
from robustft.ops import mpm_nce

pytestmark = [
    pytest.mark.emulator,
    pytest.mark.skipif(not backends.emulating(), reason="runs under ROBUSTFT_CUDA_EMULATOR"),
]

ROUNDING = {torch.bfloat16: 8e-3, torch.float16: 1e-3}


@pytest.fixture
def order():
    """order(seed): of the emulator's threads and blocks."""
    library = launcher._Emulator.of(launcher.emulator())
    yield library.order
    library.order(0)


def unit(rows: int, dim: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return normalize(torch.randn(rows, dim), dim=1).to(dtype)


def labels(rows: int, classes: int = 9) -> Tensor:
    found = torch.randint(-(2**62), 2**62, (classes,))[torch.randint(classes, (rows,))]
    found[torch.rand(rows) < 0.1] = -100
    found[0] = 7
    return found


def run(backend: str, x: Tensor, y: Tensor, pairs: dict, scale: float, **options) -> list[Tensor]:
    x, y = (t.detach().requires_grad_() for t in (x, y))
    dtype = torch.promote_types(x.dtype, torch.float32)
    s = torch.tensor(scale, dtype=dtype, requires_grad=True)
    loss = mpm_nce(x, y, **pairs, logit_scale=s, backend=backend, **options)
    return [loss.detach(), *torch.autograd.grad(-1.7 * loss, (x, y, s))]


def check(x: Tensor, y: Tensor, pairs: dict, scale: float = 100.0, **options) -> list[Tensor]:
    """Loss and gradients to x, y and the scale are those of float64, rounded once."""
    found = run("cuda", x, y, pairs, scale, **options)
    truth = run("reference", x.double(), y.double(), pairs, scale, **options)
    size = max(1.0, abs(scale) * (x.double().norm(dim=1).max() * y.double().norm(dim=1).max()))
    for i, (mine, true) in enumerate(zip(found, truth, strict=True)):
        assert true.isfinite().all(), i
        of_feature = i in (1, 2)
        relative = ROUNDING[x.dtype] if of_feature else 1e-5
        # A log-sum-exp is held to rounding of the largest logits, and so is p.
        floor = (2e-6 if i == 0 else 5e-6) * size
        error, largest = (mine.double() - true).abs().max(), true.abs().max()
        assert error <= relative * largest + floor, (i, error.item(), largest.item(), floor)
    return found


def pairs_of(kind: str, rows: int, columns: int) -> dict:
    if kind == "diagonal":
        return {}
    a, b = labels(rows), labels(columns)
    b[-1] = 7
    if kind == "labels":
        return {"image_labels": a, "text_labels": b}
    mask = torch.rand(rows, columns) < 0.05
    mask[0, 0] = True
    return {"mask": mask}


OPTIONS = [
    {},
    {"margin": 0.05, "label_smoothing": 0.02},
    {"margin": -0.1, "label_smoothing": 0.3, "symmetric": False},
    {"label_smoothing": 1.0, "scale": 3.0},
]


# Parts of a tile, of a warp's 16 texts, and several tiles a block; images in and out of memory.
@pytest.mark.parametrize(
    "size", [(1, 1, 1), (5, 16, 65), (131, 17, 33), (35, 300, 64), (130, 257, 7)]
)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["labels", "mask"])
def test_equals_float64(size: tuple[int, int, int], options: dict, kind: str) -> None:
    rows, columns, dim = size
    check(unit(rows, dim), unit(columns, dim), pairs_of(kind, rows, columns), **options)


@pytest.mark.parametrize("rows", [1, 64, 129, 300])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_diagonal(rows: int, options: dict) -> None:
    check(unit(rows, 40), unit(rows, 40), {}, **options)


# 576 columns stay, 640 flow past; both dtypes.
@pytest.mark.parametrize("dim", [128, 512, 576, 640, 1000])
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_widths(dim: int, dtype: torch.dtype) -> None:
    check(unit(70, dim, dtype), unit(270, dim, dtype), pairs_of("labels", 70, 270))


@pytest.mark.parametrize("kind", ["labels", "mask"])
@pytest.mark.parametrize("size", [(2, 2), (33, 33), (150, 150), (1, 65), (140, 300)], ids=str)
def test_without_the_own_pair(size: tuple[int, int], kind: str) -> None:
    rows, columns = size
    given = torch.randint(2, (columns,))
    given[-1] = given[0] = 0
    pairs = {"image_labels": given[:rows], "text_labels": given}
    if kind == "mask":
        pairs = {"mask": given[:rows, None] == given}
    options = {"label_smoothing": 0.2, "symmetric": rows == columns, "exclude_self": True}
    x = unit(columns, 33)
    check(x[:rows], x, pairs, 30.0, margin=0.1, **options)
    # A row that points away from all others: its own pair would be its largest Z by far.
    opposed = torch.cat([x[: rows - 1], -x.mean(0, keepdim=True)])
    check(opposed, x, pairs, 100.0, **options)


# From texts that a warp may take about one level to anchors that are nowhere near each other.
@pytest.mark.parametrize("spread", [0.0, 1.0, 8.0])
@pytest.mark.parametrize("scale", [-30.0, 0.0, 100.0])
@pytest.mark.parametrize("kind", ["diagonal", "labels"])
def test_anchors_far_apart(spread: float, scale: float, kind: str) -> None:
    """Rows of very different lengths, blocks of alike rows, a few pairs that are the same row."""
    x, y = unit(500, 24).float(), unit(500, 24).float()
    y[::3] = x[::3]
    y[200:330] = y[200] + 0.01 * y[200:330]
    x *= (spread * torch.rand(500, 1)).exp() / math.exp(spread / 2)
    x, y = x.bfloat16(), y.bfloat16()
    check(x, y, pairs_of(kind, 500, 500), scale)


def test_the_level_holds_from_tile_to_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ordinary features only a range's first tile, and those with positives that stand out, are
    taken about each text's own largest Z: what many tiles leave is right."""
    monkeypatch.setattr(cuda, "splits_of", lambda *_: 1)
    for noise in (math.inf, 1.0, 0.05):
        x = unit(140, 64, torch.float32)
        y = torch.randn(1500, 64) if noise == math.inf else noise * torch.randn(1500, 64) / 8
        if noise != math.inf:
            y[:140] += x
        y = normalize(y, dim=1)
        given = torch.arange(1500)
        pairs = {"image_labels": given[:140], "text_labels": given}
        check(x.bfloat16(), y.bfloat16(), pairs, 100.0)


def test_texts_that_are_nowhere_near_a_level_that_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """One direction of images, and after two tiles of like texts some that point the other way."""
    monkeypatch.setattr(cuda, "splits_of", lambda *_: 1)
    common = unit(1, 32, torch.float32)
    x, y = (normalize(common + 0.1 * torch.randn(n, 32) / 6, dim=1) for n in (140, 700))
    y[300::7] *= -1
    given = torch.arange(700)
    check(x.bfloat16(), y.bfloat16(), {"image_labels": given[:140], "text_labels": given}, 100.0)


def test_positives_that_stand_out_keep_their_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a tile whose level holds for all other pairs: the losses are far below 1."""
    monkeypatch.setattr(cuda, "splits_of", lambda *_: 1)
    y, given = unit(1500, 64, torch.float16), torch.arange(1500)
    labels = {"image_labels": given[300:440], "text_labels": given}
    found = run("cuda", y[300:440], y, labels, 15.0, symmetric=False)
    truth = run("reference", y[300:440].double(), y.double(), labels, 15.0, symmetric=False)
    assert truth[0] < 1e-2
    torch.testing.assert_close(found[0].double(), truth[0], rtol=3e-5, atol=0)


def test_a_fitted_batch_keeps_its_digits() -> None:
    """Of a loss far below 1, from pairs that are nearly certain."""
    x = unit(140, 512, torch.float16)
    found = run("cuda", x, x, {}, 15.0)
    truth = run("reference", x.double(), x.double(), {}, 15.0)
    assert truth[0] < 1e-3
    torch.testing.assert_close(found[0].double(), truth[0], rtol=1e-3, atol=0)
    for mine, true in zip(found[1:3], truth[1:3], strict=True):
        assert (mine.double() - true).abs().max() <= 2e-3 * true.abs().max() + 2.0**-24


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("symmetric", [True, False])
def test_non_finite_features_give_nan(bad: float, side: int, symmetric: bool) -> None:
    for place in (2, 290):
        features = [unit(300, 4).abs() + 0.1, unit(300, 4).abs() + 0.1]
        features[side][place, 1] = bad
        assert mpm_nce(*features, symmetric=symmetric, backend="cuda").isnan()


def test_same_bits_in_every_order(order) -> None:
    x, y, pairs = unit(150, 70), unit(300, 70), pairs_of("labels", 150, 300)
    first = None
    for seed in (0, 1, 2, 3):
        order(seed)
        found = run("cuda", x, y, pairs, 100.0, margin=0.1, label_smoothing=0.1)
        first = first or found
        assert all(map(torch.equal, found, first))


def test_strides_and_alignment_do_not_matter() -> None:
    x, y, pairs = unit(40, 24), unit(50, 24), pairs_of("mask", 40, 50)
    plain = run("cuda", x, y, pairs, 30.0)
    wide = torch.zeros(40, 31, dtype=x.dtype)
    wide[:, 3:27] = x
    pairs = {"mask": pairs["mask"].T.contiguous().T}
    moved = run("cuda", wide[:, 3:27], y.T.contiguous().T, pairs, 30.0)
    assert all(map(torch.equal, moved, plain))


# Two blocks, three, five: a spare one where they are odd.
@pytest.mark.parametrize("rows", [150, 300, 600])
@pytest.mark.parametrize("dim", [70, 640])
def test_clusters_change_no_bit(rows: int, dim: int, order, monkeypatch) -> None:
    monkeypatch.setattr(cuda, "splits_of", lambda *_: 2)
    x, y = unit(rows, dim), unit(600, dim)
    pairs = pairs_of("labels", rows, 600)
    first = None
    for seed, cluster in ((0, 1), (0, 2), (3, 2)):
        monkeypatch.setattr(ring, "cluster_of", lambda blocks, cluster=cluster: cluster)
        order(seed)
        found = run("cuda", x, y, pairs, 100.0, label_smoothing=0.1)
        first = first or found
        assert all(map(torch.equal, found[:3], first))
        torch.testing.assert_close(found[3], first[3], rtol=1e-6, atol=0)  # of more parts


@pytest.mark.parametrize("symmetric", [True, False])
def test_slabs_and_squares_give_the_whole(symmetric: bool, monkeypatch) -> None:
    x, y, pairs = unit(400, 33), unit(300, 33), pairs_of("labels", 400, 300)
    options = {"margin": 0.1, "label_smoothing": 0.2, "symmetric": symmetric}
    whole = run("cuda", x, y, pairs, 30.0, **options)
    monkeypatch.setattr(contrast, "SCRATCH", 1)  # a block of images each
    monkeypatch.setattr(contrast, "WORKSPACE", 128 * 256 * 2)
    for found, wanted in zip(run("cuda", x, y, pairs, 30.0, **options), whole, strict=True):
        close = 1e-2 * wanted.abs().max().item() if found.ndim else 2e-6 * wanted.abs().item()
        torch.testing.assert_close(found, wanted, rtol=0, atol=close)


def test_only_the_gradients_asked_for() -> None:
    x, y, scale = unit(130, 40), unit(130, 40), torch.tensor(30.0)
    pairs, options = Positives(None, None, None, -100), MpmNceOptions(0.0, 0.0, True)
    _, *saved = cuda.forward(x, y, pairs, scale, options, 0)
    given = (x, y, pairs, scale, *saved, torch.tensor(1.5), options)
    both = cuda.backward(*given, True, True)
    for need in ((True, False), (False, True), (False, False)):
        found = cuda.backward(*given, *need)
        for wanted, got, whole in zip((*need, True), found, both, strict=True):
            assert torch.equal(got, whole) if wanted else got.numel() == 0


def test_statistics_are_those_of_the_formula() -> None:
    x, y = unit(140, 40), unit(300, 40)
    a, b = labels(140), labels(300)
    pairs = Positives(a, b, None, -100)
    options = MpmNceOptions(0.1, 0.2, True)
    _, rows, columns, anchors = cuda.forward(x, y, pairs, torch.tensor(50.0), options, 0)
    positive = (a[:, None] == b) & (a != -100)[:, None]
    z = 50.0 / math.log(2) * (x.double() @ y.double().T + 0.1 * ~positive)
    for found, given, hits in ((rows, z, positive), (columns, z.T, positive.T)):
        count = hits.sum(1)
        there = count > 0
        assert torch.equal(found[2], count.float())
        assert (found[0] == torch.inf).equal(~there)
        exact = torch.logsumexp(given * math.log(2), 1) / math.log(2)
        assert ((found[0] + found[1]).double() - exact)[there].abs().max() < 2e-5
        assert anchors[0 if found is rows else 1] == there.sum()


def test_other_dtypes_are_declined() -> None:
    x = torch.randn(3, 4)
    with pytest.raises(InputError, match="it serves bfloat16 and float16"):
        mpm_nce(x, x, backend="cuda")


@pytest.mark.parametrize("blocks", range(1, 40))
def test_clusters_leave_few_blocks_spare(blocks: int) -> None:
    cluster = ring.cluster_of(blocks)
    spare = ring.whole(blocks, cluster) - blocks
    assert spare < cluster
    assert spare <= blocks / 8
    assert cluster == 2 or blocks % 2 == 1


@pytest.mark.parametrize("size", [(1, 1, 132), (4, 4, 132), (256, 256, 132), (3, 500, 4)])
def test_ranges_of_texts(size: tuple[int, int, int]) -> None:
    """No other number of ranges ends sooner; a range has two tiles where there are two."""
    blocks, tiles, processors = size
    splits = cuda.splits_of(*size)
    assert 1 <= splits <= max(1, tiles // 2)

    def time(n: int) -> int:
        return math.ceil(blocks * n / processors) * (math.ceil(tiles / n) + 1)

    assert all(time(splits) <= time(n) for n in range(1, tiles // 2 + 1))


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_a_proof_reaches_every_kernel(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `auto` trusts was seen to give the right numbers, a spare block among it."""
    reached, grids, launch = set(), set(), cuda.launch

    def seen(*given, **more) -> None:
        reached.add(given[1])
        grids.add(given[2])
        launch(*given, **more)

    monkeypatch.setattr(cuda, "launch", seen)
    for problem in proof.problems(dtype):
        problem.run(cuda, problem.inputs)
    for source in ("forward", "backward"):
        kernels = cuda_cubins.kernels(f"mpm_nce_{source}")
        assert {x for x in kernels if f"<{cuda._TYPES[dtype]}," in x} <= reached
    assert any(grid[0] == 10 for grid in grids)


def test_small_cases_reach_every_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the sanitizers of a card: what they do not run they do not see."""
    reached, launch = set(), cuda.launch
    monkeypatch.setattr(
        cuda, "launch", lambda *given, **more: (reached.add(given[1]), launch(*given, **more))
    )
    small_cases.main(["--backend", "cuda", "--op", "mpm_nce"])
    for source in ("pack", "forward", "merge", "backward"):
        assert set(cuda_cubins.kernels(f"mpm_nce_{source}")) <= reached
