import math

import pytest
import torch

from robustft.errors import InputError, InputTypeError
from robustft.train.config import Stage, TrainConfig
from robustft.train.schedule import cosine, fit_warmup, set_rate


def test_values_at_the_corners():
    def rate(step):
        return cosine(step, lr=2.0, warmup=10, steps=110, min_lr=0.5)

    assert rate(0) == pytest.approx(0.2)
    assert rate(4) == pytest.approx(1.0)
    assert rate(9) == pytest.approx(2.0)
    assert rate(10) == pytest.approx(2.0)
    assert rate(60) == pytest.approx(1.25)  # half-way: the mean of lr and min_lr
    assert rate(35) == pytest.approx(0.5 + 1.5 * 0.5 * (1 + math.sqrt(0.5)))
    assert rate(110) == pytest.approx(0.5)


def test_rates_are_those_of_torchs_own_schedules():
    """Linear warm-up, then cosine annealing, by SequentialLR; every group gets the rate."""

    def adam():
        groups = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(2)]
        return torch.optim.AdamW(groups, lr=0.3)

    theirs, ours = adam(), adam()
    schedule = torch.optim.lr_scheduler.SequentialLR(
        theirs,
        [
            torch.optim.lr_scheduler.LinearLR(theirs, start_factor=1 / 3, total_iters=2),
            torch.optim.lr_scheduler.CosineAnnealingLR(theirs, T_max=8, eta_min=0.1),
        ],
        milestones=[3],
    )
    for step in range(11):
        set_rate(ours, cosine(step, lr=0.3, warmup=3, steps=11, min_lr=0.1))
        for one, other in zip(ours.param_groups, theirs.param_groups, strict=True):
            assert one["lr"] == pytest.approx(other["lr"], rel=1e-12)
        theirs.step()
        schedule.step()


@pytest.mark.parametrize(
    ("warmup", "steps", "used"), [(500, 501, 500), (500, 500, 50), (500, 34, 3), (0, 5, 0)]
)
def test_warmup_that_does_not_fit_is_cut_to_a_tenth(warmup, steps, used, recwarn):
    assert fit_warmup(warmup, steps) == used
    assert bool(len(recwarn)) == (used != warmup)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"epochs": 0}, InputError),
        ({"epochs": 1.5}, InputTypeError),
        ({"batch_size": True}, InputTypeError),
        ({"lr": 0.0}, InputError),
        ({"lr": float("nan")}, InputError),
        ({"wd": -0.1}, InputError),
        ({"min_lr": 1.0}, InputError),
        ({"beta2": 1.0}, InputError),
        ({"grad_clip_norm": 0.0}, InputError),
        ({"precision": "fp8"}, InputError),
        ({"select": "worst"}, InputError),
    ],
)
def test_configuration_out_of_range(values, error):
    with pytest.raises(error, match=next(iter(values))):
        TrainConfig(**values)


def test_unknown_setting_names_the_nearest():
    with pytest.raises(InputError, match=r"'batchsize'.*did you mean 'batch_size'"):
        TrainConfig.of({"batchsize": 8})
    assert TrainConfig.of({"batch_size": 8}).batch_size == 8


def test_stage_takes_the_settings_it_is_not_given():
    stage = Stage.of("lp", TrainConfig(lr=1e-4, epochs=7), lr=0.5)
    assert (stage.lr, stage.epochs, stage.wd) == (0.5, 7, 0.1)
