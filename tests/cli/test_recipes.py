"""Recipes resolve, say their plan, and train on miniature copies of their data."""

import json
import re
from pathlib import Path

import pytest

from robustft import recipes
from robustft.cli.app import run
from robustft.cli.materials import method_of, settled
from robustft.cli.options import resolve
from robustft.cli.plan import estimate
from robustft.cli.train_options import TrainOptions
from robustft.errors import InputError
from robustft.methods import METHODS
from tests import layouts, scenes

ROOT = Path(__file__).parents[2]
TINY = ["--model", "robustft-tiny", "--pretrained", "glyphs", "--device", "cpu"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Every data set of the recipes but ImageNet and its shifts."""
    folder = tmp_path_factory.mktemp("root")
    layouts.zero_shot_suite(folder)
    layouts.coop(folder, "caltech101", each=3)
    layouts.cifar(folder)
    layouts.iwildcam(folder, each=3)
    layouts.fmow(folder)
    layouts.shards(folder / "cc3m", 2, each=8)
    for name in ("coco", "flickr30k"):
        layouts.captioned_glyphs(folder, name, {"train": 8, "val": 3, "test": 6})
    scenes.registered(folder, each=4)
    return folder


@pytest.fixture(scope="module")
def whole(root):
    layouts.imagenet_suite(root, "wise-ft")
    layouts.breeds(root)
    return root


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("robustft.cache.folder", lambda: tmp_path / "cache")


def options_of(name, **given):
    return settled(resolve(TrainOptions, None, {"recipe": name, **given}))


def command(name, root, *more, batch):
    """`train --recipe` on miniatures: the tiny model, one epoch, a part of each data set."""
    settings = recipes.load(name).settings
    flags = ["--data", f"partial:{settings['data']}", "--data-location", str(root)]
    for key in ("suite", "ood", "zero_shot"):
        for one in settings.get(key, ()):
            flags += [f"--{key.replace('_', '-')}", f"partial:{one}"]
    if "reference" in settings:
        flags += ["--reference", f"partial:{settings['reference']}"]
    short = ["--epochs", "1", "--batch-size", str(batch), "--precision", "fp32", "--workers", "0"]
    prompts = "simple" if settings["method"] == "car-ft" else "photo"  # which needs several
    return ["train", "--recipe", name, *flags, *TINY, *short, "--template", prompts, *more]


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_resolves_and_says_what_it_is_of(name):
    recipe = recipes.load(name)
    options = options_of(name)
    assert options.method == name.split("/")[0]
    assert recipe.settings["method"] == options.method
    method = method_of(options)
    assert not method.needs_reference or options.reference
    for row in recipe.published:
        assert row.source
        assert all(0 < figure < 100 for figure in row.figures.values())
    assert recipe.seeds
    size = estimate(options, method)
    assert size.trained <= size.parameters
    assert 100e6 < size.parameters < 1e9


def test_every_method_with_settings_has_a_recipe():
    assert {name.split("/")[0] for name in recipes.names()} == set(METHODS)


def test_r_adapters_trained_parameters_are_the_papers():
    options = options_of("r-adapter/imagenet-vit-b16")
    trained = estimate(options, method_of(options)).trained
    assert round(trained / 1e6, 1) == 20.4, "20.45 M of two towers, and a scalar an adapter"
    assert "drop_mode=token" in options.option


def test_flyps_decay_groups_are_its_releases():
    assert options_of("flyp/imagenet-vit-b16").decay_all


def test_flags_win_over_a_recipe_and_add_to_its_options():
    options = options_of("dive/imagenet-vit-b16", epochs=3, option=["lambda_=500"])
    assert (options.epochs, options.batch_size, options.wd) == (3, 512, 0.1)
    assert method_of(options).config.lambda_ == 500
    assert method_of(options).config.momentum == 0.99


def test_processes_share_a_recipes_batch(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert options_of("dive/imagenet-vit-b16").batch_size == 128
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InputError, match="got a batch of 512 and 3 processes"):
        options_of("dive/imagenet-vit-b16")
    assert recipes.load("dive/imagenet-vit-b16").settings_for(1)["batch_size"] == 512


def test_recipes_are_listed(capsys):
    assert run(["recipes"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in recipes.names())
    assert run(["recipes", "dive"]) == 0
    assert "flyp/" not in capsys.readouterr().out
    assert run(["recipes", "diva"]) == 2
    assert run(["train", "--recipe", "dive/imagenet-b16", "--dry-run"]) == 2
    assert "expected one such as dive/imagenet-vit-b16" in capsys.readouterr().err


def test_a_dry_run_says_the_plan_and_what_is_missing(root, tmp_path, capsys):
    flags = ["--dry-run", "--logs", str(tmp_path / "logs")]
    assert run([*command("dive/iwildcam-vit-b16", root, *flags, batch=6)]) == 0
    printed = capsys.readouterr().out
    for text in (
        "recipe dive/iwildcam-vit-b16: DiVE, iWildCam, ViT-B/16",
        "train: 12 images, 4 classes of iWildCam",
        "id: 12 images of iWildCam",
        "ood: 12 images of iWildCam (OOD)",
        "zero-shot: 6 images of UCF101",
        "reference: 16 pairs of CC3M",
        "1 epochs of 2 steps, 2 in all",
        "published: DiVE: iWildCam (macro-F1) 53.1",
        "memory, estimated:",
    ):
        assert text in printed
    assert not (tmp_path / "logs").exists()
    assert run(["train", "--recipe", "ft/cifar10-vit-b16", *flags]) == 2
    assert "--data-location: got 'digits'" in capsys.readouterr().err
    empty = ["--data-location", str(tmp_path)]
    assert run(["train", "--recipe", "ft/cifar10-vit-b16", *empty, *flags]) == 2
    printed = capsys.readouterr().out
    assert "train: missing: cifar10 train: not found below" in printed
    assert "ood: missing: stl10 test" in printed
    assert "then: robustft vrf --run RUN --a 0.3 --b 0.3" in printed


def test_a_recipe_of_ones_own(root, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text("title: Mine\nsettings: {method: ft, data: cifar10, epochs: 7}\n")
    flags = ["--data-location", str(root), "--data", "partial:cifar10", *TINY, "--dry-run"]
    assert run(["train", "--recipe", str(path), *flags]) == 0
    assert "7 epochs" in capsys.readouterr().out
    path.write_text("settings: {method: ft}\nhour: 3\ntitle: Mine\n")
    assert run(["train", "--recipe", str(path), *flags]) == 2
    assert "not a recipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "batch"),
    [
        ("dive/iwildcam-vit-b16", 6),
        ("r-adapter/base-to-novel-vit-b16", 4),
        ("r-adapter/coco-vit-b16", 12),
        ("r-adapter/segmentation-vit-b16", 2),
    ],
)
def test_a_recipe_trains_two_steps_on_a_miniature(root, tmp_path, name, batch):
    train(name, root, tmp_path, batch)
    if "base-to-novel" not in name:
        return
    folder = next((tmp_path / "logs").iterdir())
    drawn = json.loads((folder / "shots.json").read_text())
    assert drawn == {"train": list(range(12)), "val": list(range(6))}
    rows = (folder / "results.jsonl").read_text()
    assert '"Caltech101 (novel)"' in rows
    assert '"Caltech101 (base)"' in rows
    assert folder.name == "r-adapter-base-caltech101-0"


@pytest.mark.slow
@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_trains_two_steps_on_a_miniature(whole, tmp_path, name):
    data = recipes.load(name).settings["data"]
    sizes = {"imagenet": 500, "cifar10": 45, "iwildcam": 6, "fmow": 4, "base:caltech101": 4}
    sizes |= {"caltech101": 9, "stanford-cars": 6, "coco": 12, "flickr30k": 12}
    sizes |= {"coco-stuff-171": 2, "entity30": 9}
    train(name, whole, tmp_path, sizes[data])


def train(name, root, tmp_path, batch):
    assert run([*command(name, root, "--logs", str(tmp_path / "logs"), batch=batch)]) == 0
    folder = next((tmp_path / "logs").iterdir())
    if name.split("/")[0] == "zero-shot":
        return
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    steps = max(int(line["step"]) for line in log if "step" in line)
    assert steps >= 2
    assert run(["eval", "--run", str(folder)]) == 0, "it knows its data without the recipe"


def test_every_recipe_stands_in_the_page_with_its_figures():
    page = (ROOT / "docs" / "reproducing.md").read_text()
    for name in recipes.names():
        assert f"`{name}`" in page
    rows = {m[1]: m[0] for m in re.finditer(r"^\| `([\w/-]+)` \|.*$", page, re.MULTILINE)}
    for name, line in rows.items():
        recipe = recipes.load(name)
        for row in recipe.published[:1]:
            assert all(f"{figure:g}" in line for figure in row.figures.values()), name
        if recipe.hours is not None:
            assert f"{recipe.hours:g}" in line


def test_the_feature_store_takes_registered_names(root, tmp_path, capsys):
    model = [*TINY, "--data-location", str(root), "--feature-store", str(tmp_path / "store")]
    assert run(["embed", "--reference", "partial:cc3m", *model]) == 0
    assert run(["embed", "--data", "partial:fmow", *model]) == 0
    printed = capsys.readouterr().out
    assert "image CC3M: 16 rows" in printed
    assert "image FMoW: 8 rows" in printed
