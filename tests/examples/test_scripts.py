"""Every script in examples/ runs, on little data, and does what it says."""

import math
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

FOLDER = Path(__file__).parents[2] / "examples"


def run(name, *arguments):
    """What the script's main answers."""
    return runpy.run_path(str(FOLDER / name))["main"]([str(argument) for argument in arguments])


@pytest.fixture
def tiny():
    """The built-in model under its name in open_clip and, of its weights, the file."""
    pytest.importorskip("open_clip")
    from robustft.models import tiny

    tiny.register()
    return ("--model", "robustft-tiny", "--pretrained", tiny.verify())


@pytest.mark.parametrize(
    "options",
    [
        ("--loss", "clip"),
        ("--loss", "mpm-nce", "--amp"),
        ("--loss", "mpm-nce", "--accum", "4", "--batch-size", "16"),
    ],
    ids=["clip", "mpm-nce-amp", "accumulation"],
)
def test_a_loop_of_open_clip_learns(tiny, options):
    losses = run("open_clip_loop.py", *tiny, "--steps", 12, "--lr", 1e-3, *options)
    assert sum(losses[-3:]) < sum(losses[:3])


def test_accumulated_batches_are_one_large_batch(tiny):
    # The captions of a class are alike, so the order within a batch does not matter.
    whole = run("open_clip_loop.py", *tiny, "--steps", 1, "--batch-size", 64)
    parts = run("open_clip_loop.py", *tiny, "--steps", 1, "--batch-size", 16, "--accum", 4)
    assert parts == pytest.approx(whole, rel=0.3)


@pytest.mark.slow
def test_a_loop_of_open_clip_on_two_processes_and_compiled(tiny, tmp_path):
    script = tmp_path / "loop.py"
    script.write_text(
        "import runpy; from robustft.models import tiny; tiny.register(); "
        f"print(runpy.run_path({str(FOLDER / 'open_clip_loop.py')!r})['main']())"
    )
    options = [*tiny, "--steps", "6", "--lr", "1e-3", "--accum", "2", "--compile"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", "2", str(script)]
    done = subprocess.run(
        [*torchrun, *map(str, options)], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = [line for line in done.stdout.splitlines() if line.startswith("loss ")]
    assert len(said) == 2
    assert said[0] == said[1]


def test_hugging_face_s_model_learns():
    pytest.importorskip("transformers")
    losses = run("transformers_clip.py", "--model", "random", "--steps", 30, "--lr", 1e-3)
    assert sum(losses[-5:]) < sum(losses[:5])
    assert losses[0] == pytest.approx(math.log(64), rel=0.1)


def test_r_adapter_on_timm_s_model_learns_and_leaves_plain_weights(tiny, tmp_path):
    trunk = "visual.trunk."
    own = {k.removeprefix(trunk): v for k, v in load_file(tiny[-1]).items() if trunk in k}
    torch.save(own, tmp_path / "trunk.pt")
    options = (
        "--model",
        "robustft_tiny_vit",
        "--checkpoint",
        tmp_path / "trunk.pt",
        "--img-size",
        24,
    )
    out = tmp_path / "merged.pt"
    assert run("r_adapter_timm.py", *options, "--img-size", 24, "--steps", 40, "--save", out) > 0.8
    merged = torch.load(out, weights_only=True)
    assert merged.keys() == own.keys()
    assert not all(torch.equal(merged[name], own[name]) for name in own)


def test_vrf_on_any_two_classifiers(tmp_path):
    pytest.importorskip("sklearn")
    found = run("vrf_features.py", "--save", tmp_path / "vrf.safetensors")
    assert found["VRF"] > max(found["zero-shot"], found["fine-tuned"])
    assert (tmp_path / "vrf.safetensors").is_file()
    script = runpy.run_path(str(FOLDER / "vrf_features.py"))
    files = [tmp_path / f"{name}.npz" for name in ("train", "val", "test")]
    for path, split in zip(files, script["stand_ins"](), strict=True):
        np.savez(path, **split)
    assert run("vrf_features.py", *files) == found


def test_neighbours_are_those_of_faiss():
    pytest.importorskip("faiss")
    assert run("knn_faiss.py", "--rows", 20_000, "--queries", 100, "--dim", 64) > 0.9999


def test_far_images_are_foreign():
    pytest.importorskip("open_clip")
    area, kept, taken = run("ood_detection.py")
    assert area > 0.9
    assert kept > 0.85
    assert taken < 0.5


def stub(folder, name, program):
    path = folder / name
    path.write_text(f"#!/bin/bash\n{program}\n")
    path.chmod(0o755)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_the_job_starts_one_torchrun_a_node_with_the_options_given(tmp_path, monkeypatch):
    stub(tmp_path, "scontrol", "printf 'first\\nsecond\\n'")
    stub(tmp_path, "srun", 'echo "srun $*"; shift; exec "$@"')
    stub(tmp_path, "torchrun", 'printf "<%s>" "$@"; echo "threads $OMP_NUM_THREADS"; exit 7')
    for name, value in {
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_ID": "42",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_CPUS_PER_TASK": "32",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    done = subprocess.run(
        ["bash", FOLDER / "slurm.sh", "--method", "ft", "--name", "my run"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 7, done.stderr  # a failed run fails the job
    assert "threads 8" in done.stdout
    assert "<--nnodes><2><--nproc-per-node><4>" in done.stdout
    assert "<first:29500>" in done.stdout
    assert "<-m><robustft><train><--resume><latest><--method><ft><--name><my run>" in done.stdout


def test_every_script_is_run_here_and_listed():
    here = Path(__file__).parent
    tests = "".join(path.read_text() for path in here.glob("test_*.py"))
    listed = (FOLDER / "README.md").read_text()
    for path in FOLDER.iterdir():
        if path.suffix in (".py", ".sh", ".ipynb"):
            assert path.name in tests
            assert f"({path.name})" in listed
            lines = path.read_text().count("\n")
            assert lines <= 100 or path.suffix == ".ipynb", (path.name, lines)
