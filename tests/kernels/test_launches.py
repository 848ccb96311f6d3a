"""How many kernels a call launches, and that it never waits for the device (no card needed)."""

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.card import launches
from robustft import backends
from robustft.kernels import launch

pytestmark = pytest.mark.skipif(
    backends.interpreting(), reason="the interpreter's kernels are not launched"
)

# (op, pass): Triton's kernels, and torch's own: library products and the upstream gradient.
WANTED = {
    ("dive 512x512", "forward"): (["forward_rows", "forward_merge"], []),
    ("dive 512x512", "forward+backward"): (
        ["forward_rows", "forward_merge", "backward_rows"],
        ["ones_like", "new_zeros"],
    ),
    **{
        (f"mpm_nce {shape}", "forward"): (["forward_tiles", "forward_merge"], [])
        for shape in ("512x512x512", "512x1000x512")
    },
    **{
        (f"mpm_nce {shape}", "forward+backward"): (
            ["forward_tiles", "forward_merge", "grad_tiles", "grad_finish"],
            ["ones_like", "mm", "mm"],
        )
        for shape in ("512x512x512", "512x1000x512")
    },
    ("vrf 512x1000", "forward"): (["forward_rows"], []),
    ("vrf 512x1000", "forward+backward"): (["forward_rows", "backward_rows"], []),
}


def test_launches_of_every_small_loss():
    seen = {}
    with launches.pretending() as counts:
        for op, mode, provider, call in launches.steps("cpu"):
            if "triton" in provider:
                seen[op, mode] = launches.count(call, counts)
    assert set(seen) == set(WANTED)
    for case, (kernels, products) in WANTED.items():
        ours = [name for name in seen[case].kernels if name in kernels]
        others = [name for name in seen[case].kernels if name not in kernels]
        assert ours == kernels, case
        assert sorted(others) == sorted(products), case
        assert not seen[case].waits, case


def comparable(given):
    """What a driver is given: grid, arguments and constants."""
    return [
        (x.dtype, x.shape, x.stride()) if isinstance(x, torch.Tensor) else x
        for x in (*given[:6], *given[9:])  # all but the hooks, and what they would be told
    ]


def test_a_planned_launch_gives_the_driver_what_tritons_own_gives():
    """Of the first call, which Triton dispatches, and the second."""
    seen = set()
    with launches.pretending() as counts:
        for _, _, provider, call in launches.steps("cpu"):
            if "triton" not in provider:
                continue
            launch.forget()
            both = []
            for _ in range(2):
                counts.launched = []
                call()
                both.append(counts.launched)
            counts.launched = None
            assert len(both[0]) == len(both[1]) > 0
            for first, second in zip(*both, strict=True):
                assert comparable(first) == comparable(second)
                seen.add(len(first))
    assert max(seen) > 30  # mpm_nce's tiles: the arguments are among what was compared


def test_a_search_plans_its_six_launches(monkeypatch):
    from robustft.backends.search import banks, plans, screening
    from robustft.kernels import nearest

    def kth(queries, rows, packed):
        return screening.kth_distance(queries, rows, packed, 5, True, nearest._STEPS)

    monkeypatch.setattr(plans, "LEAST_SAMPLE", 64)
    monkeypatch.setattr(plans, "plans", lambda rows, k: (plans.Plan(64, 9, 256),))
    monkeypatch.setattr(screening, "_by_reference", lambda every, queries, *_: (queries[:, 0],))
    rows, queries = torch.randn(700, 64), torch.randn(40, 64)
    with launches.pretending() as counts:
        packed = banks.pack(rows, nearest._STEPS, rows.device)
        both = []
        for _ in range(2):
            counts.kernels, counts.launched = [], []
            kth(queries, rows, packed)
            both.append(counts.launched)
        counts.launched = None
        assert counts.kernels == [
            "round_rows", "aim_rows", "screen_tiles", "resolve_rows", "exact_rows", "select_rows",
        ]  # fmt: skip
    for first, second in zip(*both, strict=True):
        assert comparable(first) == comparable(second)


@pytest.mark.parametrize(("first_misaligned", "log"), [(False, False), (True, True)])
def test_a_misaligned_address_takes_tritons_own_dispatch(first_misaligned, log):
    """Compiled for addresses that divide by 16, a kernel must not meet others."""
    from robustft.backends.options import VrfOptions
    from robustft.kernels import vrf

    flat = torch.randn(4 * 16 + 1)
    aligned, misaligned = flat[:64].view(4, 16), flat[1:].view(4, 16)
    order = [misaligned, aligned] if first_misaligned else [aligned, misaligned]
    with launches.pretending() as counts:
        before = len(vrf.forward_rows.device_caches[-1][0])
        for z in (*order, *order):
            vrf.forward(z, aligned, torch.rand(4), VrfOptions(1.0, 1.0, 1.0, 1.0, log))
        compiled = len(vrf.forward_rows.device_caches[-1][0])
        assert counts.kernels == ["forward_rows"] * 4
    assert compiled == before + 2  # one for each kind of address


def test_kernels_multiply_and_add_in_one_whatever_tritons_default_is(monkeypatch):
    from robustft.backends.options import VrfOptions
    from robustft.kernels import vrf

    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "0")
    z = torch.randn(4, 48)
    with launches.pretending():
        before = set(vrf.forward_rows.device_caches[-1][0])
        vrf.forward(z, z, torch.rand(4), VrfOptions(1.0, 1.0, 1.0, 1.0, False))
        cache = vrf.forward_rows.device_caches[-1][0]
        (compiled,) = [kernel for key, kernel in cache.items() if key not in before]
    assert compiled.metadata.enable_fp_fusion


def test_the_table_has_a_line_for_every_step_and_the_bare_launch(monkeypatch):
    monkeypatch.setattr(launches, "CALLS", 1)
    monkeypatch.setattr(launches, "ROUNDS", 1)
    lines = launches.table("cpu")
    assert len(lines) == len(list(launches.steps("cpu"))) + 2
    assert lines[-1].startswith("a bare launch")
