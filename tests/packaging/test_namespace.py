"""`import robustft`: what is there, with which types, and what a clone that is not built says."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import robustft

ROOT = Path(robustft.__file__).resolve().parents[1]

PROGRAM = """
import robustft
from robustft import VRF, losses

reveal_type(robustft.ops.dive_loss)
reveal_type(robustft.losses.DiVELoss)
reveal_type(robustft.VRF.load)
reveal_type(robustft.FeatureBank)
reveal_type(robustft.__version__)
robustft.lossses
"""


def in_python(code, cwd, *options):
    return subprocess.run(
        [sys.executable, *options, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=300
    )


def test_everything_is_there_after_one_import_and_imported_late(tmp_path):
    code = (
        "import sys, robustft; assert 'robustft.ops' not in sys.modules;"
        "assert {'ops', 'losses', 'VRF', 'FeatureBank'} <= set(dir(robustft));"
        "robustft.losses.DiVELoss; robustft.ops.dive_loss; robustft.VRF.load; robustft.FeatureBank"
    )
    done = in_python(code, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    with pytest.raises(AttributeError, match="'robustft' has no attribute 'lossses'"):
        _ = robustft.lossses


def test_a_program_is_typed(tmp_path):
    api = pytest.importorskip("mypy.api")
    (tmp_path / "program.py").write_text(PROGRAM)
    # The names of other packages stay untyped here, which is a matter of seconds, not minutes.
    settings = "[mypy]\nfollow_imports = silent\n[mypy-torch.*,numpy.*]\nfollow_imports = skip\n"
    (tmp_path / "mypy.ini").write_text(settings + "ignore_missing_imports = true\n")
    options = ["--config-file", str(tmp_path / "mypy.ini"), "--cache-dir", str(tmp_path / "cache")]
    out, _, _ = api.run([*options, str(tmp_path / "program.py")])
    shown = [line.partition("Revealed type is ")[2] for line in out.splitlines() if "note" in line]
    kinds = ("def (", "def (", "def (", "def (", "str")
    assert len(shown) == len(kinds)
    assert all(kind in text for kind, text in zip(kinds, shown, strict=True)), shown
    assert 'Module has no attribute "lossses"' in out
    assert out.count("error:") == 1


@pytest.fixture
def clone(tmp_path):
    """The sources of a clone that nobody built."""
    pytest.importorskip("torch")
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("the sources are not here")
    for name in ("robustft", "kernels"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_a_clone_that_is_not_built_says_so_in_one_line(clone, tmp_path_factory):
    home = tmp_path_factory.mktemp("site")
    (home / "robustft").mkdir()
    (home / "robustft" / "__init__.py").touch()
    (home / "robustft-0.1.0.dist-info").mkdir()
    about = "Metadata-Version: 2.1\nName: robustft\nVersion: 0.1.0\n"
    (home / "robustft-0.1.0.dist-info" / "METADATA").write_text(about)
    # As a wheel would be installed: its folder is found after the one that Python starts in.
    torch_at = Path(sys.modules["torch"].__file__).parents[1]
    code = (
        f"import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in str(f)];"
        f"sys.path[:] = ['', {str(home)!r}] + [p for p in sys.path if p];"
        f"sys.path.append({str(torch_at)!r});"
        "import robustft; from robustft import backends;"
        "print(robustft.__file__); print(backends.status('cpu').reason)"
    )
    done = in_python(code, clone)
    assert done.returncode == 0, done.stderr
    where, reason = done.stdout.splitlines()
    assert where == str(clone / "robustft" / "__init__.py")
    said = done.stderr.strip().splitlines()
    assert len(said) == 1, said
    assert f"robustft is taken from {clone}, which is not built" in said[0]
    assert f"in place of the one installed in {home}: start Python in another folder" in said[0]
    assert "pip install -e" in said[0]
    assert reason in said[0]
