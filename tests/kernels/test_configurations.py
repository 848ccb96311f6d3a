"""Every line of the table of configurations, run alone, on outputs that start as NaN."""

import itertools

import pytest
import torch

from robustft import backends
from robustft.backends import contrast
from robustft.errors import InputError

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.skipif(not backends.interpreting(), reason="runs under TRITON_INTERPRET=1"),
]
if backends.interpreting():
    from robustft.backends.options import MpmNceOptions, Positives, VrfOptions
    from robustft.backends.reference import dive as dive_reference
    from robustft.backends.reference import mpm_nce as mpm_nce_reference
    from robustft.backends.reference import nearest as nearest_reference
    from robustft.backends.reference import rsa as rsa_reference
    from robustft.backends.reference import vrf as vrf_reference
    from robustft.backends.search import plans
    from robustft.kernels import configs, dive, launch, mpm_nce, nearest, rsa, vrf

    LINES = [(kernel, i) for kernel, lines in configs.TABLE.items() for i in range(len(lines))]
else:
    LINES = []

CPU = torch.device("cpu")


@pytest.fixture
def poisoned(monkeypatch):
    """Fresh memory is NaN, or a large integer: what a kernel does not write shows."""
    plain = torch.Tensor.new_empty

    def new_empty(self, *size, **options):
        fresh = plain(self, *size, **options)
        large = 100 if fresh.dtype == torch.uint8 else 10**6
        return fresh.fill_(float("nan") if fresh.is_floating_point() else large)

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)


def _close(found, wanted, tolerance=1e-5):
    found, wanted = found.double(), wanted.double()
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max() + 1e-7


def _dive():
    inputs = [torch.randn(37, 41) for _ in range(4)]
    mean = 0.1 * torch.randn(41)
    for found, wanted in zip(
        dive.forward(*inputs, mean, 0.5, True),
        dive_reference.forward(*(x.double() for x in inputs), mean.double(), 0.5, True),
        strict=True,
    ):
        _close(found, wanted)
    ones = torch.ones(())
    for found, wanted in zip(
        dive.backward(*inputs, mean, ones, ones, True),
        dive_reference.backward(
            *(x.double() for x in (*inputs, mean, ones, ones)),
            True,
        ),
        strict=True,
    ):
        _close(found, wanted)


def _vrf():
    inputs = (3 * torch.randn(5, 67), 3 * torch.randn(5, 67), torch.rand(5))
    wide = tuple(x.double() for x in inputs)
    for log in (False, True):
        options = VrfOptions(0.5, 0.3, 1.2, 0.7, log)
        _close(vrf.forward(*inputs, options), vrf_reference.forward(*wide, options))
        grad = torch.randn(5, 67)
        for found, wanted in zip(
            vrf.backward(*inputs, grad, options),
            vrf_reference.backward(*wide, grad.double(), options),
            strict=True,
        ):
            _close(found, wanted)


def _mpm_nce():
    of_images, of_texts = torch.randint(7, (67,)), torch.randint(7, (131,))
    _mpm_nce_of(Positives(of_images, of_texts, None, -100), MpmNceOptions(0.1, 0.2, True))
    _mpm_nce_of(Positives(of_images, of_images, None, -100), MpmNceOptions(0.1, 0.2, True, True))


def _mpm_nce_of(pairs, options):
    x, y = (torch.nn.functional.normalize(torch.randn(len(n), 33), dim=1) for n in pairs[:2])
    scale = torch.tensor(30.0)
    loss, *saved = mpm_nce.forward(x, y, pairs, scale, options, 0)
    wide = [v.double() for v in (x, y, scale)]
    wanted, *lines = mpm_nce_reference.forward(*wide[:2], pairs, wide[2], options, 0)
    _close(loss, wanted)
    grad = torch.tensor(1.5)
    for found, true in zip(
        mpm_nce.backward(x, y, pairs, scale, *saved, grad, options, True, True),
        mpm_nce_reference.backward(
            *wide[:2], pairs, wide[2], *lines, grad.double(), options, True, True
        ),
        strict=True,
    ):
        _close(found, true)


def _nearest():
    plans.plans.cache_clear()
    rows, queries = torch.randn(1031, 35), torch.randn(9, 35)
    distances, indices = nearest.knn(queries, rows, nearest.pack(rows), 5, True)
    wanted, order = nearest_reference.nearest(queries.double(), rows.double(), 5)
    _close(distances, wanted, 1e-6)
    assert torch.equal(indices, order)
    _close(nearest.kth_distance(queries, rows, [], 5, True), wanted[:, -1], 1e-6)


def _rsa():
    a = torch.randn(131, 33)
    b = a @ torch.randn(33, 17) + torch.randn(131, 17)
    found = rsa.correlation(a, b, "euclidean", "pearson")
    _close(found, rsa_reference.rsa(a.double(), b.double()))


RUN = {"dive": _dive, "vrf": _vrf, "mpm_nce": _mpm_nce, "nearest": _nearest, "rsa": _rsa}


@pytest.mark.parametrize(("kernel", "line"), LINES)
def test_each_configuration_alone(kernel, line, poisoned, monkeypatch):
    launch.forget()
    options = configs.TABLE[kernel][line][1]
    monkeypatch.setattr(globals()[kernel], "config", lambda *_: options)
    monkeypatch.setattr(plans, "LEAST_SAMPLE", 64)
    RUN[kernel]()
    launch.forget()  # what follows takes the table's own lines again


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_blocks_of_a_small_workspace_leave_the_gradients(dtype, poisoned, monkeypatch):
    x, y = (torch.nn.functional.normalize(torch.randn(n, 33), dim=1).to(dtype) for n in (131, 67))
    pairs = Positives(torch.randint(7, (131,)), torch.randint(7, (67,)), None, -100)
    scale, options = torch.tensor(30.0), MpmNceOptions(0.1, 0.2, True)
    _, *saved = mpm_nce.forward(x, y, pairs, scale, options, 0)
    arguments = (x, y, pairs, scale, *saved, torch.tensor(1.5), options)
    needs = ((True, True), (True, False), (False, True))
    whole = [mpm_nce.backward(*arguments, *need) for need in needs]
    launch.forget()
    monkeypatch.setattr(contrast, "WORKSPACE", 32 * 67 * x.element_size())  # 5 blocks of 32 rows
    for need, once in zip(needs, whole, strict=True):
        parts = mpm_nce.backward(*arguments, *need)
        assert [len(part) > 0 for part in parts[:2]] == list(need)
        for found, wanted in zip(parts, once, strict=True):
            assert found.dtype == wanted.dtype
            if found.numel():
                _close(found, wanted, 2e-6 if dtype == torch.float32 else 1e-3)
    launch.forget()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("diagonal", (0.0, 0.0, True, False)),
        ("labels", (0.1, 0.2, True, False)),
        ("labels", (0.0, 0.2, True, True)),
        ("mask", (0.1, 0.2, False, False)),
    ],
)
def test_even_tiles_have_the_bits_of_masked_ones(kind, options, poisoned, monkeypatch):
    """Rows and columns in whole tiles of the interpreter's 32 × 64: without masks, and with."""
    rows, columns = 64, 128 if kind == "mask" else 64
    x, y = (torch.nn.functional.normalize(torch.randn(n, 33), dim=1) for n in (rows, columns))
    labels = [torch.randint(7, (n,)) for n in (rows, columns)]
    labels[0][3] = -100
    pairs = {
        "diagonal": Positives(None, None, None, -100),
        "labels": Positives(*labels, None, -100),
        "mask": Positives(None, None, labels[0][:, None] == labels[1], -100),
    }[kind]
    scale, options = torch.tensor(30.0), MpmNceOptions(*options)
    planned, instead = [], {}

    def spied(*arguments, **constants):
        if "EVEN" in constants:
            planned.append(constants["EVEN"])
            constants |= instead
        return launch.Launch(*arguments, **constants)

    def run():
        launch.forget()
        _, *saved = found = mpm_nce.forward(x, y, pairs, scale, options, 0)
        arguments = (x, y, pairs, scale, *saved, torch.tensor(1.5), options, True, True)
        return *found, *mpm_nce.backward(*arguments)

    monkeypatch.setattr(mpm_nce, "Launch", spied)
    even = run()
    instead["EVEN"] = False
    masked = run()
    launch.forget()
    assert planned == [True] * 4
    for found, wanted in zip(even, masked, strict=True):
        assert torch.equal(found, wanted)


def test_tiles_are_even_where_rows_and_columns_both_are():
    tile = {"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_K": 64}

    def is_even(rows, columns):
        return mpm_nce._tile_options(CPU, torch.float32, rows, columns, 8, False, tile)["EVEN"]

    shapes = itertools.product((16, 63, 64, 96), (32, 64, 96, 127, 128))
    assert [s for s in shapes if is_even(*s)] == [(64, 64), (64, 128), (96, 64), (96, 128)]


def test_mpm_nce_refuses_an_own_pair_that_is_not_there():
    x, labels = torch.randn(4, 3), torch.zeros(4, dtype=torch.int64)
    pairs, options = Positives(labels, labels[:3], None, -100), MpmNceOptions(0.0, 0.0, False, True)
    with pytest.raises(InputError, match="text_features: got 3 rows, expected 4 or more"):
        mpm_nce.forward(x, x[:3], pairs, torch.tensor(1.0), options, 0)
