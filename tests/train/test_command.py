"""`robustft train` as a command: several processes, signals, job queues, defaults by method."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from robustft.cli.app import run
from robustft.cli.materials import settled
from robustft.cli.runs import open_run
from robustft.cli.train_options import TrainOptions
from robustft.methods import METHODS

TINY = ("--model", "robustft-tiny", "--pretrained", "glyphs", "--device", "cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of two classes of eight training and three test images, easy to tell apart."""
    root = tmp_path_factory.mktemp("pictures") / "my data"
    rng = np.random.default_rng(3)
    for split, count in (("train", 8), ("test", 3)):
        for index, name in enumerate(("cat", "dog")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 90, (24, 24, 3))
                pixels[:, 12 * index : 12 * index + 12] += 150
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return root


def arguments(data, *more):
    fixed = ("--template", "photo", "--batch-size", "4", "--epochs", "1", "--lr", "1e-3")
    return ["train", *TINY, "--data-location", str(data), *fixed, *more]


def environment():
    paths = os.pathsep.join(path for path in sys.path if path)
    return dict(os.environ, PYTHONPATH=paths, OMP_NUM_THREADS="1")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("method", ["ft", "zero-shot"])
def test_torchrun_trains_as_a_command_and_evaluates_once(pictures, tmp_path, method):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launch, "-m", "robustft"]
    command += arguments(pictures, "--method", method, "--logs-dir", str(tmp_path), "--name", "two")
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    # Two sets; of a tuned model also the zero-shot model on both, and the geometry on one.
    expected = {"ft": 6, "zero-shot": 2}[method]
    assert len(lines(tmp_path / "two" / "results.jsonl")) == expected
    assert done.stdout.count("written: ") == 1
    assert json.loads((tmp_path / "two" / "train.json").read_text())["processes"] == 2
    if method == "ft":  # 16 images less one for validation, 2 x 4 a step, 7 in the last
        (last,) = [r for r in lines(tmp_path / "two" / "log.jsonl") if "loss" in r]
        assert last["step"] == 2


@pytest.mark.parametrize("wrong", [("--methd", "ft"), ("--data-location", "not/there")])
def test_torchrun_says_an_error_that_all_processes_meet_once(pictures, tmp_path, wrong):
    """Whether it is met before the processes join or after."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launch, "-m", "robustft", *arguments(pictures, *wrong)]
    done = subprocess.run(
        command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("robustft: ")]
    assert wrong[0] in said or wrong[1] in said


def test_every_flag_has_a_spelling_that_torchrun_leaves_alone():
    """torchrun takes an unknown flag that begins two of its own for an ambiguous abbreviation."""
    from torch.distributed.run import get_args_parser

    from robustft.cli import evaluate

    names = [
        option
        for kind in (TrainOptions, evaluate.EvalOptions)
        for field in kind.__dataclass_fields__.values()
        for option in [field.metadata["also"] or f"--{field.name.replace('_', '-')}"]
    ]
    assert {"--logs-dir", "--run-dir", "--lr"} <= set(names)
    for name in names:
        parsed = get_args_parser().parse_args(["-m", "robustft", "train", name, "value"])
        assert parsed.training_script_args == ["train", name, "value"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_command_saves_and_says_how_to_continue(pictures, tmp_path, number):
    """The command that it prints is typed into a shell, and the run goes on to its end."""
    more = ("--method", "ft", "--epochs", "100000", "--logs", str(tmp_path), "--name", "a/b c")
    process = subprocess.Popen(
        [sys.executable, "-m", "robustft", *arguments(pictures, *more)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = tmp_path / "a" / "b c"
    for _ in range(1200):
        if (folder / "log.jsonl").is_file() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    (said,) = [x for x in errors.replace("\r", "\n").splitlines() if "stopped at step" in x]
    assert "saved; continue with: robustft train --config '" in said
    (saved,) = (folder / "checkpoints").iterdir()
    step = int(said.split("step ")[1].split(",")[0])
    assert saved.name == f"step-{step:08d}"
    # The printed command finds its run from another folder; the run's other settings are fixed.
    typed = said.split("continue with: robustft ")[1]
    shell = f"{sys.executable} -m robustft {typed} --lr 7"
    done = subprocess.run(
        shell, shell=True, cwd="/", env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "config.lr: 0.001 there, 7.0 here" in done.stderr


def test_resume_latest_is_right_for_the_first_start_and_after_the_last(
    pictures, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(pictures.parent)
    job = arguments("my data", "--method", "ft", "--logs", str(tmp_path), "--resume", "latest")
    job += ["--name", "job"]
    assert run(job) == 0
    folder = tmp_path / "job"
    weights = (folder / "model.safetensors").read_bytes()
    assert len(lines(folder / "results.jsonl")) == 6
    assert run(job) == 0
    assert "finished and evaluated before" in capsys.readouterr().out
    assert (folder / "model.safetensors").read_bytes() == weights
    assert len(lines(folder / "results.jsonl")) == 6
    # Its paths do not depend on where it was started.
    monkeypatch.chdir(tmp_path)
    assert open_run(folder, "cpu").train.classnames == ["cat", "dog"]
    assert len(list((folder / "checkpoints").iterdir())) == 1


def test_a_run_that_was_moved_is_continued_where_it_lies(pictures, tmp_path, capsys):
    """And not begun anew in the folder that its file names."""
    job = arguments(pictures, "--method", "ft", "--logs", str(tmp_path / "logs"), "--name", "job")
    assert run(job) == 0
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "logs" / "job").rename(tmp_path / "elsewhere" / "renamed")
    weights = (moved / "model.safetensors").read_bytes()
    assert run(["eval", "--run", str(moved), "--id", str(pictures)]) == 0
    capsys.readouterr()
    assert run(["train", "--config", str(moved / "config.yaml"), "--resume", "latest"]) == 0
    assert "finished and evaluated before" in capsys.readouterr().out
    assert (moved / "model.safetensors").read_bytes() == weights
    assert list((tmp_path / "logs").iterdir()) == []
    # A flag says more than the place, and a copy elsewhere is a plain file of options.
    copy = tmp_path / "my.yaml"
    copy.write_text((moved / "config.yaml").read_text())
    for config, more in ((moved / "config.yaml", ["--name", "new"]), (copy, [])):
        assert run(["train", "--config", str(config), *more]) == 0
    assert (tmp_path / "elsewhere" / "new" / "model.safetensors").is_file()
    assert (tmp_path / "logs" / "job" / "model.safetensors").is_file()


def test_a_methods_file_is_found_from_another_folder(pictures, tmp_path, monkeypatch, capsys):
    """--option phrases=FILE, whose name YAML would read as something else."""
    (tmp_path / "a: b #1").mkdir()
    (tmp_path / "a: b #1" / "words.txt").write_text("in the snow\n")
    monkeypatch.chdir(tmp_path / "a: b #1")
    job = ["--method", "starft", "--option", "phrases=words.txt", "--option", "decay=false"]
    job += ["--id", str(pictures), "--eval-datasets", str(pictures)]
    assert run(arguments(pictures, *job, "--logs", "logs", "--name", "job")) == 0
    config = tmp_path / "a: b #1" / "logs" / "job" / "config.yaml"
    monkeypatch.chdir(tmp_path)
    assert run(["train", "--config", str(config), "--resume", "latest"]) == 0
    assert "finished and evaluated before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("named", "roles"),
    [
        ([], ["id", "forgetting"]),
        (["--ood", "other"], ["id", "ood", "forgetting"]),
        (["--zero-shot", "letters"], ["id", "forgetting"]),
        (["--id", "own", "--ood", "other"], ["id", "ood", "forgetting"]),
        (["--eval-datasets", "other:ood"], ["ood"]),
    ],
)
def test_roles_that_no_set_is_named_for_have_their_own(
    pictures, tmp_path, monkeypatch, capsys, named, roles
):
    """The ID test set is not lost where only shifted sets are named."""
    (tmp_path / "own").symlink_to(pictures)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "test").symlink_to(pictures / "test")
    monkeypatch.chdir(tmp_path)
    job = ["--method", "zero-shot", "--logs", "logs", "--name", "run", *named]
    assert run(["train", *TINY, "--data-location", "own", "--template", "photo", *job]) == 0
    assert [x["role"] for x in lines(tmp_path / "logs" / "run" / "results.jsonl")] == roles
    said = capsys.readouterr().out
    assert ("--id: none is named, so " in said) == ("id" in roles and "--id" not in named)
    assert ("200 images of the built-in inks" in said) == (
        "forgetting" in roles and "--zero-shot" not in named
    )


def test_runs_on_other_data_have_other_default_names(pictures, tmp_path, monkeypatch):
    """dslr/images and webcam/images, and two folders that are called alike."""
    for where in ("dslr/images", "webcam/images", "a/birds", "b/birds", "v1.5"):
        (tmp_path / where).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / where).symlink_to(pictures)
    monkeypatch.chdir(tmp_path)
    job = ("--method", "zero-shot", "--logs", "logs", "--template", "photo", "--id", str(pictures))
    for data in ("dslr/images", "webcam/images", "a/birds", "b/birds", "b/birds/", "v1.5"):
        assert run(["train", *TINY, "--data-location", data, *job, "--resume", "latest"]) == 0
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == [
        "zero-shot-b-birds-0",
        "zero-shot-birds-0",
        "zero-shot-dslr-images-0",
        "zero-shot-v1.5-0",
        "zero-shot-webcam-images-0",
    ]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (("ViT-B-32",), True),
        (("ViT-B-32", "--pretrained", "openai"), False),
        (("local-dir:somewhere",), False),
        (("hf-hub:some/where",), False),
        (("robustft-tiny",), False),
    ],
)
def test_random_weights_are_said_before_they_are_fine_tuned(
    pictures, tmp_path, monkeypatch, capsys, model, said
):
    from robustft.cli import materials
    from robustft.errors import InputError

    def stop(*_):
        raise InputError("stopped here")

    monkeypatch.setattr(materials, "load_model", stop)
    job = ["train", "--method", "flyp", "--data-location", str(pictures), "--logs", str(tmp_path)]
    assert run([*job, "--model", *model]) == 2
    errors = capsys.readouterr().err
    assert "stopped here" in errors
    line = f"--pretrained: got none, so {model[0]} starts from random weights"
    assert (line in errors) == said


def test_training_that_diverges_is_exit_code_1(pictures, tmp_path, capsys):
    more = ("--method", "flyp", "--warmup", "0", "--logs", str(tmp_path), "--name", "run")
    assert run([*arguments(pictures, *more), "--lr", "1e30"]) == 1
    said = capsys.readouterr().err
    assert "robustft: training diverged: the " in said
    assert "(learning rate " in said
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "results.jsonl").exists()


def test_ctrl_c_anywhere_else_is_130_and_a_word(monkeypatch, capsys):
    from robustft.data import load_dataset

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("robustft.data.load_dataset", stop)
    assert run(["eval", *TINY, "--eval-datasets", "digits"]) == 130
    assert "robustft: interrupted" in capsys.readouterr().err
    assert load_dataset is not stop


def test_settings_default_to_those_of_the_method(capsys):
    def value(method, name, **given):
        return getattr(settled(TrainOptions(method=method, **given)), name)

    assert value("r-adapter", "lr") == 5e-4
    assert value("r-adapter", "wd") == 0.0
    assert value("r-adapter", "grad_clip_norm") == 1.0
    assert value("ft", "lr") == 3e-5
    assert value("flyp", "lr") == 1e-5
    assert value("flyp", "grad_clip_norm") is None
    assert value("flyp", "lr", lr=2.0) == 2.0
    assert value("r-adapter", "min_lr", lr=1e-9) == 1e-9
    for method in METHODS:
        assert value(method, "epochs") >= 1
    assert run(["train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "0.0005 for r-adapter" in text
    assert "3e-05 for ft" in text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e3", 1000.0),
        ("5E-2", 0.05),
        ("-3", -3),
        ("4", 4),
        ("true", True),
        ("null", None),
        ("label", "label"),
        ("1e", "1e"),
    ],
)
def test_a_methods_settings_are_plain_values(text, value):
    from robustft.cli.options import method_options

    found = method_options([f"key={text}"])["key"]
    assert found == value
    assert type(found) is type(value)
