"""What the loop does, and what each method leaves changed and unchanged."""

import json

import pytest
import torch
from torch.nn import functional as F

from robustft.errors import DivergedError, InputError
from robustft.methods import METHODS, make_method
from robustft.models import load_classifier

TRAINED = [name for name in METHODS if name != "zero-shot"]


def changed(clip, classifier):
    """Which parts of the model are not those of `clip`, bit for bit."""
    before, after = clip.model.state_dict(), classifier.clip.state_dict()
    parts = {
        "image": [k for k in before if k.startswith("visual.")],
        "scale": ["logit_scale"],
    }
    parts["text"] = [k for k in before if k not in parts["image"] + parts["scale"]]
    return {
        part
        for part, names in parts.items()
        if not all(torch.equal(before[name], after[name]) for name in names)
    }


# Where other settings than six epochs let the loss of this small world fall clearly.
RUNS = {
    "linear-probe": ({}, {"lr": 3e-2, "epochs": 20}),
    "flyp": ({}, {"epochs": 8}),
    "r-adapter": ({"scale": 1.0, "ema": 0.5}, {"epochs": 8, "lr": 3e-3}),
    "dive": ({"lambda_": 0.1}, {"epochs": 8}),
}


@pytest.mark.parametrize("name", TRAINED)
def test_training_lowers_the_loss_and_changes_what_it_should(run, world, name):
    before = {k: v.clone() for k, v in world.clip.model.state_dict().items()}
    options, config = RUNS.get(name, ({}, {"epochs": 6}))
    trainer = run(name, options=options, **config)
    losses = [r["loss"] for r in trainer.log.records if "loss" in r and r["stage"] != "lp"]
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])
    parts = {"image", "text", "scale"} if METHODS[name].head_from_text else {"image"}
    expected = {
        "linear-probe": set(),
        "r-adapter": {"image", "text"},  # merged; see the next test for what was trained
    }.get(name, parts)
    assert changed(world.clip, trainer.classifier) == expected
    zero_shot = run("zero-shot").classifier
    assert not torch.equal(trainer.classifier.head.weight, zero_shot.head.weight)
    assert all(torch.equal(v, before[k]) for k, v in world.clip.model.state_dict().items())


def test_r_adapter_trains_adapters_alone(run, world):
    from robustft.models import plain_state_dict

    trainer = run("r-adapter", options={"alpha": 0.3, "ema": 0.0, "rank": 4, "scale": 1.0}, lr=1e-2)
    module = trainer.module
    before = world.clip.model.state_dict()
    for name, tensor in plain_state_dict(module.model).items():
        assert torch.equal(tensor, before[name]), name
    # The result is the pre-trained model plus 0.3 of what the adapters add.
    module.adapters.alpha = 0.3
    module.eval()
    images = world.val.images.tensors[:5]
    with torch.no_grad():
        adapted = F.normalize(module.model.encode_image(images), dim=-1)
        merged = trainer.classifier.features(images)
        plain = F.normalize(world.clip.model.encode_image(images), dim=-1)
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-5)
    assert (merged - plain).abs().max() > 1e-4


@pytest.mark.parametrize("options", [{}, {"momentum": 0.0, "reference_batch_size": 3}])
def test_dive_at_lambda_zero_is_flyp(run, same, options):
    flyp = run("flyp", batch_size=7)
    dive = run("dive", options={"lambda_": 0.0, **options}, batch_size=7)
    assert same(flyp.classifier, dive.classifier)
    assert all(r["pvl"] >= 0 for r in dive.log.records if "pvl" in r)
    assert not same(flyp.classifier, run("dive", options=options, batch_size=7).classifier)


def test_dive_starts_at_zero_and_keeps_the_towers_close(run):
    free = run("dive", options={"lambda_": 0.0}, epochs=4)
    held = run("dive", options={"lambda_": 1000.0}, epochs=4)
    for trainer in (free, held):
        first = trainer.log.records[0]
        assert first["avl"] == pytest.approx(0, abs=1e-9)
        assert first["pvl"] == pytest.approx(0, abs=1e-9)
    last = [[r for r in t.log.records if "pvl" in r][-1] for t in (free, held)]
    assert last[1]["avl"] + last[1]["pvl"] < 0.2 * (last[0]["avl"] + last[0]["pvl"])


def test_precomputed_reference_features_equal_those_of_the_frozen_model(run, world, monkeypatch):
    from robustft.train import feed

    monkeypatch.setattr(feed, "is_deterministic", lambda transform: False)
    live = run("dive", epochs=1)
    monkeypatch.undo()
    cached = run("dive", epochs=1)
    for a, b in zip(live.log.records, cached.log.records, strict=True):
        if "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)


def test_tpgm_without_iterations_is_ft(run, same):
    ft = run("ft", batch_size=7)
    assert same(ft.classifier, run("tpgm", options={"iterations": 0}, batch_size=7).classifier)
    assert not same(ft.classifier, run("tpgm", batch_size=7).classifier)


@pytest.mark.parametrize("norm", ["l2", "mars"])
def test_tpgm_keeps_every_tensor_within_its_radius(run, world, norm):
    module = run("tpgm", options={"norm": norm, "proj_lr": 1e-3}, epochs=3).module
    before = world.clip.model.visual.parameters()
    after = module.classifier.clip.visual.parameters()
    held = 0
    for a, b, radius in zip(before, after, module.radii.radius, strict=True):
        moved = (b - a).detach()
        rows = (
            moved.norm()
            if norm == "l2"
            else moved.flatten(1).abs().sum(1).max()
            if moved.ndim > 1
            else moved.abs().max()
        )
        assert rows <= radius * 1.001 + 1e-6
        held += bool(rows > 0.99 * radius)
    assert held > 5


def test_a_method_that_learns_from_validation_data_needs_some(run):
    with pytest.raises(InputError, match="val: got none, expected a validation set for tpgm"):
        run("tpgm", val=False)


def test_a_method_is_told_the_epoch(run):
    records = run("starft", options={"rho": 0.5}, epochs=2).log.records
    assert [("spurious_kl" in r) for r in records if "loss" in r] == [True] * 2 + [False] * 2


@pytest.mark.parametrize("name", ["ft", "linear-probe"])
def test_accumulated_batches_are_one_batch(run, name):
    """45 images: 18 + 18 + 9, so that the shares of a step's loss differ."""
    whole = run(name, batch_size=45, epochs=1, lr=1e-2)
    parts = run(name, batch_size=18, accum_freq=3, epochs=1, lr=1e-2)
    a, b = whole.log.records[0], parts.log.records[0]
    assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)


def test_accumulated_gradients_equal_the_whole_batch(world):
    """On the gradient itself: AdamW's first step would hide its size."""
    from robustft.train import TrainConfig
    from robustft.train.accelerator import forget, make_accelerator
    from robustft.train.step import Stepper

    gradients = []
    for sizes in ((45,), (18, 18, 9)):
        method = make_method("ft")
        config = TrainConfig(device="cpu")
        accelerator = make_accelerator(config)
        module = method.setup(world.clip, world.train.classnames, world.templates)
        method.begin_stage(module, 0)
        images, labels = world.train.images.tensors, world.train.labels
        parts = zip(images.split(sizes), labels.split(sizes), strict=True)
        batches = [{"image": x, "label": y} for x, y in parts]
        (stage,) = method.stages(config)
        step = Stepper(method, module, stage, config, accelerator)
        step.gradients(batches, [size / 45 for size in sizes])
        gradients.append(torch.cat([p.grad.flatten() for p in step.trained]))
        forget(accelerator)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_linear_probe_on_cached_and_live_features_agree(run):
    cached = run("linear-probe", lr=1e-2, epochs=3).classifier
    live = run("linear-probe", options={"cache": False}, lr=1e-2, epochs=3).classifier
    torch.testing.assert_close(cached.head.weight, live.head.weight, rtol=1e-4, atol=1e-4)


def test_ft_logits_start_as_zero_shot(world):
    method = make_method("ft")
    module = method.setup(world.clip, world.train.classnames, world.templates)
    method.begin_stage(module, 0)
    images = world.train.images.tensors[:4]
    with torch.no_grad():
        features = F.normalize(world.clip.model.encode_image(images), dim=-1)
        rows = []
        for name in world.train.classnames:
            tokens = world.clip.tokenizer([t.format(name) for t in world.templates])
            texts = F.normalize(world.clip.model.encode_text(tokens), dim=-1)
            rows.append(F.normalize(texts.mean(0), dim=0))
        expected = world.clip.logit_scale * features @ torch.stack(rows).T
        torch.testing.assert_close(module(image=images), expected, rtol=1e-4, atol=1e-4)
    assert all(
        p.requires_grad == name.startswith(("classifier.head", "classifier.clip.visual"))
        for name, p in module.named_parameters()
    )


@pytest.mark.parametrize("name", TRAINED)
def test_no_weight_decay_on_biases_norms_and_scalars(world, name):
    method = make_method(name)
    module = method.setup(world.clip, world.train.classnames, world.templates)
    method.begin_stage(module, 0)
    groups = method.param_groups(module, 0.3)
    decayed = {id(p) for g in groups if g["weight_decay"] == 0.3 for p in g["params"]}
    plain = {id(p) for g in groups if g["weight_decay"] == 0.0 for p in g["params"]}
    for key, p in module.named_parameters():
        if not p.requires_grad:
            assert id(p) not in decayed | plain
        elif p.ndim < 2 or key.endswith(("bias", "scale")):
            assert id(p) in plain, key
        else:
            assert id(p) in decayed, key


@pytest.mark.parametrize("name", ["ft", "flyp", "r-adapter", "dive"])
def test_autocast_trains_and_its_result_is_fp32(run, name):
    trainer = run(name, precision="bf16", epochs=1)
    exact = run(name, epochs=1)
    a, b = (t.log.records[0]["loss"] for t in (trainer, exact))
    assert a != b
    assert a == pytest.approx(b, rel=0.05)
    assert {p.dtype for p in trainer.classifier.parameters()} == {torch.float32}
    assert "forward" not in trainer.module.__dict__


def test_second_stage_trains_in_autocast_too(run):
    first = []
    for precision in ("bf16", "fp32"):
        records = run("lp-ft", precision=precision, epochs=1).log.records
        first.append(next(r["loss"] for r in records if r["stage"] == "ft"))
    assert first[0] != first[1]
    assert first[0] == pytest.approx(first[1], rel=0.05)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_fp16_without_a_gpu_is_refused(run):
    with pytest.raises(InputError, match="precision: got fp16, expected fp32 or bf16"):
        run("ft", precision="fp16")
    assert run("ft", precision="bf16", epochs=1).val_top1 is not None  # and nothing is left of it


def test_logit_scale_is_clamped_unless_told_otherwise(run, world):
    start = world.clip.model.logit_scale.item()
    try:
        world.clip.model.logit_scale.data.fill_(5.0)
        clamped = run("flyp", epochs=1).classifier.clip.logit_scale
        free = run("flyp", options={"clamp_scale": False}, epochs=1).classifier.clip.logit_scale
        fixed = run("flyp", options={"train_scale": False}, epochs=1).classifier.clip.logit_scale
    finally:
        world.clip.model.logit_scale.data.fill_(start)
    assert 4.5 < float(clamped) <= 4.6052
    assert float(free) > 4.7
    assert float(fixed) == 5.0


def test_run_folder_holds_log_result_and_what_was_run(run, same, world, tmp_path):
    trainer = run(
        "ft", tmp_path, val_frequency=1, save_frequency=1, keep=1, report_to=("tensorboard",)
    )
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == trainer.log.records
    assert [r["val:top1"] for r in lines if "val:top1" in r][-1] == trainer.val_top1
    assert [r["epoch"] for r in lines if "epoch" in r] == [1, 2]
    assert same(load_classifier(tmp_path / "model.safetensors", world.clip), trainer.classifier)
    record = json.loads((tmp_path / "train.json").read_text())
    assert record["method"]["name"] == "ft"
    assert record["config"]["batch_size"] == 16
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1
    assert any((tmp_path / "tensorboard").iterdir())


def test_validation_accuracy_is_that_of_the_result(run, world):
    trainer = run("ft", epochs=3)
    predicted = trainer.classifier(world.val.images.tensors).argmax(1)
    assert trainer.val_top1 == pytest.approx((predicted == world.val.labels).float().mean().item())


@pytest.mark.parametrize("folder", [False, True])
def test_best_validation_is_selected_on_request(run, tmp_path, monkeypatch, folder):
    from robustft.train import loop

    accuracies, seen = iter([0.2, 0.5, 0.5, 0.1]), []

    def top1(_, classifier):
        seen.append({k: v.clone() for k, v in classifier.state_dict().items()})
        return next(accuracies)

    monkeypatch.setattr(loop.Validation, "top1", top1)
    where = tmp_path if folder else None
    best = run("flyp", where, select="best", epochs=4, val_frequency=1)
    assert best.val_top1 == 0.5
    state = best.classifier.state_dict()
    assert all(torch.equal(value, seen[1][key]) for key, value in state.items())
    assert not torch.equal(state["head.weight"], seen[2]["head.weight"])


def test_best_validation_survives_a_stop(run, same, tmp_path, monkeypatch):
    from robustft.train import loop

    class Stopped(Exception):
        pass

    def stop(done):
        if done == 8:
            raise Stopped

    config = {"select": "best", "epochs": 4, "val_frequency": 1, "save_steps": 7}
    scores = [0.2, 0.5, 0.4, 0.1]  # the stop falls between the second and the third
    left = iter([*scores, *scores])
    monkeypatch.setattr(loop.Validation, "top1", lambda *_: next(left))
    whole = run("ft", tmp_path / "whole", **config)
    with pytest.raises(Stopped):
        run("ft", tmp_path / "cut", on_step=stop, **config)
    resumed = run("ft", tmp_path / "cut", resume="latest", **config)
    assert resumed.val_top1 == whole.val_top1 == 0.5
    assert same(resumed.classifier, whole.classifier)


def test_the_callers_random_state_is_left_alone(run):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run("r-adapter", epochs=1)
    assert torch.equal(torch.rand(3), expected)


def test_every_step_draws_random_numbers_of_its_own(run, monkeypatch):
    """Masks of adapters and the like: they differ from step to step, and from seed to seed."""
    method = type(make_method("ft"))
    real, drawn = method.loss, []

    def loss(*args):
        drawn.append(torch.rand(()).item())
        return real(*args)

    monkeypatch.setattr(method, "loss", loss)
    for seed in (0, 0, 1):
        run("ft", epochs=2, seed=seed, val=False)
    steps = len(drawn) // 3
    assert steps > 3
    assert drawn[:steps] == drawn[steps : 2 * steps]
    assert len(set(drawn)) == 2 * steps


def test_input_that_does_not_fit(run, world, monkeypatch):
    with pytest.raises(InputError, match="test split"):
        run("ft", train=world.train.subset(range(9), split="test"))
    other = world.train.subset(range(9), split="train")
    other.classnames = [*other.classnames[:-1], "ten"]
    with pytest.raises(InputError, match="class names, expected those of train"):
        run("ft", train=other)
    with pytest.raises(InputError, match='select: got "best" without a validation set'):
        run("ft", val=False, select="best")
    with pytest.raises(InputError, match="val_frequency: got 0"):
        run("ft", select="best", val_frequency=0)
    with pytest.raises(InputError, match=r"train: got .* without an image"):
        run("ft", train=world.train.subset([], split="train"))
    monkeypatch.setattr(world, "val", world.val.subset([], split="val"))
    with pytest.raises(InputError, match=r"val: got .* without an image"):
        run("ft")


def test_validation_images_none_of_which_can_be_read_are_an_error(run, world, monkeypatch):
    """Not a division by zero."""
    monkeypatch.setattr(type(world.val), "damaged", property(lambda d: torch.ones(len(d)) > 0))
    with pytest.raises(InputError, match=r"val: got 30 images of .*, none of which"):
        run("ft", epochs=1)


def test_a_model_of_nan_is_right_on_nothing(world):
    from robustft.models import Classifier
    from robustft.train.validate import top1

    broken = Classifier.zero_shot(world.clip, world.val.classnames, world.templates)
    broken.set_head(torch.full_like(broken.head.weight, torch.nan))
    assert 0 in world.val.labels.tolist()  # which the arg-max of a row of NaN would hit
    assert top1(broken, world.val, batch_size=16, device="cpu") == 0.0


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    run, tmp_path, monkeypatch
):
    """NaN from step 5 on: said with step and rate; no later checkpoint; every log line is JSON."""
    from robustft.methods.ft import FT

    loss, calls = FT.loss, []

    def failing(self, module, batch):
        calls.append(1)
        value, values = loss(self, module, batch)
        return (value * float("nan") if len(calls) == 5 else value), values

    monkeypatch.setattr(FT, "loss", failing)
    with pytest.raises(DivergedError, match=r"loss is not finite at step 5 \(learning rate 0\.0"):
        run("ft", tmp_path, save_steps=2, keep=9)
    names = [path.name for path in sorted((tmp_path / "checkpoints").iterdir())]
    assert names == ["step-00000002", "step-00000004"]
    assert not (tmp_path / "model.safetensors").exists()

    def refuse(token):
        raise AssertionError(token)

    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=refuse) for line in lines]
    assert records[-1]["step"] == 5
    assert records[-1]["loss"] is None


def test_weights_that_are_not_finite_are_neither_saved_nor_returned(run, tmp_path, monkeypatch):
    """The last step overflows: its own loss was finite, and no other follows."""
    from robustft.methods.ft import FT

    def overflow(self, module):
        if next(steps) == 6:
            next(module.classifier.head.parameters()).data.fill_(float("inf"))

    steps = iter(range(1, 99))
    monkeypatch.setattr(FT, "after_step", overflow)
    with pytest.raises(DivergedError, match="model is not finite at step 6"):
        run("ft", tmp_path, save_frequency=2)
    assert not (tmp_path / "checkpoints").exists()
    assert not (tmp_path / "model.safetensors").exists()


def test_best_weights_from_before_a_divergence_are_returned(run, world):
    def spoil(step):
        if step == 3:
            for parameter in models[0].parameters():
                parameter.data.fill_(float("nan"))

    models = []
    method = make_method("ft")
    setup = method.setup

    def remember(*arguments):
        models.append(setup(*arguments))
        return models[0]

    method.setup = remember
    from robustft.train import TrainConfig, Trainer

    config = TrainConfig(
        epochs=3, batch_size=16, lr=1e-3, warmup=0, device="cpu", select="best", val_frequency=1
    )
    trainer = Trainer(
        method,
        world.clip,
        world.train,
        world.val,
        config,
        templates=world.templates,
        progress=False,
        on_step=spoil,
    )
    with pytest.warns(UserWarning, match="diverged: the loss is not finite at step 4"):
        classifier = trainer.run()
    assert trainer.diverged.step == 4
    assert all(p.isfinite().all() for p in classifier.parameters())


def test_decay_on_all_parameters_and_a_long_warmup_are_settings(run, world):
    """Decay moves biases and norms too; a warm-up of 20 steps reaches 6/20 of the rate in 6."""
    plain = run("ft", wd=0.5, epochs=1)
    decayed = run("ft", wd=0.5, epochs=1, decay_all=True)
    before = world.clip.model.state_dict()
    image = {k: v for k, v in before.items() if k.startswith("visual.") and k.endswith("weight")}
    norms = [k for k, v in image.items() if v.ndim == 1 and v.eq(1).all()]
    one, other = (
        torch.cat([t.classifier.clip.state_dict()[k] for k in norms]) for t in (plain, decayed)
    )
    assert other.mean() < one.mean() - 1e-4  # the weights of norms start at 1
    kept = run("ft", warmup=20, keep_warmup=True)
    rates = [r["lr"] for r in kept.log.records if "lr" in r]
    assert rates[-1] == pytest.approx(1e-3 * 6 / 20)


def test_a_line_of_the_log_that_is_no_record_is_left_out(tmp_path):
    from robustft.train.log import Log

    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n[1]\n{"step": 9}\n')
    assert Log(tmp_path, resumed_at=3).records == [{"step": 1, "loss": 2.0}]
