"""The CUDA kernels, emulated, under the address and undefined-behaviour sanitizers.

What a kernel reads or writes beyond a tensor, a block's shared memory or an array ends the process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .build import ROOT, builder

pytestmark = [pytest.mark.sanitize, pytest.mark.timeout(1800)]

FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
# torch.compile's compilers take the time, and run no other kernel.
DESELECT = "not compile and not opcheck"


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """For a Python with g++'s runtimes, which must be loaded before everything else."""
    if builder.shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    runtimes = []
    for name in ("libasan.so", "libubsan.so", "libstdc++.so.6"):
        command = ["g++", f"-print-file-name={name}"]
        path = subprocess.check_output(command, text=True).strip()
        if path == name:
            pytest.skip(f"g++ comes without {name}")
        runtimes.append(path)
    return os.environ | {
        # Leaks are the interpreter's; the fibers' stacks have no copies to detect late uses in.
        "ASAN_OPTIONS": "detect_stack_use_after_return=0:detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "LD_PRELOAD": " ".join(runtimes),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }


def test_kernels_stay_in_their_memory(environment: dict[str, str]) -> None:
    out = builder.build(ROOT / "build" / "cuda-emulator-sanitized.so", None, "g++", FLAGS)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += [str(ROOT / "tests" / "ops"), str(ROOT / "tests" / "cuda"), "-k", DESELECT]
    done = subprocess.run(
        command,
        env=environment | {"ROBUSTFT_CUDA_EMULATOR": str(out)},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-20000:]
    print(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("what", "message"), [(9, "heap-buffer-overflow"), (10, "index 32 out of bounds")]
)
def test_what_is_out_of_bounds_is_seen(
    environment: dict[str, str], tmp_path: Path, what: int, message: str
) -> None:
    source = Path(__file__).parent / "emulator" / "kernels.cu"
    out = builder.build(tmp_path / "kernels.so", [source], "g++", FLAGS)
    script = f"""
import torch
from robustft.backends.cuda.launcher import _Emulator
card, out = _Emulator({str(out)!r}), torch.empty(64)
card.launch("kernels", "wrong", (1,), 64, (out, 4), shared=256)
print("within", flush=True)
card.launch("kernels", "wrong", (1,), 64, (out, {what}), shared=256)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "within\n", done.stderr
    assert done.returncode != 0
    assert message in done.stderr
