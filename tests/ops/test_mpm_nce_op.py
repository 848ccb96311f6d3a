"""mpm_nce as an op: its memory, tracing and compiling, and what its arguments may be."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from robustft.backends.reference import mpm_nce as reference
from robustft.errors import InputError, InputTypeError
from robustft.ops import mpm_nce

from .test_mpm_nce import by_label, classes, gradients, leaf, unit


class Largest(TorchDispatchMode):
    """Records the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for part in out if isinstance(out, list | tuple) else [out]:
            if isinstance(part, torch.Tensor):
                self.elements = max(self.elements, part.numel())
        return out


def test_memory_is_never_b_times_c(cpu_backend, monkeypatch):
    b, c, d = 507, 1009, 8
    monkeypatch.setattr(reference, "BLOCK", 4 * c)
    x, y = leaf(unit(b, d, 0), torch.float32), leaf(unit(c, d, 1), torch.float32)
    a, t = classes(b, 2), classes(c, 3)
    with Largest() as largest:
        mpm_nce(
            x, y, a, t, margin=0.05, label_smoothing=0.02, keep_logits=0, backend=cpu_backend
        ).backward()
    assert largest.elements == c * d


def test_only_the_gradients_asked_for():
    x, y = unit(7, 4, 0), unit(7, 4, 1)
    a, b = leaf(x), leaf(y)
    both = gradients(mpm_nce(a, b), a, b)
    assert torch.equal(gradients(mpm_nce(a, y), a)[0], both[0])
    assert torch.equal(gradients(mpm_nce(x, b), b)[0], both[1])
    s = leaf(torch.tensor(100.0).double())
    assert gradients(mpm_nce(x, y, logit_scale=s), s)[0].isfinite()


@pytest.mark.parametrize("keep_logits", [0, 1 << 20])
def test_opcheck(cpu_backend, keep_logits):
    x, y = unit(7, 4, 0).float(), unit(5, 4, 1).float()
    a, t = classes(7, 2), classes(5, 3)
    scale, grad = torch.tensor(10.0), torch.tensor(1.0)
    op = torch.ops.robustft
    for symmetric in (True, False):
        for labels in ((a, t, None), (None, None, by_label(a, t))):
            head = (x, y, *labels, -100, scale)
            options = (0.1, 0.1, symmetric, False)
            forward = (*head, *options, keep_logits, cpu_backend)
            torch.library.opcheck(op.mpm_nce_forward.default, forward)
            _, *saved = op.mpm_nce_forward(*forward)
            for need in ((True, True), (True, False), (False, True)):
                args = (*head, *saved, grad, *options, *need, cpu_backend)
                torch.library.opcheck(op.mpm_nce_backward.default, args)


def test_opcheck_of_transposed_features(cpu_backend):
    x, y, scale = unit(4, 7, 0).float().T, unit(4, 7, 1).float().T, torch.tensor(10.0)
    op, options = torch.ops.robustft, (0.1, 0.1, True, False)
    head = (x, y, None, None, None, -100, scale)
    torch.library.opcheck(op.mpm_nce_forward.default, (*head, *options, 0, cpu_backend))
    _, *saved = op.mpm_nce_forward(*head, *options, 0, cpu_backend)
    args = (*head, *saved, torch.tensor(1.0), *options, True, True, cpu_backend)
    torch.library.opcheck(op.mpm_nce_backward.default, args)
    assert all(part.is_contiguous() for part in op.mpm_nce_backward(*args))


def test_compiles_with_shapes_and_numbers_that_change():
    compiled = torch.compile(mpm_nce, fullgraph=True, backend="aot_eager", dynamic=True)
    for n, scale in ((7, 3.0), (13, 4.5)):
        x, y = leaf(unit(n, 8, 0)), leaf(unit(n, 8, 1))
        got, want = compiled(x, y, logit_scale=scale), mpm_nce(x, y, logit_scale=scale)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(gradients(got, x, y), gradients(want, x, y))


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiles_to_one_graph(compiler):
    x, y = leaf(unit(17, 8, 0), torch.float32), leaf(unit(17, 8, 1), torch.float32)
    s, labels = leaf(torch.tensor(3.0)), classes(17, 2)

    def step(x, y, s):
        x, y = F.normalize(x), F.normalize(y)
        return mpm_nce(x, y, labels, labels, logit_scale=s.exp(), margin=0.05) * 2

    torch.compiler.reset()
    got = torch.compile(step, fullgraph=True, backend=compiler)(x, y, s)
    want = step(x, y, s)
    torch.testing.assert_close(got, want)
    for a, b in zip(gradients(got, x, y, s), gradients(want, x, y, s), strict=True):
        torch.testing.assert_close(a, b)


def test_compiles_with_one_tensor_on_both_sides():
    x = leaf(unit(17, 8, 0), torch.float32)
    compiled = torch.compile(mpm_nce, fullgraph=True, backend="aot_eager")
    got, want = compiled(x, x, logit_scale=5.0), mpm_nce(x, x, logit_scale=5.0)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(gradients(got, x), gradients(want, x))


X, Y = torch.ones(3, 2), torch.ones(4, 2)
L3, L4 = torch.arange(3), torch.arange(4)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        (([1.0], Y), {}, "image_features: got list, expected a torch.Tensor"),
        ((X.int(), Y), {}, "image_features: got dtype torch.int32"),
        ((X[0], Y), {}, r"image_features: got shape \(2,\), expected \[B, D\]"),
        ((X[:0], Y), {}, "image_features: got an empty tensor"),
        ((X, Y[:, :1]), {}, r"text_features: got shape \(4, 1\), expected \[C, 2\]"),
        ((X, Y), {}, "text_features: got 4 rows, expected 3"),
        ((X, Y, L3), {}, "text_labels: got None"),
        ((X, Y, None, L4), {}, "image_labels: got None"),
        ((X, Y, L4, L4), {}, r"image_labels: got shape \(4,\), expected \[3\]"),
        ((X, Y, L3, L3), {}, r"text_labels: got shape \(3,\), expected \[4\]"),
        ((X, Y, L3.float(), L4), {}, "image_labels: got dtype torch.float32"),
        ((X, Y, [0, 1, 2], L4), {}, "image_labels: got list, expected a tensor of integers"),
        ((X, Y, L3, L4 > 1), {}, "text_labels: got dtype torch.bool"),
        ((X, Y, L3 + 9, L4), {}, "image_labels: got no label that is also in text_labels"),
        ((X, Y, L3 * 0, L4), {"ignore_index": 0}, "image_labels: got no label"),
        ((X, Y, L3, L4), {"ignore_index": 0.5}, "ignore_index: got float"),
        ((X, Y, L3, L4), {"mask": torch.ones(3, 4) > 0}, "mask: got labels too"),
        ((X, Y), {"mask": torch.ones(3, 4)}, "mask: got dtype torch.float32"),
        ((X, Y), {"mask": torch.ones(4, 3) > 0}, r"mask: got shape \(4, 3\), expected \[3, 4\]"),
        ((X, Y), {"mask": torch.ones(3, 4) < 0}, "mask: got no positive pair"),
        ((X, X), {"margin": math.inf}, "margin: got inf"),
        ((X, X), {"label_smoothing": 1.5}, "label_smoothing: got 1.5"),
        ((X, X), {"logit_scale": math.nan}, "logit_scale: got nan, expected a finite number"),
        ((X, X), {"logit_scale": "100"}, "logit_scale: got str"),
        ((X, X), {"logit_scale": torch.tensor(math.inf)}, "logit_scale: got inf"),
        ((X, X), {"logit_scale": torch.ones(2)}, r"logit_scale: got shape \(2,\)"),
        ((X, X), {"group": 1}, "group: got int"),
        ((X, X), {"keep_logits": -1}, "keep_logits: got -1"),
        ((X, X), {"keep_logits": 1.5}, "keep_logits: got float, expected an int"),
        ((X, X), {"backend": "gpu"}, "backend: got 'gpu'"),
        ((X, X.to("meta")), {}, "text_features: got device meta, expected cpu"),
        ((X, X, L3.to("meta"), L3), {}, "image_labels: got device meta"),
        ((X, X), {"logit_scale": torch.ones((), device="meta")}, "logit_scale: got device meta"),
    ],
)
def test_errors_name_the_argument(args, kwargs, message):
    with pytest.raises(InputError, match=message):
        mpm_nce(*args, **kwargs)


def test_type_errors_are_type_errors():
    with pytest.raises(InputTypeError):
        mpm_nce(X, Y, L3.float(), L4)
    with pytest.raises(TypeError):
        mpm_nce(X, X, logit_scale=None)
