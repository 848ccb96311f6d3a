"""`robustft tune`: what was measured on a card decides for `auto`, size by size.

The card is the CPU: a kernel under the name "triton" is the C++ one (card.py), or Triton's own in
the interpreter.
"""

import importlib
import json
import subprocess

import pytest
import torch

from robustft import backends, cache
from robustft.backends import proof, tuning
from robustft.backends.proof import problem, tuned, verdicts
from robustft.backends.proof.tuned import Tuned
from robustft.cli.app import run
from robustft.errors import InputWarning

from .card import CPU, Card

LINES = {"dive float32": ((1000, "reference"), (5000, "cpu"), (None, "triton"))}


@pytest.fixture
def card(monkeypatch, tmp_path, native):
    found = Card(monkeypatch, tmp_path)
    yield found
    monkeypatch.undo()
    found.forget()


def chosen(size, dtype=torch.float32):
    return backends.choose("dive", "cpu", dtype, "auto", size)


def remembered(card, lines=LINES):
    tuned.write(CPU, Tuned(lines, {}))
    card.forget()


def test_auto_goes_by_what_was_measured(card):
    assert chosen(500) == "triton"
    remembered(card)
    sizes = (1000, 1001, 5000, 5001, 1 << 62)
    assert [chosen(size) for size in sizes] == ["reference", "cpu", "cpu", "triton", "triton"]
    assert chosen(500, torch.float16) == "triton"  # which was not tuned


def test_a_kernel_that_failed_is_not_taken_for_its_speed(card):
    remembered(card)
    card.break_forward = lambda found: (found[0] * 2, *found[1:])
    with pytest.warns(InputWarning, match="did not prove itself"):
        assert chosen(9999) == "reference"


def test_a_kernel_slower_than_the_reference_on_the_proof_s_problem_is_where_it_was_faster(card):
    verdicts.write("triton", CPU, "dive triton float32", verdicts.Verdict(True, "", 0.7))
    assert chosen(9999) == "cpu"
    remembered(card)
    assert chosen(9999) == "triton"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"tuned": 3}', '{"tuned": {"lines": {"a": 1}}}'])
def test_a_damaged_file_is_as_none(card, text):
    remembered(card)
    verdicts.path(verdicts.TUNED, CPU).write_text(text)
    card.forget()
    assert chosen(500) == "triton"
    remembered(card)
    assert chosen(500) == "reference"


def test_after_a_change_of_the_sources_the_shipped_table_counts(card, monkeypatch):
    remembered(card)
    monkeypatch.setattr(verdicts, "_sources", lambda backend: "changed")
    assert chosen(500) == "triton"


def test_where_nothing_was_ever_measured_no_file_is_asked_for(card, monkeypatch):
    monkeypatch.setattr(tuned, "read", None)
    monkeypatch.setattr(backends, "_trusted", lambda *_: True)
    assert chosen(500) == "triton"
    assert not cache.place().exists()


def test_what_is_found_is_added_to_what_is_known(card):
    remembered(card)
    tuned.write(CPU, Tuned({"vrf float32": ((None, "cpu"),)}, {"vrf float32 64": {"num_warps": 2}}))
    found = tuned.read(CPU)
    assert found.lines == LINES | {"vrf float32": ((None, "cpu"),)}
    assert found.tiles == {"vrf float32 64": {"num_warps": 2}}


def test_auto_changes_between_the_sizes_that_were_measured():
    assert tuning.merged([(10, "cpu")]) == ((None, "cpu"),)
    assert tuning.merged([(100, "a"), (400, "a"), (1600, "b"), (6400, "a")]) == (
        (800, "a"), (3200, "b"), (None, "a"),
    )  # fmt: skip


def test_every_backend_that_may_be_taken_is_timed_at_every_size(card, monkeypatch):
    # By backend: seconds at 3 and at 20 rows.
    cost = {"reference": (1, 9), "cpu": (3, 3), "triton": (2, 1)}
    sizes, said = [], []

    def medians(calls, device, rounds, around=None):
        for call in calls.values():
            call()
        sizes.append(set(calls))
        return {name: cost[name][len(sizes) - 1] for name in calls}

    monkeypatch.setattr(problem, "medians", medians)
    monkeypatch.setattr(tuning, "_tiles", lambda *_: {})
    found = tuning.tune("dive", torch.float32, CPU, (20, 3), 7, say=said.append)
    assert sizes == [{"reference", "cpu", "triton"}] * 2
    assert found.lines == {"dive float32": ((54, "reference"), (None, "triton"))}  # √(21·140)
    assert said[0] == "3 rows of width 7: reference 1e+03 ms, cpu 3e+03 ms, triton 2e+03 ms"
    assert card.written() == {"dive triton float32": proof.Verdict(True)}


def test_a_kernel_that_fails_its_proof_is_not_timed(card, monkeypatch):
    card.break_backward = lambda found: (found[0] * 2, found[1])
    said = []
    found = tuning.tune("dive", torch.float32, CPU, (3,), 7, say=said.append)
    assert "triton" not in dict.fromkeys(name for _, name in found.lines["dive float32"])
    assert said[0].startswith(
        "dive triton float32: failed: 67 rows of width 512: gradient of image"
    )
    assert not card.written()["dive triton float32"].passed


def _answers(monkeypatch, answer):
    monkeypatch.setattr(subprocess, "run", answer)


def test_the_verb_remembers_what_each_process_found(card, monkeypatch, capsys):
    asked = []

    def answer(command, **_):
        asked.append(command[3:])
        found = Tuned({f"dive {command[4]}": LINES["dive float32"]}, {"dive float32 8": {"R": 1}})
        return subprocess.CompletedProcess(command, 0, f"3 rows: 1 ms\n{json.dumps(found)}\n", "")

    _answers(monkeypatch, answer)
    given = ["tune", "--op", "dive", "--dtype", "float32", "--rows", "3", "--rows", "20"]
    assert run([*given, "--width", "7"]) == 0
    assert asked == [["dive", "float32", "cpu", "7", "False", "3", "20"]]
    out = capsys.readouterr().out
    assert "  3 rows: 1 ms\n" in out
    assert "reference up to 1,000 elements, cpu up to 5,000 elements, triton\n" in out
    card.forget()
    assert chosen(500) == "reference"


def test_a_folder_that_cannot_be_written_is_said_before_the_work(card, monkeypatch, capsys):
    _answers(monkeypatch, None)
    monkeypatch.setattr(cache, "folder", lambda: cache.place() / "elsewhere")
    assert run(["tune", "--op", "dive"]) == 2
    assert "robustft cannot be written: nothing would be remembered" in capsys.readouterr().err


def _late(command, timeout, **_):
    raise subprocess.TimeoutExpired(command, timeout)


@pytest.mark.parametrize(("answer", "says"), [
    (_late, "no answer within 900 s"),
    (lambda c, **_: subprocess.CompletedProcess(c, -11, "", "a\nSegmentation fault"),
     "exit code -11: Segmentation fault"),
    (lambda c, **_: subprocess.CompletedProcess(c, 0, "nothing", ""), "exit code 0: no word"),
], ids=["hangs", "crashed", "says nothing"])  # fmt: skip
def test_an_op_that_cannot_be_tuned_leaves_auto_as_it_is(card, monkeypatch, capsys, answer, says):
    _answers(monkeypatch, answer)
    assert run(["tune", "--op", "dive", "--dtype", "float32"]) == 2
    seen = capsys.readouterr()
    assert f"  {says}\n" in seen.out
    assert "tune: dive float32 could not be tuned" in seen.err
    card.forget()
    assert chosen(500) == "triton"


def test_without_a_card_the_verb_says_why(capsys):
    if backends.status("triton").runs or backends.status("cuda").runs:
        pytest.skip("there is a card, or what plays one")
    assert run(["tune"]) == 2
    assert "found no card's kernel that runs here (triton: " in capsys.readouterr().err


needs_interpreter = pytest.mark.skipif(
    not backends.interpreting(), reason="runs under TRITON_INTERPRET=1"
)


@pytest.mark.interpreter
@needs_interpreter
def test_tiles_are_tried_in_the_interpreter(monkeypatch, tmp_path):
    from robustft.kernels import configs, launch

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache.folder.cache_clear()
    monkeypatch.setattr(tuning, "_modules", _both)
    vrf = importlib.import_module("robustft.kernels.vrf")
    plain, seen, said = vrf.forward, [], []

    def spoiled(*args):
        options = vrf.config("vrf", CPU, torch.float32, 600)
        seen.append(options["num_warps"])
        return plain(*args) * (1.1 if options["num_warps"] == 4 else 1)

    def medians(calls, device, rounds, around=None):
        for name in calls:
            if around:
                with around(name):
                    calls[name]()
        if around is None:
            return dict.fromkeys(calls, 1.0) | {"reference": 2.0}
        return {name: 1.0 if seen[-len(calls) + i] == 8 else 2.0 for i, name in enumerate(calls)}

    monkeypatch.setattr(vrf, "forward", spoiled)
    monkeypatch.setattr(problem, "medians", medians)
    found = tuning.tune("vrf", torch.float32, CPU, (2, 3), 600, say=said.append)
    assert found.tiles == {"vrf float32 1024": {"num_warps": 8}}
    assert found.lines == {"vrf float32": ((None, "triton"),)}
    assert said[0] == "vrf float32 1024: 3 of 4 tiles run, 2.00 × the table's"
    assert vrf.config is configs.config  # as it was
    tuned.write(CPU, found)
    configs.config.cache_clear()
    try:
        assert configs.config("vrf", CPU, torch.float32, 600) == {"num_warps": 8}
        assert configs.config("vrf", CPU, torch.float32, 500) == {"num_warps": 1}
        tuned.write(CPU, Tuned({}, {"vrf float32 1024": {"num_worms": 8}}))
        configs.config.cache_clear()
        assert configs.config("vrf", CPU, torch.float32, 600) == {"num_warps": 2}
    finally:
        configs.config.cache_clear()
        launch.forget()
        backends.forget()
        cache.folder.cache_clear()


def _both(op, *_):
    names = backends.IMPLEMENTATIONS[op]
    return {name: importlib.import_module(names[name]) for name in ("reference", "triton")}
