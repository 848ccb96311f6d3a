"""`robustft verify`: every kernel of a card asked, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import torch

from robustft import backends, cache, progress
from robustft.backends.card import KERNELS
from robustft.backends.proof import verdicts
from robustft.backends.proof.verdicts import Verdict
from robustft.choices import KERNEL_DTYPES
from robustft.cli.ending import end
from robustft.cli.verify_options import VerifyOptions
from robustft.errors import InputError

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in KERNEL_DTYPES}


def verify(options: VerifyOptions) -> None:
    """Carry out `robustft verify`."""
    if options.limit < 1:
        raise InputError(f"--limit: got {options.limit}, expected at least 1")
    failed = total = 0
    kernels = list(_kernels(options))
    for op, backend, dtype, device in progress.each(kernels, "verify", len(kernels), "kernel"):
        found = _asked(op, backend, dtype, device, options.limit)
        verdicts.write(backend, device, verdicts.name(op, backend, DTYPES[dtype]), found)
        with progress.aside():
            print(f"{op:8} {backend:7} {dtype:9} {found.said()}", flush=True)
        total, failed = total + 1, failed + (not found.passed)
    if total == 0:
        reasons = "; ".join(f"{b}: {backends.status(b).reason}" for b in KERNELS)
        raise InputError(f"verify: found no card's kernel that runs here ({reasons})")
    if failed:
        raise InputError(f"verify: {failed} of {total} kernels failed; auto does not take them")
    print(f"all {total} kernels gave the right numbers")
    end(cache.folder(), next=["robustft tune"])


def _kernels(options: VerifyOptions) -> Iterator[tuple[str, str, str, torch.device]]:
    for op, modules in backends.IMPLEMENTATIONS.items():
        for backend in KERNELS:
            wanted = (not options.op or op in options.op) and (
                not options.backend or backend in options.backend
            )
            if not wanted or backend not in modules or not backends.status(backend).runs:
                continue
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            for dtype in options.dtype or DTYPES:
                # Searches are in float32 alone: other features are taken to it first.
                if op == "nearest" and dtype != "float32":
                    continue
                if backends.declined(op, backend, device.type, DTYPES[dtype]) is None:
                    yield op, backend, dtype, device


def _asked(op: str, backend: str, dtype: str, device: torch.device, limit: int) -> Verdict:
    command = [sys.executable, "-m", "robustft.cli.one_proof", op, backend, dtype, str(device)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return Verdict(False, f"no answer within {limit} s")
    try:
        return Verdict(*json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        said = done.stderr.strip().splitlines()
        return Verdict(False, f"exit code {done.returncode}: {said[-1] if said else 'no word'}")
