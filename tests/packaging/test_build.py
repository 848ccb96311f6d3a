"""The distributions as a user builds them: isolated from this environment, so without torch."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sdist, and the wheel that `build` makes from that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)], check=True, timeout=500
    )
    return folder


def test_sdist_has_the_sources(distributions: Path) -> None:
    (path,) = distributions.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for wanted in (
        "CMakeLists.txt",
        "csrc/bindings/module.cpp",
        "csrc/cpu/dive.cpp",
        "csrc/cuda/dive_forward.cu",
        "kernels/__init__.py",
        "robustft/__init__.py",
        "robustft/report/page/templates/page.html",
        "LICENSE",
        "README.md",
    ):
        assert wanted in names
    assert not [name for name in names if name.endswith((".so", ".pyc", ".o"))]


def test_wheel_runs_without_the_source_tree(distributions: Path, tmp_path: Path) -> None:
    (path,) = distributions.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path)
    assert [name for name in names if name.startswith("robustft/_native.")]
    assert "robustft/kernels/__init__.py" in names
    assert "robustft/backends/cuda/launcher.py" in names
    assert "robustft/csrc/cuda/dive_forward.cu" in names
    assert "robustft/py.typed" in names
    assert {f"robustft/report/page/templates/page.{end}" for end in ("html", "css", "js")} <= set(
        names
    )
    assert not [name for name in names if name.endswith((".cpp", ".hpp"))]
    script = f"""
import sys
sys.path[:0] = [{str(tmp_path)!r}]
sys.path += {[entry for entry in sys.path if entry]!r}
import robustft, robustft.kernels, robustft._native as native
assert robustft.__file__.startswith({str(tmp_path)!r}), robustft.__file__
assert native.__file__.startswith({str(tmp_path)!r}), native.__file__
import torch
from robustft.ops import dive_loss
x = torch.randn(5, 7)
assert dive_loss(x, x, x, x, torch.zeros(7), backend="cpu")[0] == 0
"""
    # -S: no site, so no .pth file brings in an editable install
    subprocess.run([sys.executable, "-I", "-S", "-c", script], check=True, cwd="/")


def test_where_nothing_compiles_python_alone_is_installed_and_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path / "dist")]
    subprocess.run(
        [*command, f"-Cbuild-dir={tmp_path}/build", str(ROOT)],
        check=True,
        timeout=500,
        env=os.environ | {"CXX": "false"},
    )
    (path,) = (tmp_path / "dist").glob("*.whl")
    assert path.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "site")
    script = f"""
import sys
sys.path[:0] = [{str(tmp_path / "site")!r}]
sys.path += {[entry for entry in sys.path if entry]!r}
import torch, robustft
from robustft import backends
assert robustft.__file__.startswith({str(tmp_path)!r}), robustft.__file__
x = torch.randn(5, 7)
print(robustft.ops.dive_loss(x, x, x, x, torch.zeros(7))[0].item())
print(backends.status("cpu").reason)
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script],
        check=True,
        cwd="/",
        capture_output=True,
        text=True,
    )
    loss, reason = done.stdout.splitlines()
    assert float(loss) == 0
    assert "installed without its C++ kernels" in reason
    (said,) = done.stderr.splitlines()
    assert reason in said
