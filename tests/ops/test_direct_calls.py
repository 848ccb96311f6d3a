"""torch.ops.robustft.* called directly, with what the public functions never hand on.

The kernels read raw memory: each call below must raise, where it once crashed or answered from
memory that it had no business with. All run in one process of their own, which must live.
"""

import os
import subprocess
import sys

import pytest

from robustft import backends

SCRIPT = """
import sys
import torch
from robustft.backends import IMPLEMENTATIONS
from robustft.ops import FeatureBank

BACKEND = sys.argv[1]
serves = {op for op, modules in IMPLEMENTATIONS.items() if BACKEND in modules}

ops, x, y = torch.ops.robustft, torch.randn(40, 6), torch.randn(40, 6)
long = torch.randn(4000 if BACKEND == "cpu" else 400, 6)
integers, double = torch.ones(40, 6).long(), torch.randn(40, 6).double()
vector, cube, none = x[:, 0], torch.randn(4, 5, 6), x[:0]
scale, labels = torch.tensor(10.0), torch.arange(40)
mean, one = torch.zeros(6), torch.tensor(1.0)
# mpm_nce's CUDA kernels serve 16 bits alone.
u, v = (z.bfloat16() if BACKEND == "cuda" else z for z in (x, y))
bank = FeatureBank(long)
packed = bank.packed(BACKEND)
small = FeatureBank(x).packed(BACKEND)

def nearest(queries=x, rows=long, packed=packed, k=3):
    ops.nearest_knn(queries, rows, packed, k, True, BACKEND)
    ops.nearest_kth_distance(queries, rows, packed, k, True, BACKEND)

def mpm(image=u, text=v, a=None, b=None, mask=None, scale=scale):
    ops.mpm_nce_forward(image, text, a, b, mask, -100, scale, 0.1, 0.1, True, False, 0,
                        BACKEND)

saved = [None] * 3
if "mpm_nce" in serves:
    saved = ops.mpm_nce_forward(u, v, None, None, None, -100, scale, 0.1, 0.1, True, False, 1 << 30,
                                BACKEND)[1:]

def mpm_back(rows=saved[0], columns=saved[1], kept=saved[2], grad=one, image=u, a=None):
    ops.mpm_nce_backward(image, v, a, None, None, -100, scale, rows, columns, kept, grad, 0.1, 0.1,
                         True, False, True, True, BACKEND)

def dive(f=x, f0=x, g=y, g0=y, mean=mean):
    ops.dive_forward(f, f0, g, g0, mean, 0.9, True, BACKEND)

def dive_back(f=x, mean=mean, avl=one, pvl=one):
    ops.dive_backward(f, x, y, y, mean, avl, pvl, True, BACKEND)

def vrf(z=x, y=y, d=vector):
    ops.vrf_forward(z, y, d, 0.1, 1.0, 1.0, 1.0, False, BACKEND)

def vrf_back(z=x, d=vector, grad=y):
    ops.vrf_backward(z, y, d, grad, 0.1, 1.0, 1.0, 1.0, False, BACKEND)

def rsa(a=x, b=y, metric="euclidean"):
    for method in ("pearson", "spearman"):
        ops.rsa_correlation(a, b, metric, method, BACKEND)

wrong = [x[:7], long, x[:, :3], integers, double, vector, cube, none, x[:, :0], x.half()]
CASES = [(nearest, {"k": k}) for k in (0, -1, 4001, 1 << 40)]
CASES += [(nearest, {"rows": rows}) for rows in wrong if rows is not long]
CASES += [(nearest, {"queries": q}) for q in wrong[2:] if len(q)]
CASES += [(nearest, {"packed": p}) for p in (
    small, packed[:-1], packed[::-1], [p[:-1] for p in packed], [packed[0].double(), *packed[1:]],
    [packed[0], packed[1].short(), *packed[2:]], [*packed[:-1], packed[-1][:1]], [x],
    [packed[0], small[1], *packed[2:]], [*packed[:-1], small[-1]],
)]
for name, f in (("image", mpm), ("text", mpm), ("f", dive), ("f0", dive), ("g", dive), ("g0", dive),
                ("f", dive_back), ("z", vrf), ("y", vrf), ("z", vrf_back), ("grad", vrf_back),
                ("b", rsa), ("image", mpm_back)):
    CASES += [(f, {name: value}) for value in wrong
              if not (f is rsa and value.dtype in (torch.half, torch.double))
              and not (f is rsa and value.ndim == 2 and len(value) == 40 and value.shape[1] == 3)]
CASES += [(f, {"mean": m}) for f in (dive, dive_back) for m in (mean[:5], x, none)]
CASES += [(f, {"d": d}) for f in (vrf, vrf_back) for d in (vector[:39], x, long[:, 0])]
CASES += [(dive_back, {n: g}) for n in ("avl", "pvl") for g in (x, vector)]
CASES += [(mpm, {"a": a, "b": b}) for a, b in (
    (labels, None), (None, labels), (labels[:39], labels), (labels, labels[:3]),
    (labels.int(), labels), (labels, labels.float()),
)]
CASES += [(mpm, {"mask": m}) for m in (x > 0, torch.ones(40, 40), torch.ones(40, 39).bool())]
CASES += [(mpm, {"scale": s}) for s in (vector, one.half(), one.double(), one.long())]
if "mpm_nce" in serves:
    CASES += [(mpm_back, {n: s}) for n in ("rows", "columns", "kept")
              for s in (vector, x, saved[0][:, :3], saved[0].double(), saved[2][:-1])]
    CASES += [(mpm_back, {"grad": g}) for g in (x, one.half(), one.long())]
    CASES += [(mpm_back, {"columns": saved[1][:, :0]}), (mpm_back, {"a": labels})]
CASES += [(rsa, {"a": a, "b": a}) for a in (x[:2], x[:1], none)]

OF = {nearest: "nearest", mpm: "mpm_nce", mpm_back: "mpm_nce", dive: "dive", dive_back: "dive",
      vrf: "vrf", vrf_back: "vrf", rsa: "rsa"}
for f, arguments in CASES:
    if OF[f] not in serves:
        continue
    said = {k: [(v.dtype, v.shape) for v in value] if isinstance(value, list) else
            (value.dtype, value.shape) if isinstance(value, torch.Tensor) else value
            for k, value in arguments.items()}
    print(f.__name__, said, flush=True)  # the last line of a crash
    try:
        f(**arguments)
    except Exception:
        pass
    else:
        print("NOT REFUSED")
for f, op in OF.items():
    if op in serves:
        f()  # what is right is served
print("lives")
"""


HERE = backends.interpreting() or backends.emulating()


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("cpu", marks=pytest.mark.skipif(HERE, reason="runs without an interpreter")),
        pytest.param("triton", marks=pytest.mark.interpreter),
        pytest.param("cuda", marks=pytest.mark.emulator),
    ],
)
def test_hostile_direct_calls_raise(backend, request):
    if backend == "cpu":
        request.getfixturevalue("native")
    if backend == "triton" and not backends.interpreting():
        pytest.skip("runs under TRITON_INTERPRET=1")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, backend],
        env=os.environ | {"OMP_NUM_THREADS": "2", "MALLOC_PERTURB_": "85"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, (lines[-1:], done.stderr[-2000:])
    served = [lines[i - 1] for i, line in enumerate(lines) if line == "NOT REFUSED"]
    assert served == []
    assert lines[-1] == "lives"
