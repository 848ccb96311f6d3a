"""Data sets of one's own: a YAML file, a module, an entry point; and every refusal."""

import importlib.metadata

import pytest

from robustft.cli.app import run
from robustft.data import load_dataset
from robustft.data.registry import READERS, REGISTRY, DataSet, Part, known
from robustft.errors import InputError, InputWarning
from tests.layouts import write_images

BIRDS = """
my-birds:
  title: My birds
  reader: class-folders
  templates: ["a photo of a {}, a type of bird."]
  classnames: birds/names.txt
  metrics: [macro-f1]
  train: {at: [birds-v2/train, birds/train], images: 30, classes: 3}
  test: {at: [birds/test], images: 9, classes: 3}
"""


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    """What a test registers is forgotten after it."""
    list(REGISTRY)
    monkeypatch.setattr(REGISTRY, "_sets", dict(REGISTRY._sets))
    before = dict(READERS)
    yield
    READERS.clear()
    READERS.update(before)


@pytest.fixture
def root(tmp_path):
    for split, each in (("train", 10), ("test", 3)):
        for label, name in enumerate(("a1", "a2", "a10")):
            write_images(tmp_path / "birds" / split / name, [label] * each)
    (tmp_path / "birds" / "names.txt").write_text("a1\tblue tit\na2\tgreat tit\na10\tcoal tit\n")
    (tmp_path / "birds.yaml").write_text(BIRDS)
    return tmp_path


def test_a_yaml_file_brings_a_set_to_every_verb(root, capsys):
    module = ["--data-module", str(root / "birds.yaml"), "--data-location", str(root)]
    assert run(["data", "check", "my-birds", *module]) == 0
    assert "my-birds train: 30 images, 3 classes" in capsys.readouterr().out
    model = ["--model", "robustft-tiny", "--device", "cpu", "--epochs", "1", "--batch-size", "9"]
    train = ["train", "--method", "ft", "--data", "my-birds", *module, *model]
    assert run([*train, "--logs", str(root / "logs"), "--zero-shot", "inks"]) == 0
    REGISTRY._sets.pop("my-birds")  # another process: the run knows the file, which holds no code
    assert run(["eval", "--run", str(root / "logs" / "ft-my-birds-0")]) == 0
    printed = capsys.readouterr().out
    assert "My birds: id (the training data's own), 9 images" in printed
    assert ", macro-f1 " in printed
    results = (root / "logs" / "ft-my-birds-0" / "results.jsonl").read_text()
    assert '"My birds:macro-f1"' in results


def test_its_classes_templates_and_counts_are_the_files(root):
    REGISTRY.register_file(root / "birds.yaml")
    data = load_dataset(f"my-birds@{root}", "test")
    assert data.classnames == ["blue tit", "great tit", "coal tit"]
    assert data.templates == ["a photo of a {}, a type of bird."]
    assert len(load_dataset(f"my-birds@{root}", "train")) == 27, "three are carved for validation"
    (root / "birds" / "test" / "a10" / "000.png").unlink()
    with pytest.raises(
        InputError, match=r"got 8 images, expected 9; is an archive half unpacked\?"
    ):
        load_dataset(f"my-birds@{root}", "test")
    write_images(root / "birds" / "test" / "a1", [0] * 9)
    with pytest.raises(
        InputError, match=r"got 14 images, expected 9; is something else in there\?"
    ):
        load_dataset(f"my-birds@{root}", "test")


def test_a_python_module_brings_a_set_and_a_reader(root, capsys):
    (root / "mine.py").write_text(
        "from robustft.data import load_dataset\n"
        "from robustft.data.registry import READERS, REGISTRY, DataSet, Part\n"
        "READERS['mine'] = lambda request: load_dataset(request.place, request.split)\n"
        "REGISTRY.register(DataSet('own', 'mine', {'test': Part(('birds',), images=9)}))\n"
    )
    arguments = ["--data-module", str(root / "mine.py"), "--data-location", str(root)]
    assert run(["data", "check", "own", *arguments]) == 0
    assert "own test: 9 images, 3 classes" in capsys.readouterr().out
    # A run of such a set is opened with the module alone, which is not imported unasked.
    folder = root / "run"
    folder.mkdir()
    (folder / "model.safetensors").touch()
    facts = f"data_location: own@{root}\ndata_module: {root}/mine.py\nmethod: ft\n"
    (folder / "config.yaml").write_text(facts)
    REGISTRY._sets.pop("own")
    assert run(["eval", "--run", str(folder)]) == 2
    assert f"comes from a module, expected --data-module {root}/mine.py" in capsys.readouterr().err


def test_an_entry_point_brings_sets_and_a_broken_one_takes_none_away(root, monkeypatch):
    class Entry:
        name, value = "x", "y:z"

        def __init__(self, found):
            self.found = found

        def load(self):
            if isinstance(self.found, Exception):
                raise self.found
            return self.found

    one = DataSet("one", "class-folders", {"test": Part(("birds/test",))})
    entries = [Entry(ImportError("broken")), Entry(str(root / "birds.yaml")), Entry([one])]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: entries)
    registry = known.Registry()
    with pytest.warns(InputWarning, match=r"entry point x = y:z of robustft\.data: broken"):
        assert {"imagenet", "my-birds", "one"} <= set(registry)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("my-birds: [", "not valid YAML"),
        ("[]", "expected names of sets with values"),
        ("x: {train: {at: a}}", "expected a mapping with a reader"),
        ("x: {reader: class-folders}", "got no split, expected one of train, val, test"),
        ("x: {reader: r, test: {at: []}}", r"test\.at: got \[\], expected a list of places"),
        ("x: {reader: r, test: {at: a, images: many}}", "images: got 'many', expected a whole"),
        ("x: {reader: r, test: {at: a, sure: 1}}", "sure: got 1, expected true or false"),
        ("x: {reader: r, metrics: [f1], test: {at: a}}", r"metrics: got \['f1'\], expected of"),
        ("x: {reader: r, templates: 3, test: {at: a}}", "templates: got 3"),
        ("X y: {reader: r, test: {at: a}}", "got the name 'X y'"),
        ("imagenet: {reader: r, test: {at: a}}", "which another set is called"),
        ("x: {reader: !!python/name:os.system '', test: {at: a}}", "not valid YAML"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, text, message):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        REGISTRY.register_file(tmp_path / "x.yaml")


def test_an_unknown_reader_names_those_there_are(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "x.yaml").write_text("x: {reader: class-folder, test: {at: a}}")
    REGISTRY.register_file(tmp_path / "x.yaml")
    with pytest.raises(InputError, match="got the reader 'class-folder', expected one of class"):
        load_dataset(f"x@{tmp_path}", "test")
