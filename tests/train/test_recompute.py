"""GradCache, checkpointing and compiled towers: the same gradients, and one line where they do not
fit."""

import pytest
import torch
from torch import nn

from robustft.errors import InputError
from robustft.methods import METHODS, make_method
from robustft.models import copy_clip
from robustft.train import TrainConfig, recompute

CONTRASTIVE = [name for name, method in METHODS.items() if method.contrastive]


def batch_of(world):
    """A batch of 12 with all that a contrastive method asks for."""
    texts = [f"a photo of the digit {world.train.classnames[int(y)]}." for y in world.train.labels]
    tokens = world.clip.tokenizer(texts)
    pairs = world.reference
    images, words = pairs.images.tensors[:10], world.clip.tokenizer(pairs.captions[:10])
    with torch.no_grad():
        before = {
            "ref_image_pretrained": world.clip.model.encode_image(images) + 0.1,
            "ref_text_pretrained": world.clip.model.encode_text(words) - 0.1,
        }
    target = {"image": world.train.images.tensors[:12], "text": tokens[:12]}
    target |= {"label": world.train.labels[:12], "ref_image": images, "ref_text": words}
    return target | before


def gradients(world, name, size, clip=None, **options):
    """Loss and gradients of a batch in chunks of `size`, None for the whole."""
    method = make_method(name, **options)
    torch.manual_seed(1)
    module = method.setup(clip or world.clip, world.train.classnames, world.templates)
    method.begin_stage(module, 0)
    for parameter in module.parameters():  # also those that begin at zero have gradients
        if parameter.requires_grad and parameter.ndim >= 2:
            parameter.data += 1e-2 * torch.randn_like(parameter)
    method.train_mode(module)
    torch.manual_seed(2)
    kept = 0

    def pack(tensor):
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        recompute.chunked(module, size),
    ):
        loss, _ = method.loss(module, batch_of(world))
    modes = [part.training for part in module.modules()]
    loss.backward()
    assert modes == [part.training for part in module.modules()]
    found = {n: p.grad for n, p in module.named_parameters() if p.requires_grad}
    assert all(gradient is not None for gradient in found.values())
    return loss.detach(), found, kept


def close(one, other, tolerance):
    largest = max(float(gradient.abs().max()) for gradient in other.values())
    worst = max(float((one[n] - other[n]).abs().max()) for n in other)
    return worst <= tolerance * largest


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_gradients_in_chunks_are_those_of_the_whole_batch(world, name):
    options = {"drop": 0.0} if name == "r-adapter" else {}
    loss, expected, whole = gradients(world, name, None, **options)
    for size in (5, 1):
        chunked, found, kept = gradients(world, name, size, **options)
        assert float(chunked) == pytest.approx(float(loss), rel=1e-5)
        assert close(found, expected, 1e-4)
        assert kept < 0.2 * whole
    assert "encode_image" not in vars(world.clip.model)


def without_recomputing(function, *rows, **_):
    return function(*rows)


def dropping(clip):
    """A model whose towers draw at random in training mode."""
    clip = copy_clip(clip)
    clip.model.visual.trunk.pos_drop.p = 0.5
    for block in clip.model.transformer.resblocks:
        block.ln_2 = nn.Sequential(block.ln_2, nn.Dropout(0.5))
    return clip


CASES = [("r-adapter", {"drop": 0.5, "drop_mode": mode}) for mode in ("sample", "token", "module")]
CASES += [("flyp", {}), ("dive", {}), ("flyp-snd", {}), ("flyp-replay", {})]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_both_passes_draw_the_same_numbers_in_the_same_mode(world, name, options, monkeypatch):
    """Chunks that keep their activations are the truth: no pass of theirs is repeated."""
    clip = world.clip if name == "r-adapter" else dropping(world.clip)
    found = gradients(world, name, 5, clip, **options)
    monkeypatch.setattr(recompute, "checkpoint", without_recomputing)
    expected = gradients(world, name, 5, clip, **options)
    assert torch.equal(found[0], expected[0])
    assert close(found[1], expected[1], 1e-6)
    other = gradients(world, name, 4, clip, **options)
    assert not close(other[1], expected[1], 1e-3)  # it does draw


class Stopped(Exception):
    pass


@pytest.mark.parametrize("settings", [{"grad_cache": 5}, {"grad_checkpointing": True}])
def test_a_run_resumes_with_the_same_bits(run, same, tmp_path, settings):
    def stop(done):
        if done == 3:
            raise Stopped

    config = {"options": {"drop": 0.4}, "batch_size": 15, **settings}
    whole = run("r-adapter", **config)
    with pytest.raises(Stopped):
        run("r-adapter", tmp_path, save_steps=2, on_step=stop, **config)
    resumed = run("r-adapter", tmp_path, resume="latest", **config)
    assert same(whole.classifier, resumed.classifier)


def test_they_may_change_when_a_run_is_resumed(run, tmp_path):
    def stop(done):
        if done == 3:
            raise Stopped

    with pytest.raises(Stopped):
        run("flyp", tmp_path, save_steps=2, on_step=stop)
    run("flyp", tmp_path, resume="latest", grad_cache=5, grad_checkpointing=True)


@pytest.mark.parametrize("name", ["ft", "flyp", "dive", "r-adapter"])
def test_checkpointing_changes_no_bit(run, same, name):
    plain = run(name, epochs=1)
    again = run(name, epochs=1, grad_checkpointing=True)
    assert same(plain.classifier, again.classifier)
    transformer = again.classifier.clip.transformer
    assert not transformer.grad_checkpointing
    assert not again.classifier.clip.visual.trunk.grad_checkpointing


def test_checkpointing_keeps_less(world):
    method = make_method("flyp")
    module = method.setup(world.clip, world.train.classnames, world.templates).train()
    kept = []
    for config in (TrainConfig(), TrainConfig(grad_checkpointing=True)):
        recompute.begin(module, config)
        size = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, s=size: (s.append(x.nbytes), x)[1], lambda x: x
        ):
            method.loss(module, batch_of(world))
        kept.append(sum(size))
        recompute.end(module, config)
    assert kept[1] < 0.7 * kept[0]


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("dive", "ft", "tpgm")]


@pytest.mark.parametrize("name", ["flyp", "r-adapter", *SLOW])
def test_compiled_towers_have_the_gradients_of_plain_ones(run, name, monkeypatch):
    """By torch.compile's own tracing, without the compiler, which takes a minute."""
    monkeypatch.setattr(recompute, "BACKEND", "aot_eager")
    compiled, real = [], nn.Module.compile

    def compile(self, **how):
        compiled.append(type(self).__name__)
        real(self, **how)

    monkeypatch.setattr(nn.Module, "compile", compile)
    settings = {"epochs": 1, "options": {"drop": 0.0} if name == "r-adapter" else {}}
    torch._dynamo.reset()
    found, plain = run(name, torchcompile=True, **settings), run(name, **settings)
    assert len(compiled) == 2
    losses = [[r["loss"] for r in t.log.records if "loss" in r] for t in (found, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    states = found.classifier.state_dict(), plain.classifier.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(p._compiled_call_impl is None for p in found.classifier.modules())


@pytest.mark.slow
def test_compiled_towers_in_chunks(run):
    torch._dynamo.reset()
    settings = {"epochs": 1, "batch_size": 15}
    found = run("flyp", torchcompile=True, grad_cache=5, **settings)
    plain = run("flyp", **settings)
    losses = [[r["loss"] for r in t.log.records if "loss" in r] for t in (found, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def normalised(clip):
    clip = copy_clip(clip)
    clip.model.visual.trunk.norm = nn.Sequential(clip.model.visual.trunk.norm, nn.BatchNorm1d(96))
    return clip


@pytest.mark.parametrize(
    ("name", "settings", "change", "message"),
    [
        ("ft", {"grad_cache": 4}, None, "grad_cache: the loss of ft is a mean over images"),
        (
            "flyp",
            {"grad_cache": 16},
            None,
            r"grad_cache: got 16, expected less than batch_size \(16",
        ),
        ("flyp", {"grad_cache": 0}, None, "grad_cache: got 0, expected at least 1"),
        ("zero-shot", {"torchcompile": True}, None, "torchcompile: method zero-shot trains no tow"),
        ("linear-probe", {"grad_checkpointing": True}, None, "linear-probe trains no tower"),
        (
            "flyp",
            {"grad_cache": 4},
            normalised,
            "grad_cache: robustft-tiny has batch normalisation",
        ),
        ("ft", {"grad_checkpointing": True}, normalised, "grad_checkpointing: .* has batch norm"),
        ("tpgm", {"grad_checkpointing": True}, None, "grad_checkpointing: got it with tpgm"),
        ("dive", {"grad_checkpointing": True}, dropping, "grad_checkpointing: .* has dropout"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(world, name, settings, change, message):
    from robustft.train import Trainer

    clip = world.clip if change is None else change(world.clip)
    with pytest.raises(InputError, match=message):
        Trainer(
            make_method(name),
            clip,
            world.train,
            world.val,
            TrainConfig(batch_size=16, **settings),
            templates=world.templates,
            reference=world.reference,
        )
