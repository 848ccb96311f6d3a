"""`torchrun -m robustft train` on a model with a logit bias (SigLIP-like), for every method."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from robustft.methods import METHODS

CONFIG = {
    "embed_dim": 32,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {"image_size": 24, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
TRAINED = [name for name, method in METHODS.items() if method.published.epochs]
FIRST = ("flyp", "dive", "r-adapter")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with `model/` (open_clip's own layout), `data/` and `pairs.csv`."""
    import open_clip

    root = tmp_path_factory.mktemp("work")
    (root / "configs").mkdir()
    (root / "configs" / "biased.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(root / "configs")
    torch.manual_seed(0)
    model = open_clip.create_model("biased")
    (root / "model").mkdir()
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()},
        root / "model" / "open_clip_model.safetensors",
    )
    known = {"mean": [0.5] * 3, "std": [0.5] * 3}
    description = {"model_cfg": CONFIG, "preprocess_cfg": known}
    (root / "model" / "open_clip_config.json").write_text(json.dumps(description))
    rng = np.random.default_rng(3)
    rows = ["path,caption"]
    for split, count in (("train", 9), ("test", 2)):
        for index, name in enumerate(("cat", "dog")):
            folder = root / "data" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 90, (24, 24, 3))
                pixels[:, 12 * index : 12 * index + 12] += 150
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
                rows.append(f"{folder / f'{number}.png'},a {name} of {number}")
    rows += rows[1:]  # snd takes 16 pairs a process
    (root / "pairs.csv").write_text("\n".join(rows) + "\n")
    return root


def torchrun(folder, *arguments):
    """`torchrun -m robustft` with two processes."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.run(
        [sys.executable, *launch, "-m", "robustft", *arguments],
        cwd=folder,
        env=dict(os.environ, PYTHONPATH=paths, OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=[] if name in FIRST else [pytest.mark.slow]) for name in TRAINED],
)
def test_two_processes_train_what_the_loss_sees_and_evaluate_once(work, method):
    """The folder of the model is named relative to where the command is typed."""
    options = ["train", "--method", method, "--model", "local-dir:model", "--device", "cpu"]
    options += ["--data-location", "data", "--id", "data", "--template", "simple"]
    options += ["--batch-size", "4", "--epochs", "2", "--lr", "1e-3", "--warmup", "0"]
    options += ["--logs-dir", "logs", "--name", method]
    if METHODS[method].needs_reference:
        options += ["--reference", "pairs.csv"]
    done = torchrun(work, *options)
    assert done.returncode == 0, done.stderr
    assert "random weights" not in done.stderr
    folder = work / "logs" / method
    assert json.loads((folder / "train.json").read_text())["processes"] == 2
    assert done.stdout.count("written: ") == 1
    results = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [x["method"] for x in results if x["role"] == "id"] == ["zero-shot", method]
    before = load_file(work / "model" / "open_clip_model.safetensors")
    after = load_file(folder / "model.safetensors")
    assert torch.equal(after["clip.logit_bias"], before["logit_bias"])
    changed = (not torch.equal(x, after[f"clip.{name}"]) for name, x in before.items())
    assert any(changed) == (method != "linear-probe")
    assert (folder / "adapters").is_dir() == (method == "r-adapter")


def test_a_run_of_a_model_in_a_folder_is_opened_from_elsewhere(work, tmp_path, monkeypatch):
    from robustft.cli.app import run
    from robustft.cli.runs import open_run

    monkeypatch.chdir(work)
    options = ["--model", "local-dir:model", "--data-location", "data", "--id", "data"]
    options += ["--method", "zero-shot", "--logs", str(tmp_path), "--name", "run"]
    assert run(["train", *options, "--device", "cpu", "--template", "photo"]) == 0
    monkeypatch.chdir(tmp_path)
    assert open_run(tmp_path / "run", "cpu").train.classnames == ["cat", "dog"]


@pytest.fixture(scope="module")
def trained(work):
    """A run by one process on three images a batch, which nine test images fill."""
    from robustft.cli.app import run

    options = ["--method", "ft", "--model", "local-dir:model", "--data-location", "data"]
    options += ["--id", "data", "--batch-size", "3", "--epochs", "2", "--lr", "1e-3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        assert run(["train", *options, "--logs", "logs", "--name", "one", "--device", "cpu"]) == 0
    return work / "logs" / "one"


VERBS = {
    "vrf": ["--a", "1.5", "--b", "0.6"],
    "wise-ft": ["--alpha", "0,0.5,1"],
    "eval": ["--alpha", "0.5", "--save", "half.safetensors"],
}


@pytest.mark.parametrize(
    "verb", ["vrf", *(pytest.param(v, marks=pytest.mark.slow) for v in ("wise-ft", "eval"))]
)
def test_a_verb_of_two_processes_writes_what_it_does_of_one(work, trained, tmp_path, verb, capsys):
    """Digits too, which they share unevenly; each line is written and printed once, and so are the
    samples."""
    from robustft.cli.app import run

    common = [verb, "--run-dir", str(trained), *VERBS[verb], "--device", "cpu"]
    common += ["--id", f"pictures={work / 'data'}", "--zero-shot", "digits"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert run([*common, "--results-db", str(tmp_path / "one" / "all.jsonl")]) == 0
    one = capsys.readouterr().out
    saved = {path: path.read_bytes() for path in _written(trained, tmp_path)}
    assert saved
    for path in saved:
        path.unlink()
    done = torchrun(tmp_path, *common, "--results-db", str(tmp_path / "two" / "all.jsonl"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.replace(str(tmp_path / "two"), str(tmp_path / "one")) == one
    assert {path: path.read_bytes() for path in _written(trained, tmp_path)} == saved
    for path in saved:
        path.unlink()
    one, two = (_results(tmp_path / name / "all.jsonl") for name in ("one", "two"))
    assert one == two
    one, two = (_samples(tmp_path / name / "samples") for name in ("one", "two"))
    assert len(one) == 4, "of each set the verb's, and the set's own"
    assert one == two


def _written(*folders):
    names = ("vrf.safetensors", "wise-ft.safetensors", "half.safetensors")
    return [folder / name for folder in folders for name in names if (folder / name).exists()]


def _samples(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _results(path):
    return [json.loads(line) for line in path.read_text().splitlines()]
