from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import robustft

ROOT = Path(__file__).parents[2]


def test_versions_agree(native: str) -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert robustft.__version__ == declared == importlib.metadata.version("robustft")


def test_kernels_are_mapped_into_the_package(native: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import robustft.kernels as k; print(k.__file__)"],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    assert Path(done.stdout.strip()).name == "__init__.py"


def test_import_needs_what_the_package_requires_alone() -> None:
    script = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

REFUSED = {"open_clip", "timm", "torchvision", "PIL", "accelerate", "sklearn",
           "scipy", "matplotlib", "tensorboard", "tqdm", "yaml", "triton", "cupy",
           "huggingface_hub", "psutil", "transformers", "shtab"}
sys.meta_path.insert(0, Refuse())
import torch
import robustft, robustft.backends, robustft.ops
from robustft.ops import dive_loss, vrf_mix
x = torch.randn(3, 4)
dive_loss(x, x, x, x, torch.zeros(4))
vrf_mix(x, x, x[:, 0], 1.0, 1.0)
import tempfile
with tempfile.TemporaryDirectory() as folder:
    robustft.FeatureBank(x).save(folder + "/bank")
    assert len(robustft.FeatureBank.load(folder + "/bank", mmap=False)) == 3
assert "torch._dynamo" not in sys.modules  # a second to import
"""
    subprocess.run([sys.executable, "-c", script], check=True)
