"""Hyper-parameters: known names, sensible values, the defaults that the papers give."""

import re

import pytest
import torch

from robustft.errors import InputError, InputTypeError
from robustft.methods import METHODS, make_method
from robustft.methods.towers import TwoTowers
from robustft.models import load_clip
from robustft.train.method import GROUPS
from robustft.train.published import PUBLISHED, Published


def test_names():
    assert all(name == method.name for name, method in METHODS.items())
    own = {n: m.published for n, m in METHODS.items() if m.__module__.startswith("robustft.")}
    assert list(own.items()) == list(PUBLISHED.items()), "which --help lists"
    with pytest.raises(InputError, match=r"method: got 'fine', expected one of zero-shot, "):
        make_method("fine")


@pytest.mark.parametrize("name", METHODS)
def test_unknown_hyper_parameter(name):
    with pytest.raises(InputError, match=f"method {name} has no setting 'theta'"):
        make_method(name, theta=1)


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("linear-probe", {"init": "random"}, InputError),
        ("ft", {"label_smoothing": 1.0}, InputError),
        ("l2-sp", {"alpha": -0.1}, InputError),
        ("l2-sp", {"head": "mean"}, InputError),
        ("car-ft", {"alpha": -1}, InputError),
        ("flyp-replay", {"reference_batch_size": 1}, InputError),
        ("snd", {"lambda_": -1}, InputError),
        ("flyp-snd", {"reference_batch_size": 0}, InputError),
        ("tpgm", {"norm": "l1"}, InputError),
        ("tpgm", {"proj_lr": 0}, InputError),
        ("starft", {"rho": -1}, InputError),
        ("starft", {"spurious": "colour"}, InputError),
        ("starft", {"mask": 1}, InputTypeError),
        ("lipsum-ft", {"texts": 0}, InputError),
        ("lipsum-ft", {"length": 1.5}, InputTypeError),
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


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_every_method_states_its_facts(method):
    assert method.display
    assert re.fullmatch("#[0-9a-f]{6}", method.colour)
    assert isinstance(method.head_from_text, bool)
    assert set(method.ensembles) <= {"wise-ft", "ose", "vrf"}
    assert isinstance(method.published, Published)
    assert method.group in GROUPS


def test_names_and_colours_tell_methods_apart():
    for fact in ("display", "colour"):
        assert len({getattr(method, fact) for method in METHODS.values()}) == len(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_head_from_the_text_tower_is_stated_truly(name):
    method = make_method(name)
    module = method.setup(load_clip("robustft-tiny"), ["a", "b"], ["{}", "the {}"])
    before = method.classifier(module).head.weight.detach().clone()
    encoder = module.model if isinstance(module, TwoTowers) else module.classifier.clip
    with torch.no_grad():
        for part, parameter in encoder.named_parameters():
            if not part.startswith("visual."):
                parameter.add_(0.1 * torch.randn_like(parameter))
    moved = not torch.equal(method.classifier(module).head.weight, before)
    assert moved == method.head_from_text
