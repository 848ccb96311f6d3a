"""Streams, CUDA graphs, torch.compile, and the same bits each time."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.gpu

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def _equal(found, wanted):
    for x, y in zip(found, wanted, strict=True):
        assert torch.equal(x, y)


def _same(case, found, wanted):
    """Equal bits; the library that multiplies for mpm_nce's gradients may choose by stream."""
    if case.op == "mpm_nce":
        _equal(found[:1], wanted[:1])
        for x, y in zip(found[1:], wanted[1:], strict=True):
            torch.testing.assert_close(x, y)
    else:
        _equal(found, wanted)


def _soil(card):
    """Free memory holds NaN: what a kernel takes for zero, or reads before it writes, shows."""
    for size in (1 << 8, 1 << 14, 1 << 20, 1 << 24):
        blocks = [torch.full((size,), torch.nan, device=card) for _ in range(3)]
        del blocks


@DTYPES
def test_the_same_bits_each_time(make_case, backend, card, dtype):
    case = make_case(dtype)
    first = case.run(backend)
    for _ in range(5):
        _soil(card)
        _equal(case.run(backend), first)


def test_another_stream(make_case, backend, real_card):
    case = make_case()
    first = case.run(backend)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # Long enough that a launch on the wrong stream would overtake it.
        busy = torch.randn(4096, 4096, device=real_card)
        for _ in range(20):
            busy = (busy @ busy).clamp_(-1, 1)
        delayed = [x + busy[0, 0].to(x.dtype) * 0 if x.is_floating_point() else x.clone()
                   for x in case.inputs]  # fmt: skip
        found = case.run(backend, delayed)
    stream.synchronize()
    _same(case, found, first)


@DTYPES
def test_graph_capture_and_replay(make_case, backend, real_card, dtype):
    case, other = make_case(dtype), make_case(dtype).fresh()
    wanted = other.run(backend)
    inputs = [x.clone() for x in case.inputs]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            case.run(backend, inputs)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = case.run(backend, inputs)
    for _ in range(2):
        for x, new in zip(inputs, other.inputs, strict=True):
            x.copy_(new)
        graph.replay()
        torch.cuda.synchronize()
        _same(case, found, wanted)
        for x in found:
            x.fill_(0)


def test_nothing_waits_for_the_device(make_case, backend, real_card):
    case = make_case()
    case.run(backend)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        case.run(backend)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiles_in_one_graph(make_case, backend, card, compiler):
    if compiler == "inductor" and card == "cpu":
        pytest.skip("the rehearsal compiles with aot_eager alone")
    if compiler == "inductor" and make_case.name not in ("dive", "mpm_nce labels", "vrf log"):
        pytest.skip("inductor sees one case of each op: it takes its time")
    case = make_case()

    def step(*inputs):
        leaves = [2 * x for x in inputs[: case.leaves]]
        inputs = [*leaves, *inputs[case.leaves :]]
        return case.loss(case.call(inputs, backend), inputs) * 3

    torch._dynamo.reset()
    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend=compiler)):
        inputs = [x.clone() for x in case.inputs]
        leaves = [x.requires_grad_() for x in inputs[: case.leaves]]
        loss = function(*inputs)
        results.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)
