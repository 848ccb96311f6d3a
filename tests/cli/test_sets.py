"""Test sets as flags name them: which is which, what each is called, what it is measured as."""

import numpy as np
import pytest
from PIL import Image

from robustft.cli import homes, named, sets
from robustft.cli.commas import split, split_sets
from robustft.errors import InputError


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Folders with (where said) training data, and tables of two classes; the working folder."""
    monkeypatch.chdir(tmp_path)

    def folder(root, *splits, names=("bike", "mug")):
        for part in splits:
            for name in names:
                home = tmp_path / root / part / name
                home.mkdir(parents=True)
                for i in range(2):
                    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(home / f"{i}.png")

    def table(path):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("path,label\na.png,0\nb.png,1\nc.png,0\nd.png,1\n")
        (tmp_path / path).with_name("classnames.txt").write_text("bike\nmug\n")

    folder("amazon/images", "train", "test")
    folder("dslr/images", "test")
    folder("webcam/images", "test")
    folder("other", "test", names=("cup", "fork"))
    for path in ("birds-train.csv", "birds-test.csv", "birds-sketch-test.csv"):
        table(path)
    return folder, table


def _load(home, *texts, **flags):
    asked = named.asked_for(texts, *(flags.get(x, ()) for x in ("id", "ood", "zero_shot")))
    return sets.load_sets(asked, home, None, seed=0)


def test_sets_of_one_last_folder_name_have_names_of_their_own(images):
    loaded = _load("amazon/images", "dslr/images", "webcam/images")
    assert [d.name for d in loaded.datasets] == ["dslr/images", "webcam/images"]
    assert loaded.id_name is None
    alone = _load("amazon/images", "dslr/images")
    assert alone.datasets[0].name == "dslr/images", "whatever else is in the command"
    assert _load("amazon/images").id_name == "amazon/images"


def test_a_tables_test_twin_is_its_own_test_set(images):
    loaded = _load("birds-train.csv", "birds-test.csv", "birds-sketch-test.csv")
    assert loaded.id_name == "birds-test"
    assert _load("birds-train.csv").id_name == "birds-test", "found beside it where none is named"


@pytest.mark.parametrize(
    ("test", "train", "twins"),
    [
        ("test.csv", "train.csv", True),
        ("birds.test.csv", "birds.train.csv", True),
        ("test/list.csv", "train/list.csv", True),
        ("birds-test.csv", "birds.csv", True),
        ("birds-sketch-test.csv", "birds-train.csv", False),
        ("birds-test.tsv", "birds-train.csv", False),
        ("other/birds-test.csv", "birds-train.csv", False),
        ("dogs-test.csv", "birds-train.csv", False),
        ("digits", "digits", True),
        ("digits-noise", "digits", False),
    ],
)
def test_twins_are_called_alike_but_for_train_and_test(test, train, twins):
    assert homes.is_test_of(test, train) is twins


def test_names_and_roles_are_stated_in_the_flag_or_by_the_flag(images):
    loaded = _load(
        "amazon/images", "lab=dslr/images:ood", id=["webcam/images"], ood=["birds-test.csv"]
    )
    assert [d.name for d in loaded.datasets] == ["lab", "webcam/images", "birds-test"]
    assert loaded.roles == {"lab": "ood", "webcam/images": "id", "birds-test": "ood"}
    with pytest.raises(InputError, match="as id and as ood, expected one role"):
        _load("amazon/images", id=["dslr/images"], ood=["dslr/images"])
    with pytest.raises(InputError, match="two called 'x'"):
        _load("amazon/images", "x=dslr/images", "x=webcam/images")


def test_a_path_is_a_path_whatever_it_contains(images):
    folder, _ = images
    strange = ["a,b", 'say "x"', "cost=5$", "a|b", "{c}", "späte Äpfel", "x:ood", "x=y"]
    for name in strange:
        folder(name, "test")
        assert split(name) == [name]
        assert named.parse(name).spec == name
    assert split("a,b,digits") == ["a,b", "digits"]
    assert split("new=a,b:ood,digits") == ["new=a,b:ood", "digits"]
    assert split('"p,q",letters') == ["p,q", "letters"]
    assert named.parse("new=a,b:ood") == named.Asked("a,b", "new", "ood")
    assert split("fog:a,b") == ["fog:a,b"]
    assert split("new=fog-3:a,b:ood,fog:a,b,digits") == ["new=fog-3:a,b:ood", "fog:a,b", "digits"]
    assert split("imagenet-a@a,b,base:imagenet@a,b") == ["imagenet-a@a,b", "base:imagenet@a,b"]


def test_quotation_marks_keep_a_comma_wherever_they_stand(images):
    assert split('fog:"p,q",letters') == ["fog:p,q", "letters"]
    assert split('"new=fog:p,q:ood",new="p,q"') == ["new=fog:p,q:ood", "new=p,q"]
    assert split_sets("digits,imagenet-a,base:imagenet@nowhere,fog:letters:ood") == [
        *("digits", "imagenet-a", "base:imagenet@nowhere", "fog:letters:ood"),
    ]
    with pytest.raises(InputError, match="opens and none closes; quotation marks keep a comma"):
        split('fog:"p,q')


def test_half_of_a_name_with_a_comma_is_told_how_to_stay_whole(images, capsys):
    from robustft.cli.app import run

    assert run(["eval", "--ood", "fog:p,q"]) == 2
    assert capsys.readouterr().err == (
        "robustft: --ood: got 'fog:p' in 'fog:p,q', which is no data set; quotation marks keep a "
        "comma in a name, as in 'new=\"a,b\"'\n"
    )


def test_without_a_run_the_roles_refer_to_the_one_set_with_training_data(images):
    def home(*texts, **flags):
        asked = named.asked_for(texts, *(flags.get(x, ()) for x in ("id", "ood", "zero_shot")))
        return homes.find_home(asked, seed=0)

    assert home("dslr/images", "amazon/images") == "amazon/images"
    assert home("birds-sketch-test.csv", "birds-test.csv") == "birds-train.csv"
    assert home("digits-noise", "letters") == "digits"
    assert home("dslr/images", "webcam/images") in ("dslr/images", "webcam/images")
    assert home("dslr/images", id=["webcam/images"]) == "webcam/images"
    images[0]("second", "train", "test")
    with pytest.raises(InputError, match="any of which could be the training distribution"):
        home("amazon/images", "second")
    with pytest.raises(InputError, match="no class in common; state their roles"):
        home("dslr/images", "other")


def test_a_result_file_does_not_mix_two_sets_of_one_name(images, tmp_path):
    from robustft.evaluate.results import append_result

    images[0]("a/birds", "test")
    images[0]("b/birds", "test")
    file = tmp_path / "all.jsonl"
    line = {"dataset": "birds", "role": "ood", "split": "test", "method": "ft", "seed": 0, "n": 4}
    append_result(file, {**line, "birds:top1": 0.5, "path": str(tmp_path / "a/birds")})
    sets.check_names(_load("amazon/images", "a/birds"), [file])
    with pytest.raises(InputError, match="another name, as NAME=DATASET"):
        sets.check_names(_load("amazon/images", "b/birds"), [file])
    sets.check_names(_load("amazon/images", "other=b/birds"), [file])
