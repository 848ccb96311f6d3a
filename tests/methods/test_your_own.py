"""Methods of others: the page's example, as a file, a module and an entry point."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from robustft.cli.app import run
from robustft.errors import InputError, InputTypeError
from robustft.methods import METHODS, make_method
from robustft.methods.ft import FT

PAGE = Path(__file__).parents[2] / "docs" / "methods" / "your-own.md"


def example():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return code


@pytest.fixture
def module(tmp_path):
    path = tmp_path / "near_ft.py"
    path.write_text(example(), encoding="utf-8")
    return path


OWN = set(METHODS)


def forget():
    """As in a process that has imported no file of a method."""
    for name in set(METHODS) - OWN:
        del METHODS._known[name]
    for name in [name for name in sys.modules if name.startswith("robustft_method_")]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def forgotten():
    yield
    forget()


def command(*more):
    return [
        *("train", "--model", "robustft-tiny", "--pretrained", "glyphs", "--aug", "none"),
        *("--data-location", "digits", "--epochs", "1", "--batch-size", "256", "--lr", "1e-3"),
        *("--eval-datasets", "digits", *more),
    ]


def test_the_example_is_short_and_its_loss_is_its_formula(module):
    assert len(example().splitlines()) < 50
    from robustft.models import load_clip
    from robustft.modules import import_user_module

    import_user_module(str(module), "--method-module")
    import_user_module(str(module), "--method-module")  # once more changes nothing
    clip = load_clip("robustft-tiny")
    method = make_method("near-ft", mu=3.0)
    parts = method.setup(clip, ["one", "two"], ["a {}.", "{}"])
    with torch.no_grad():
        for p in parts.classifier.clip.visual.parameters():
            p.add_(0.02 * torch.randn_like(p))
    batch = {"image": torch.randn(4, 3, 24, 24), "label": torch.tensor([0, 1, 1, 0])}
    loss, values = method.loss(parts, batch)
    with torch.no_grad():
        now = torch.nn.functional.normalize(parts.classifier.clip.encode_image(batch["image"]))
        then = torch.nn.functional.normalize(clip.model.encode_image(batch["image"]))
        logits = parts.classifier(batch["image"])
    moved = ((now - then) ** 2).sum(1).mean()
    assert values["moved"].item() == pytest.approx(moved.item(), rel=1e-4)
    expected = torch.nn.functional.cross_entropy(logits, batch["label"]) + 3 * moved
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_example_trains_from_the_command_line_and_its_run_opens(module, tmp_path, capsys):
    logs = ["--logs", str(tmp_path), "--name", "mine"]
    own = ["--method-module", str(module), "--method", "near-ft", "--option", "mu=2"]
    assert run(command(*own, *logs)) == 0
    forget()
    capsys.readouterr()
    opened = ["wise-ft", "--run", str(tmp_path / "mine"), "--alpha", "1"]
    assert run(opened) == 2
    assert f"expected --method-module {module}" in capsys.readouterr().err
    assert run([*opened, "--method-module", str(module)]) == 0, capsys.readouterr().err
    assert (
        run(["train", "--config", str(tmp_path / "mine" / "config.yaml"), "--resume", "latest"])
        == 0
    )


def test_an_entry_point_is_a_method_and_a_broken_one_a_warning(module, tmp_path):
    info = tmp_path / "near_ft-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: near-ft\nVersion: 1.0\n")
    points = "[robustft.methods]\nnear-ft = near_ft:NearFT\nbroken = no_such_module:Method\n"
    (info / "entry_points.txt").write_text(points)
    script = (
        "import near_ft\n"
        "from robustft.methods import METHODS, make_method\n"
        "print(METHODS['near-ft'] is near_ft.NearFT, make_method('near-ft').config.mu)\n"
        "from robustft.report.names import display\n"
        "print(display(('near-ft', None)))\n"
    )
    path = os.pathsep.join([str(tmp_path), *(p for p in sys.path if p)])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=dict(os.environ, PYTHONPATH=path),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout.splitlines() == ["True 10.0", "Near-FT"], done.stderr
    assert "entry point broken = no_such_module:Method of robustft.methods" in done.stderr
    assert "entry point near-ft" not in done.stderr  # which registers while it is imported


def test_what_is_no_method_is_refused():
    def made(**facts):
        return type("Mine", (FT,), {"name": "mine", "__module__": "mine", **facts})

    assert METHODS.register(made()) is METHODS["mine"]
    with pytest.raises(InputTypeError, match="method: got 3, expected a subclass of Method"):
        METHODS.register(3)
    for facts, message in (
        ({"name": "dive"}, "method: got 'dive' from mine, expected a name that robustft"),
        ({"name": "My FT"}, "got name 'My FT', expected words like a-name"),
        ({"colour": "red"}, "got colour 'red', expected #rrggbb"),
        ({"group": "best"}, "got group 'best', expected one of fine-tuning, regularised"),
        ({"published": 1e-3}, "got published 0.001, expected a Published"),
        ({"head_from_text": 0}, "got head_from_text 0, expected True or False"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            METHODS.register(made(**facts))
    bare = type("Bare", (FT.__mro__[1],), {"__module__": "mine", "name": "bare"})
    with pytest.raises(InputError, match=r"mine.Bare: got no 'display'"):
        METHODS.register(bare)


def test_a_module_that_cannot_be_imported_is_one_line(tmp_path, capsys):
    bad = tmp_path / "bad.py"
    bad.write_text("1 / 0\n")
    for spec, message in (
        (bad, "bad.py cannot be imported: ZeroDivisionError: division by zero"),
        (tmp_path / "none.py", "--method-module: no file"),
        ("no_such_module", "no_such_module cannot be imported: ModuleNotFoundError"),
    ):
        assert run(command("--method-module", str(spec))) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert message in line
