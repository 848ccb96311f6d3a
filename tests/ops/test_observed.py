"""Whoever watches calls (modes, tracers, transforms, profilers) sees the registered ops, although
plain calls pass the dispatcher by."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from robustft.ops import mpm_nce, rsa, vrf_mix

CALLS = {
    "mpm_nce_forward": lambda x: mpm_nce(x, x.flip(0)),
    "vrf_forward": lambda x: vrf_mix(x, x.flip(0), x[:, 0], 1.0, 0.5),
    "rsa_correlation": lambda x: rsa(x, x.flip(1)),
}
each_call = pytest.mark.parametrize("name", CALLS)


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@each_call
def test_modes_see_the_op(name):
    with Names() as seen:
        CALLS[name](normal(5, 4))
    assert f"robustft::{name}" in seen.names


@each_call
def test_a_trace_has_the_op(name):
    graph = make_fx(CALLS[name])(normal(5, 4)).graph
    assert any(name in str(node.target) for node in graph.nodes)


@each_call
def test_a_profile_has_the_op(name):
    with torch.profiler.profile() as profile:
        CALLS[name](normal(5, 4))
    assert f"robustft::{name}" in {event.name for event in profile.events()}


@each_call
def test_a_transform_is_right_or_says_that_it_has_no_rule(name):
    batch = normal(3, 5, 4)
    if name == "vrf_forward":  # within an autograd.Function
        with pytest.raises(RuntimeError, match="vmap"):
            torch.func.vmap(CALLS[name])(batch)
        return
    expected = torch.stack([CALLS[name](x) for x in batch])
    torch.testing.assert_close(torch.func.vmap(CALLS[name])(batch), expected)


def test_a_tangent_is_not_dropped():
    x = normal(5, 4)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises((RuntimeError, NotImplementedError)):
            mpm_nce(dual, x)


def test_a_plain_call_is_the_body_s(monkeypatch):
    x = normal(5, 4)
    expected = [call(x) for call in CALLS.values()]
    monkeypatch.setattr("robustft.ops._register.observed", lambda: True)
    for call, result in zip(CALLS.values(), expected, strict=True):
        assert torch.equal(call(x), result)
