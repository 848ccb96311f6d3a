"""Flags, YAML and defaults resolve to one configuration; anything unknown is an error."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from robustft.cli.options import method_options, resolve, setting, to_yaml
from robustft.cli.train_options import TrainOptions
from robustft.errors import InputError


@dataclass(frozen=True)
class Options:
    count: int = setting(3, "A number.")
    rate: float = setting(0.5, "A rate.")
    names: list[str] = setting([], "Names.")
    mode: str = setting("fast", "A mode.", choices=("fast", "slow"))
    folder: Path | None = setting(None, "A folder.")
    quiet: bool = setting(False, "Say nothing.")


def _file(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_a_flag_beats_the_file_which_beats_the_default(tmp_path):
    path = _file(tmp_path, "count: 7\nrate: 2\n")
    found = resolve(Options, path, {"count": 9, "rate": None})
    assert (found.count, found.rate, found.mode) == (9, 2.0, "fast")
    assert isinstance(found.rate, float)


def test_dashes_and_underscores_are_one_spelling(tmp_path):
    found = resolve(TrainOptions, _file(tmp_path, "batch-size: 8\ngrad_clip_norm: 1\n"), {})
    assert (found.batch_size, found.grad_clip_norm) == (8, 1.0)


def test_lists_come_from_yaml_lists_repeated_flags_and_commas(tmp_path):
    assert resolve(Options, _file(tmp_path, "names: [a, b]"), {}).names == ["a", "b"]
    assert resolve(Options, None, {"names": ["a,b", "c"]}).names == ["a", "b", "c"]


def test_the_written_configuration_reads_back_the_same(tmp_path):
    options = resolve(
        TrainOptions, None, {"method": "dive", "option": ["lambda_=3"], "results_db": Path("x/y")}
    )
    path = _file(tmp_path, to_yaml(options))
    assert resolve(TrainOptions, path, {}) == options


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cuont: 3", r"unknown key 'cuont'; did you mean count\?"),
        ("zzz: 3", "unknown key 'zzz'; known: count, rate"),
        ("count: many", "--count: got 'many', expected a whole number"),
        ("count: 1.5", "--count: got 1.5, expected a whole number"),
        ("count: true", "--count: got True, expected a whole number"),
        ("count:", "--count: got nothing, expected a value"),
        ("mode: medium", "--mode: got 'medium', expected one of fast, slow"),
        ("quiet: 1", "--quiet: got 1, expected true or false"),
        ("- count", "got a list, expected keys with values"),
        ("count: [", "not valid YAML"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        resolve(Options, _file(tmp_path, text), {})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"--config: got .*absent\.yaml, expected a file"):
        resolve(Options, tmp_path / "absent.yaml", {})


def test_method_options_are_read_as_yaml_values():
    found = method_options(["rank=4", "scale=0.1", "learn-scale=false", "loss=infonce"])
    assert found == {"rank": 4, "scale": 0.1, "learn_scale": False, "loss": "infonce"}
    with pytest.raises(InputError, match="got 'rank', expected KEY=VALUE"):
        method_options(["rank"])


def test_the_defaults_are_valid_yaml():
    assert yaml.safe_load(to_yaml(TrainOptions()))["val_fraction"] == 0.1


def test_numbers_in_a_list_take_commas_and_spellings_of_every_kind(tmp_path):
    @dataclass(frozen=True)
    class Lists:
        alpha: list[float] = setting([0.5], "Weights.")
        count: int = setting(1, "A number.")

    assert resolve(Lists, None, {"alpha": ["0,0.5", "1e0"]}).alpha == [0.0, 0.5, 1.0]
    assert resolve(Lists, _file(tmp_path, "alpha: [0, 1E-1]\ncount: 1e3"), {}).alpha == [0.0, 0.1]
    assert resolve(Lists, _file(tmp_path, "count: 1e3"), {}).count == 1000
    with pytest.raises(InputError, match="--alpha: got 'half', expected a number"):
        resolve(Lists, None, {"alpha": ["half"]})


def test_numbers_of_method_options_are_numbers():
    found = method_options(["lambda_=1e3", "momentum=9e-1", "scale=.5", "loss=1e", "margin=5E-2"])
    assert found == {
        **{"lambda_": 1000.0, "momentum": 0.9, "scale": 0.5, "loss": "1e", "margin": 0.05}
    }


@pytest.mark.parametrize(
    "text",
    [
        "name: !!python/object/apply:os.system ['touch owned']",
        "!!python/object/new:subprocess.Popen [[touch, owned]]",
        "count: !!python/name:os.system",
    ],
)
def test_yaml_that_would_run_code_is_refused_in_one_line(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="not valid YAML") as refused:
        resolve(Options, _file(tmp_path, text), {})
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "owned").exists()
    with pytest.raises(InputError):
        method_options([f"rank={text.partition(': ')[2] or text}"])


def test_a_file_with_a_byte_order_mark_is_read_and_one_of_another_code_page_is_named(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xef\xbb\xbfcount: 4\n")
    assert resolve(Options, path, {}).count == 4
    path.write_bytes("mode: fast\nnames: [sp\xe4t]\n".encode("cp1252"))
    with pytest.raises(InputError, match=r"run\.yaml, line 2: .*not UTF-8"):
        resolve(Options, path, {})
