"""The ops have first derivatives; who asks for second ones is told, and never served without."""

import pytest
import torch

from robustft.backends.reference import mpm_nce as reference
from robustft.errors import InputError
from robustft.losses import CLIPLoss, DiVELoss, MPMNCELoss
from robustft.ops import dive_loss, mpm_nce, vrf_mix


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dive(x, y, backend="auto"):
    return dive_loss(x, y.detach(), y, x.detach(), torch.zeros(5), backend=backend)


LOSSES = {
    "mpm_nce": lambda x, y, **kw: mpm_nce(x, y, logit_scale=3.0, **kw),
    "mpm_nce of its scale": lambda x, y, **kw: mpm_nce(x.detach(), y, logit_scale=x[0, 0], **kw),
    "dive_loss, average": lambda x, y, **kw: dive(x, y, **kw)[0],
    "dive_loss, pairwise": lambda x, y, **kw: dive(x, y, **kw)[1],
    "vrf_mix": lambda x, y, **kw: vrf_mix(x, y, y[:, 0], 0.1, 1.0, **kw).square().sum(),
    "vrf_mix, log": lambda x, y, **kw: vrf_mix(x, y, y[:, 0], 0.1, 1.0, log=True, **kw)[:, 0].sum(),
    "vrf_mix of the distance": lambda x, y, **kw: vrf_mix(y, y, x[:, 0], 0.1, 1.0, **kw)[0, 0],
}
MODULES = {
    "CLIPLoss": lambda x, y: CLIPLoss()(x, y, 3.0),
    "MPMNCELoss": lambda x, y: MPMNCELoss()(x, y, 3.0),
    "DiVELoss": lambda x, y: DiVELoss(5)(x, y.detach(), y, x.detach())[0],
}


def penalize(loss, **kwargs):
    x, y = normal(7, 5).requires_grad_(), normal(7, 5, seed=1).requires_grad_()
    value = loss(x, y, **kwargs)
    (grad,) = torch.autograd.grad(value, x, create_graph=True)
    (value + grad.square().sum()).backward()
    return x.grad


@pytest.mark.parametrize("name", LOSSES)
def test_a_gradient_penalty_is_an_error(name, cpu_backend):
    with pytest.raises(InputError, match=rf"^{name.split(',')[0].split()[0]}: got a second"):
        penalize(LOSSES[name], backend=cpu_backend)


@pytest.mark.parametrize("name", MODULES)
def test_a_gradient_penalty_on_a_module_is_an_error(name):
    with pytest.raises(InputError, match="second derivative"):
        penalize(MODULES[name])


@pytest.mark.parametrize("name", ["mpm_nce", "dive_loss, pairwise", "vrf_mix"])
def test_a_gradient_penalty_on_a_compiled_loss_is_an_error(name):
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        penalize(torch.compile(LOSSES[name], fullgraph=True, backend="aot_eager"))


@pytest.mark.parametrize("name", LOSSES)
def test_a_graph_of_the_gradient_changes_nothing_else(name, cpu_backend):
    grads = []
    for create_graph in (False, True):
        x, y = normal(7, 5).requires_grad_(), normal(7, 5, seed=1)
        value = LOSSES[name](x, y, backend=cpu_backend)
        grads += torch.autograd.grad(value, x, create_graph=create_graph)
    assert torch.equal(*grads)


def test_the_definition_has_second_derivatives():
    assert penalize(lambda x, y: reference.mpm_nce(x, y, logit_scale=3.0)).isfinite().all()
