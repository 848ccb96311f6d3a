"""Weight-space interpolation of whole classifiers."""

import copy

import pytest
import torch

from robustft.ensemble.wise_ft import wise_ft
from robustft.errors import InputError

open_clip = pytest.importorskip("open_clip")

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}
NAMES = ["cat", "dog", "axolotl"]


@pytest.fixture(scope="module")
def pair():
    from robustft.models.heads import Classifier

    def one(seed):
        torch.manual_seed(seed)
        model = open_clip.model.CLIP(**copy.deepcopy(CONFIG))
        return Classifier(model, torch.randn(3, 16), torch.randn(3), NAMES).eval()

    return one(0), one(1)


def images():
    return torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(7))


def test_the_end_points_are_the_models(pair):
    zero_shot, fine_tuned = pair
    x = images()
    for alpha, end in ((0.0, zero_shot), (1.0, fine_tuned)):
        got = wise_ft(zero_shot, fine_tuned, alpha)
        for name, tensor in end.state_dict().items():
            assert torch.equal(got.state_dict()[name], tensor), name
        assert torch.equal(got(x), end(x))


def test_every_weight_is_interpolated_and_the_ends_stay(pair):
    zero_shot, fine_tuned = pair
    before = [copy.deepcopy(m.state_dict()) for m in pair]
    got = wise_ft(zero_shot, fine_tuned, 0.3).state_dict()
    for name, a in before[0].items():
        b = before[1][name]
        if a.is_floating_point():
            want = 0.7 * a.double() + 0.3 * b.double()
            torch.testing.assert_close(got[name].double(), want, rtol=1e-5, atol=1e-6)
    for model, state in zip(pair, before, strict=True):
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, state[name])
            assert tensor.data_ptr() != got[name].data_ptr()


def test_the_head_can_be_made_from_the_interpolated_text_tower(pair):
    from robustft.models.heads import zero_shot_weights

    tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=16)
    templates = ["a photo of a {}.", "a {}."]
    got = wise_ft(*pair, 0.5, rebuild=(tokenizer, templates))
    weight = zero_shot_weights(got.clip, tokenizer, NAMES, templates)
    torch.testing.assert_close(got.head.weight, weight * got.clip.logit_scale.exp())
    assert not torch.equal(got.head.weight, wise_ft(*pair, 0.5).head.weight)


def test_other_classes_and_bad_alphas_are_refused(pair):
    zero_shot, fine_tuned = pair
    other = copy.deepcopy(fine_tuned)
    other.classnames = ["cat", "dog", "newt"]
    with pytest.raises(InputError, match="newt"):
        wise_ft(zero_shot, other, 0.5)
    for alpha in (-0.5, 1.5):
        with pytest.raises(InputError, match="alpha"):
            wise_ft(zero_shot, fine_tuned, alpha)
