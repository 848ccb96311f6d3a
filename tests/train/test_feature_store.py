"""Runs with a feature store: the same bits, and no pass of the frozen model in a step."""

import pytest

from robustft.features import FeatureStore
from robustft.methods import frozen

METHODS = ["dive", "flyp-snd", "flyp-replay", "linear-probe", "lp-ft"]


@pytest.fixture
def teacher(monkeypatch):
    """How many images the frozen model sees in the steps."""
    from robustft.methods import dive, snd

    seen, real = [], frozen.frozen_images

    def counted(clip, image):
        seen.append(len(image))
        return real(clip, image)

    for module in (dive, snd):
        monkeypatch.setattr(module, "frozen_images", counted)
    return seen


@pytest.mark.parametrize("name", METHODS)
def test_a_run_from_a_store_has_the_bits_of_one_without(run, same, world, tmp_path, name, teacher):
    lazy = world.raw.with_transform(world.clip.preprocess_val)
    plain = run(name, train=lazy, epochs=1)
    stores = [FeatureStore(tmp_path) for _ in range(2)]
    filled, read = (run(name, train=lazy, epochs=1, store=store) for store in stores)
    assert same(plain.classifier, filled.classifier)
    assert same(plain.classifier, read.classifier)
    assert teacher == []
    kinds = {entry.kind for entry in stores[0].entries()}
    assert kinds == {
        "dive": {"image", "text", "token"},
        "flyp-snd": {"image", "token"},
        "flyp-replay": {"token"},
    }.get(name, {"image"})


def test_augmented_references_cost_a_pass_of_the_frozen_model(run, tmp_path, world, teacher):
    from torchvision import transforms

    from robustft.data import load_reference

    augment = transforms.Compose([transforms.RandomCrop(24, padding=3), transforms.ToTensor()])
    store, data = FeatureStore(tmp_path), load_reference("glyphs", n=40).with_transform(augment)
    run("dive", epochs=1, store=store, reference=data)
    assert teacher == [16, 16]
    assert {entry.kind for entry in store.entries()} == {"text", "token"}


def test_a_resumed_run_may_have_another_store(run, same, tmp_path):
    class Stopped(Exception):
        pass

    def stop(done):
        if done == 3:
            raise Stopped

    whole = run("dive", store=FeatureStore(tmp_path / "a"))
    with pytest.raises(Stopped):
        run(
            "dive", tmp_path / "run", save_steps=2, on_step=stop, store=FeatureStore(tmp_path / "b")
        )
    resumed = run("dive", tmp_path / "run", resume="latest")
    assert same(whole.classifier, resumed.classifier)
