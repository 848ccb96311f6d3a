"""What trackers get of a run: its settings, every logged step once, its results."""

import math
import sys
import types

import pytest

from robustft.errors import InputError
from robustft.optional import MissingExtraError
from robustft.train import trackers
from robustft.train.log import Log

LINE = {"dataset": "D", "role": "id", "method": "ft", "n": 3, "D:top1": 0.5, "D:nll": None}
SHAPE = {"dataset": "D", "role": "geometry", "n": 3, "RSA:euclidean": 0.9, "CKA:linear": 0.8}


class Told:
    """Stands for the package wandb or trackio: notes what Accelerate's tracker tells it."""

    def __init__(self):
        self.begun, self.steps, self.ended = [], [], 0

    def init(self, **options):
        self.begun.append(options)
        return self

    def log(self, values, step=None, **_):
        self.steps.append((step, values))

    def finish(self):
        self.ended += 1


@pytest.fixture
def told(monkeypatch):
    pytest.importorskip("accelerate")
    packages = {}
    for name in ("wandb", "trackio"):
        packages[name] = Told()
        module = types.ModuleType(name)
        module.init = packages[name].init
        monkeypatch.setitem(sys.modules, name, module)
    return packages


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_gets_settings_steps_and_results_and_a_resumed_run_is_the_same_one(
    told, tmp_path, name
):
    if name not in trackers._kinds():
        pytest.skip(f"this accelerate has no {name}")
    one = told[name]
    log = Log(tmp_path, resumed_at=0, report_to=(name,), settings={"config.lr": 0.1, "x": (1, 2)})
    log.write(10, {"stage": "ft", "loss": 2.0, "lr": 0.1, "grad_norm": math.nan})
    log.write(20, {"stage": "ft", "val:top1": 0.5})
    log.results([LINE, SHAPE])
    log.close()
    log.close()
    results = {"result/D:top1": 0.5, "result/D:RSA:euclidean": 0.9, "result/D:CKA:linear": 0.8}
    assert one.steps == [(10, {"loss": 2.0, "lr": 0.1}), (20, {"val:top1": 0.5}), (20, results)]
    assert one.ended == 1
    Log(tmp_path, resumed_at=20, report_to=(name,), settings={"config.lr": 0.1}).close()
    first, then = one.begun
    key = "id" if name == "wandb" else "name"
    assert first[key] == then[key]
    assert then["resume"] == "allow"
    assert first["project"] == "robustft"
    assert first["config"] == {"config.lr": 0.1, "x": "(1, 2)"}
    assert then["config"] == {"config.lr": 0.1}, "Trackio forgets it otherwise"
    Log(tmp_path, resumed_at=0, report_to=(name,)).close()
    assert one.begun[2][key] != first[key], "another run in its place"


@pytest.mark.parametrize(("name", "told_by"), [("wandb", "step"), ("trackio", "_next_step")])
def test_a_step_that_a_tracker_has_is_not_sent_again(told, tmp_path, name, told_by):
    if name not in trackers._kinds():
        pytest.skip(f"this accelerate has no {name}")
    one = told[name]
    killed = Log(tmp_path, resumed_at=0, report_to=(name,))
    for step in (1, 2, 3, 4):
        killed.write(step, {"loss": 1.0})
    killed.write(2, {"val:top1": 0.5})
    one.steps.remove((4, {"loss": 1.0}))  # lost on its way
    setattr(one, told_by, 4)
    again = Log(tmp_path, resumed_at=1, report_to=(name,))
    for step in (2, 3, 4, 5):
        again.write(step, {"loss": 1.0})
        if step > 3:
            again.write(step, {"val:top1": 0.5})
    again.results([LINE])
    assert sorted(step for step, values in one.steps if "loss" in values) == [1, 2, 3, 4, 5]
    assert sorted(step for step, values in one.steps if "val:top1" in values) == [2, 4, 5]
    assert one.steps[-1] == (5, {"result/D:top1": 0.5})
    delattr(one, told_by)  # a version that does not tell keeps both
    Log(tmp_path, resumed_at=4, report_to=(name,)).write(5, {"loss": 1.0})
    assert one.steps[-1] == (5, {"loss": 1.0})


def test_several_at_once_and_none_on_other_processes(told, tmp_path):
    log = Log(tmp_path, resumed_at=0, report_to=("tensorboard", "wandb"))
    log.write(1, {"loss": 1.0})
    log.close()
    assert told["wandb"].steps == [(1, {"loss": 1.0})]
    assert list((tmp_path / "tensorboard").glob("events.*"))
    other = Log(None, resumed_at=0, report_to=("wandb",))  # no folder, as where it is not main
    other.write(1, {"loss": 1.0})
    other.results([LINE])
    other.close()
    assert len(told["wandb"].begun) == 1


def test_a_tracker_that_does_not_begin_is_named_in_a_line(told, tmp_path):
    def refuse(**_):
        raise RuntimeError("No API key.\nLog in.")

    sys.modules["wandb"].init = refuse
    with pytest.raises(InputError, match=r"^report_to: wandb does not begin: No API key. Log in.$"):
        Log(tmp_path, resumed_at=0, report_to=("wandb",))


def test_tensorboard_has_every_step_once_after_a_killed_run_goes_on(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    killed = Log(tmp_path, resumed_at=0, report_to=("tensorboard",), settings={"lr": 0.5})
    for step in (1, 2, 3):
        killed.write(step, {"loss": float(step)})
    killed.close()
    again = Log(tmp_path, resumed_at=2, report_to=("tensorboard",))
    for step in (3, 4):
        again.write(step, {"loss": 10.0 * step})
    again.results([LINE])
    again.close()
    found = events.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [(1, 1), (2, 2), (3, 30), (4, 40)]
    (result,) = found.Scalars("result/D:top1")
    assert (result.step, result.value) == (4, 0.5)
    assert list((tmp_path / "tensorboard").glob("*/hparams.yml"))


def test_a_missing_tracker_is_named_with_its_extra_before_anything_is_read(
    tmp_path, monkeypatch, capsys
):
    from robustft.cli.app import run

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"wandb is not installed .*\[wandb\]"):
        trackers.check(("tensorboard", "wandb"))
    command = ["train", "--model", "robustft-tiny", "--pretrained", str(tmp_path / "none")]
    assert run([*command, "--logs", str(tmp_path), "--report-to", "wandb"]) != 0
    said = capsys.readouterr().err
    assert "[wandb]" in said
    assert len(said.strip().splitlines()) == 1
    assert run([*command, "--logs", str(tmp_path), "--report-to", "tensorboard,comet"]) == 2
    assert "report_to: got 'comet', expected one of" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
