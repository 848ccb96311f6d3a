"""Hyper-parameters: known names, sensible values, the defaults that the papers give."""

import pytest

from robustft.errors import InputError, InputTypeError
from robustft.methods import METHODS, make_method


def test_names():
    assert list(METHODS) == [
        "zero-shot",
        "linear-probe",
        "ft",
        "lp-ft",
        "flyp",
        "r-adapter",
        "dive",
    ]
    with pytest.raises(InputError, match=r"method must be one of .*'fine'"):
        make_method("fine")


@pytest.mark.parametrize("name", METHODS)
def test_unknown_hyper_parameter(name):
    with pytest.raises(InputError, match=f"method {name} has no setting 'beta'"):
        make_method(name, beta=1)


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("linear-probe", {"init": "random"}, InputError),
        ("ft", {"label_smoothing": 1.0}, InputError),
        ("lp-ft", {"lp_epochs": 0}, InputError),
        ("lp-ft", {"cache": "yes"}, InputTypeError),
        ("flyp", {"positives": "all"}, InputError),
        ("r-adapter", {"rank": 0}, InputError),
        ("r-adapter", {"drop": 1.0}, InputError),
        ("r-adapter", {"drop_mode": "layer"}, InputError),
        ("r-adapter", {"loss": "ce"}, InputError),
        ("r-adapter", {"scale": 0}, InputError),
        ("r-adapter", {"alpha": 1.5}, InputError),
        ("dive", {"lambda_": -1}, InputError),
        ("dive", {"momentum": 1.0}, InputError),
        ("dive", {"lambda_": "1000"}, InputTypeError),
    ],
)
def test_value_out_of_range(name, options, error):
    with pytest.raises(error, match=next(iter(options))):
        make_method(name, **options)


def test_defaults_of_the_papers():
    dive, adapter = make_method("dive").config, make_method("r-adapter").config
    assert (dive.lambda_, dive.momentum, dive.normalize) == (1000, 0.99, True)
    assert (adapter.drop, adapter.ema, adapter.alpha) == (0.2, 0.999, 0.5)
    assert (adapter.margin, adapter.label_smoothing, adapter.loss) == (0.05, 0.02, "mpm-nce")
    assert make_method("flyp").config.positives == "diagonal"


def test_identity_tells_runs_apart():
    assert make_method("dive").identity() != make_method("dive", lambda_=10).identity()
    assert make_method("ft").identity() == {"name": "ft", "label_smoothing": 0.0}
