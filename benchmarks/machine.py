"""What the rows say about where they were measured, and who else was at work there."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

import robustft
from robustft import backends

_PACKAGES = (
    *("torch", "faiss-cpu", "scikit-learn", "open_clip_torch", "triton"),
    *("cupy-cuda13x", "faiss-gpu-cu12", "liger-kernel"),
)


@dataclass(frozen=True)
class Machine:
    """The columns that are the same for all rows of a run."""

    device: str
    processor: str
    isa: str
    versions: str
    commit: str

    @staticmethod
    def here(device: str) -> Machine:
        return Machine(device, _processor(device), _isa(device), _versions(), _commit())

    def columns(self) -> dict[str, object]:
        return {
            **vars(self),
            "threads": torch.get_num_threads(),
            "when": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
        }

    def others(self) -> Callable[[], float | None]:
        """Call the result at the end: the mean number of cores that others kept busy since."""
        busy, own, start = _busy(), _own(), time.perf_counter()

        def since() -> float | None:
            now = _busy()
            if busy is None or now is None:
                return None
            seconds = time.perf_counter() - start
            return round(max(0.0, (now - busy) - (_own() - own)) / seconds, 2)

        return since


def _busy() -> float | None:
    """Seconds that the processor's cores worked since the start, or were taken by a hypervisor."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(x) for x in fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own() -> float:
    """Seconds of this process and of its finished children (a compiler)."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _processor(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        name = _x86(Path("/proc/cpuinfo").read_text())
    except (OSError, KeyError):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def _x86(cpuinfo: str) -> str:
    """The model's name, with the numbers that tell generations of one name apart."""
    lines = (line.partition(":") for line in cpuinfo.partition("\n\n")[0].splitlines())
    said = {name.strip(): value.strip() for name, _, value in lines}
    return f"{said['model name']}, family {said['cpu family']} model {said['model']}"


def _isa(device: str) -> str:
    if device == "cuda":
        return "sm_{}{}".format(*torch.cuda.get_device_capability())
    if not backends.status("cpu").runs:
        return "none"
    from robustft import _native

    return _native.isa()


def _versions() -> str:
    found = [f"robustft {robustft.__version__}", f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def _commit() -> str:
    """The commit of this checkout, with a + if tracked files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit.stdout.strip() + ("+" if changes.stdout.strip() else "")
