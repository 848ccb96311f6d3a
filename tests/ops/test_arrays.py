"""Arrays of other libraries: in through DLPack, answered in kind."""

import numpy as np
import pytest
import torch

from robustft.errors import InputError, InputTypeError
from robustft.ops import FeatureBank, dive_loss, knn, kth_distance, mpm_nce, rsa, vrf_mix

pytestmark = pytest.mark.skipif(
    not hasattr(np.ndarray, "__array_namespace__"), reason="the array API came with NumPy 2"
)


def arrays(*shapes):
    generator = np.random.default_rng(0)
    return [generator.standard_normal(shape, dtype=np.float32) for shape in shapes]


def check(op, *args, **kwargs):
    def torched(x):
        return torch.from_numpy(x.copy()) if isinstance(x, np.ndarray) else x

    found = op(*args, **kwargs)
    wanted = op(*map(torched, args), **{k: torched(v) for k, v in kwargs.items()})
    if not isinstance(wanted, tuple):
        found, wanted = (found,), (wanted,)
    assert len(found) == len(wanted)
    for f, w in zip(found, wanted, strict=True):
        assert isinstance(f, np.ndarray)
        assert np.array_equal(f, w.detach().numpy())
        assert f.dtype == w.numpy().dtype


def test_every_op_answers_in_kind():
    f, f0, g, g0, mean = arrays((7, 5), (7, 5), (7, 5), (7, 5), (5,))
    check(dive_loss, f, f0, g, g0, mean, momentum=0.5)
    labels = np.array([0, 1, 2, 0, 1, 2, 0])
    check(mpm_nce, f, g, labels, labels, margin=0.1)
    check(mpm_nce, f, g, mask=np.equal.outer(labels, labels))
    check(mpm_nce, image_features=f, text_features=g)
    check(kth_distance, f, g, 3)
    check(knn, f, g, 3)
    check(vrf_mix, f, g, np.abs(mean[[0, 1, 2, 3, 4, 0, 1]]), 0.3, 0.1)
    check(rsa, f, g)


def test_a_bank_of_an_array():
    q, rows = arrays((7, 5), (31, 5))
    bank = FeatureBank(rows)
    rows[:] = 0  # the bank has its own
    wanted = kth_distance(torch.from_numpy(q), FeatureBank(arrays((7, 5), (31, 5))[1]), 3)
    assert np.array_equal(kth_distance(q, bank, 3), wanted.numpy())


def test_layouts():
    f, g = arrays((14, 10), (14, 10))
    check(kth_distance, f[::2, ::2], g[::2, ::2], 3)
    check(kth_distance, f[::-1], g.T[:10].T, 3)
    f.flags.writeable = False
    before = f.copy()
    check(rsa, f, g)
    assert np.array_equal(f, before)


def test_no_copy_is_made():
    class Rows(np.ndarray):
        def __dlpack__(self, **options):
            Rows.taken += 1
            return super().__dlpack__(**options)

    Rows.taken = 0
    f, g = (x.view(Rows) for x in arrays((7, 5), (7, 5)))
    rsa(f, g)
    assert Rows.taken == 2


def test_a_tensor_that_requires_grad_among_arrays():
    f, g = arrays((7, 5), (7, 5))
    scale = torch.tensor(10.0, requires_grad=True)
    loss = mpm_nce(f, g, logit_scale=scale)
    assert loss == mpm_nce(f, g, logit_scale=10.0)


def test_what_cannot_be_taken():
    f, g = arrays((7, 5), (7, 5))
    with pytest.raises(InputTypeError, match=r"text_features.*dtype >f4"):
        mpm_nce(f, text_features=g.astype(">f4"))
    with pytest.raises(InputTypeError, match="queries"):
        kth_distance([[1.0]], g, 1)
    with pytest.raises(InputError, match="width"):
        kth_distance(f[:, :3], g, 1)
    with pytest.raises(InputTypeError, match="text_features: got ndarray"):
        mpm_nce(torch.from_numpy(f), g)  # a tensor first: nothing is converted
