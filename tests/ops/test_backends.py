from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from robustft import backends
from robustft.errors import InputError
from robustft.ops import FeatureBank, kth_distance

# Both ops in three dtypes against float64, from a process that runs one instruction set.
ACCURACY = """
import sys, torch
from robustft import backends
from robustft.ops import dive_loss, vrf_mix

assert backends.status("cpu").detail.startswith(sys.argv[1]), backends.status("cpu")
n = torch.nn.functional.normalize
torch.manual_seed(0)
for dtype, eps in ((torch.float32, 2e-6), (torch.bfloat16, 4e-3), (torch.float16, 5e-4)):
    # 1023 has a part of every vector width; float16 gradients are scaled out of its subnormals
    x = [torch.randn(67, 1023).to(dtype) for _ in range(4)]
    f, f0, g, g0 = (t.double().requires_grad_() for t in x)
    u, v = n(f) - n(f0), n(g) - n(g0)
    m = 0.01 * torch.cat([u, v]).mean(0).detach()
    avl = ((u - m) ** 2).sum(1).mean() + ((v - m) ** 2).sum(1).mean()
    pvl = ((u - v) ** 2).sum(1).mean()
    (1e4 * (avl + 2 * pvl)).backward()
    x[0].requires_grad_(), x[2].requires_grad_()
    mine = dive_loss(*x, torch.zeros(1023), backend="cpu")
    (1e4 * (mine[0] + 2 * mine[1])).backward()
    pairs = [(mine[0], avl, 2e-6), (mine[1], pvl, 2e-6), (mine[2], m, 2e-6)]
    pairs += [(x[0].grad, f.grad, eps), (x[2].grad, g.grad, eps)]

    z, y = (8 * torch.randn(2, 67, 1023)).to(dtype)
    d, grad = torch.rand(67), torch.randn(67, 1023).to(dtype)
    a = [t.double().requires_grad_() for t in (z, y, d)]
    omega = torch.sigmoid(-(a[2] - 0.5) / 0.2)[:, None]
    truth = (omega * a[0].softmax(1) + (1 - omega) * a[1].softmax(1)).log()
    truth.backward(grad.double())
    b = [t.clone().requires_grad_() for t in (z, y, d)]
    out = vrf_mix(*b, 0.5, 0.2, log=True, backend="cpu")
    out.backward(grad)
    pairs += [(out, truth, eps)] + [(s.grad, t.grad, eps) for s, t in zip(b, a)]
    for result, true, tolerance in pairs:
        error = ((result.double() - true).abs().max() / true.abs().max()).item()
        assert error <= tolerance, (dtype, error, tolerance)
"""


def in_process(script: str, *args: str, isa: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"ROBUSTFT_CPU_ISA": isa, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", script, *args],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_matches_float64(native: str, isa: str) -> None:
    from robustft import _native

    if isa not in _native.isas():
        pytest.skip(f"this processor or build does not run {isa}")
    done = in_process(ACCURACY, isa, isa=isa)
    assert done.returncode == 0, done.stderr


def test_every_float16_converts_both_ways(native: str) -> None:
    """All 2^16 bit patterns through α = 1, n = identity, where ∂f = 2·(f − f0 − m) at B = 1."""
    from robustft import _native

    script = """
import torch
from robustft.ops import dive_loss
bits = torch.arange(-2**15, 2**15, dtype=torch.int32).to(torch.int16)
for dtype in (torch.float16, torch.bfloat16):
    x = bits.view(dtype)
    f = x[x.isfinite()].unsqueeze(0).requires_grad_()
    zero, mean = torch.zeros_like(f), torch.zeros(f.shape[1])
    for scale in (0.5, 0.25, 0.7, 1.9):  # the gradient is 2·scale·f, in float32, then rounded
        f.grad = None
        avl, _, _ = dive_loss(f, zero, zero, zero, mean, momentum=1.0, normalize=False,
                              backend="cpu")
        avl.backward(torch.tensor(scale))
        expected = (f.float() * torch.tensor(2 * scale, dtype=torch.float32)).to(dtype)
        assert torch.equal(f.grad, expected), (dtype, scale)
"""
    for isa in _native.isas():
        done = in_process(script, isa=isa)
        assert done.returncode == 0, done.stderr


def test_bfloat16_products_are_chosen_unasked_on_amds_processors_alone(native: str) -> None:
    from robustft import _native

    if _native.isas()[-1] != "avx512bf16":
        pytest.skip("AVX512-BF16 is not the most capable set of this processor or build")
    done = in_process("from robustft import _native; print(_native.isa())", isa="")
    assert done.returncode == 0, done.stderr
    about = Path("/proc/cpuinfo")
    if not about.is_file():
        pytest.skip("this system does not say whose its processor is")
    amd = "AuthenticAMD" in about.read_text()
    assert done.stdout.strip() == ("avx512bf16" if amd else "avx512vnni")


def test_an_unknown_instruction_set_is_an_error(native: str) -> None:
    script = """
import torch
from robustft.errors import InputError
from robustft.ops import dive_loss
try:
    dive_loss(*[torch.ones(2, 3)] * 4, torch.zeros(3))
except InputError as error:
    print(error)
"""
    done = in_process(script, isa="sse9")
    assert done.returncode == 0, done.stderr
    assert "ROBUSTFT_CPU_ISA: got 'sse9'" in done.stdout
    assert "baseline" in done.stdout


def test_status_says_what_was_found(native: str) -> None:
    from robustft import _native

    assert set(backends.available()) == set(backends.NAMES)
    state = backends.status("cpu")
    assert state.runs
    assert state.detail.startswith(_native.isa())
    for state in backends.available().values():
        assert state.runs or state.reason


def test_auto_takes_the_kernel_and_double_the_reference(native: str) -> None:
    for op in backends.OPS:
        if "cpu" not in backends.IMPLEMENTATIONS[op]:
            continue
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            assert backends.load(op, "cpu", dtype, "auto").__name__ == f"robustft.backends.cpu.{op}"
        module = backends.load(op, "cpu", torch.float64, "auto")
        assert module.__name__ == f"robustft.backends.reference.{op}"
        with pytest.raises(InputError, match="float64"):
            backends.load(op, "cpu", torch.float64, "cpu")


def test_a_forced_backend_says_why_it_cannot_run(native: str) -> None:
    with pytest.raises(InputError, match="expected 'auto' or one of"):
        backends.load("dive", "cpu", torch.float32, "numpy")
    with pytest.raises(InputError, match=r"the tensors are on 'cuda', it serves 'cpu'"):
        backends.load("dive", "cuda", torch.float32, "cpu")
    with pytest.raises(InputError, match="no kernel for it yet"):
        backends.load("rsa", "cuda", torch.float32, "cuda")


def test_auto_takes_the_reference_where_no_card_is() -> None:
    for op in backends.OPS:
        module = backends.load(op, "cuda", torch.float32, "auto")
        assert module.__name__ == f"robustft.backends.reference.{op}"


def test_without_the_native_module_auto_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = backends.Status("cpu", False, "the native module did not load (test)")
    monkeypatch.setattr(backends, "status", lambda name: missing)
    forget()
    try:
        module = backends.load("dive", "cpu", torch.float32, "auto")
        assert module.__name__ == "robustft.backends.reference.dive"
        with pytest.raises(InputError, match="did not load"):
            backends.load("dive", "cpu", torch.float32, "cpu")
    finally:
        forget()


def forget() -> None:
    backends._implementation.cache_clear()
    backends._obstacle.cache_clear()


def test_auto_chooses_by_size(monkeypatch: pytest.MonkeyPatch, native: str) -> None:
    lines = ((100, "reference"), (10_000, "triton"), (None, "cpu"))
    monkeypatch.setitem(backends.AUTO["cpu"], "nearest", lines)
    for size, wanted in ((100, "reference"), (101, "cpu"), (10_001, "cpu")):
        module = backends.load("nearest", "cpu", torch.float32, "auto", size)
        # triton does not serve CPUs
        assert module.__name__ == f"robustft.backends.{wanted}.nearest"
    # The bank packs what the search of these queries will ask for.
    bank = FeatureBank(torch.randn(300, 10))
    served = []
    for name in ("reference", "cpu"):
        module = backends.load("nearest", "cpu", torch.float32, name)
        plain = module.kth_distance

        def record(q, r, packed, *rest, plain=plain, module=module):
            own = [part.data_ptr() for part in bank._formats[module.FORMAT]]
            served.append((module.__name__, [part.data_ptr() for part in packed] == own))
            return plain(q, r, packed, *rest)

        monkeypatch.setattr(module, "kth_distance", record)
    kth_distance(torch.randn(10, 10), bank, 3)
    kth_distance(torch.randn(11, 10), bank, 3)
    assert served == [
        ("robustft.backends.reference.nearest", True),
        ("robustft.backends.cpu.nearest", True),
    ]


def test_a_kernel_for_some_dtypes_and_one_card_is_declined_elsewhere(monkeypatch):
    given = "mpm_nce", "cuda", "cuda"
    monkeypatch.setattr(backends.card, "capabilities", lambda: [(9, 0), (9, 0)])
    assert backends.declined(*given, torch.bfloat16) is None
    assert "it serves bfloat16 and float16" in backends.declined(*given, torch.float32)
    monkeypatch.setattr(backends.card, "capabilities", lambda: [(9, 0), (8, 0)])
    assert backends.declined(*given, torch.float16) == "it is for sm_90, a card here is sm_80"
    assert backends.declined("dive", "cuda", "cuda", torch.float32) is None
