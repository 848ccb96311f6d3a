"""The tuner's logic with a clock that answers what it is told; no card."""

import csv
import importlib
from concurrent.futures import Executor, Future

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.card import cubins, tune
from robustft import backends
from robustft.kernels import configs

TUNED = [op for op in backends.OPS if "triton" in backends.IMPLEMENTATIONS[op]]

compiles = pytest.mark.skipif(
    backends.interpreting(), reason="the interpreter's kernels do not compile"
)
needs_interpreter = pytest.mark.skipif(
    not backends.interpreting(), reason="runs under TRITON_INTERPRET=1"
)


def runs(test):
    return pytest.mark.interpreter(needs_interpreter(test))


JOB = tune.Job("vrf", torch.float32, 600, ((5,), (3,)))


class Here(Executor):
    """A pool of this process."""

    def submit(self, function, /, *args, **options):
        done = Future()
        done.set_result(function(*args, **options))
        return done


def timing(milliseconds, shape=(5,), dropped="", **options):
    return tune.Timing(JOB, options, shape, milliseconds, dropped)


def test_candidates_are_distinct_and_include_what_the_table_has():
    for op in TUNED:
        for width in (256, 512, 1024, 4096):
            for quick in (True, False):
                found = tune.candidates(op, width, quick)
                assert len({repr(options) for options in found}) == len(found) > 1
                names = set(configs.choose(op, 90, torch.float32, width)) - {"num_stages"}
                assert all(names <= set(options) for options in found)


def test_every_job_is_a_line_of_its_own():
    for quick in (True, False):
        found = tune.jobs(quick)
        keys = [(job.op, job.dtype, configs.bucket(job.width)) for job in found]
        assert len(set(keys)) == len(keys)
        assert {job.op for job in found} == set(TUNED)


def test_the_best_geometric_mean_over_all_shapes_wins():
    a, b, c = {"num_warps": 1}, {"num_warps": 2}, {"num_warps": 4}
    times = [timing(1.0, **a), timing(9.0, (3,), **a), timing(2.0, **b), timing(2.0, (3,), **b)]
    winner, gain = tune.best(times, 2, a)
    assert winner == b
    assert gain == pytest.approx(1.5)
    # What was dropped at one shape does not count at the other.
    times += [timing(0.1, **c), timing(None, (3,), "wrong", **c)]
    assert tune.best(times, 2, a)[0] == b
    assert tune.best([timing(None, dropped="wrong", **a)], 1, a) is None


def test_the_present_line_stays_unless_another_is_clearly_faster():
    a, b = {"num_warps": 1}, {"num_warps": 2}
    near = [timing(1.02, **a), timing(1.0, **b)]
    assert tune.best(near, 1, a) == (a, 1.0)
    assert tune.best([timing(1.04, **a), timing(1.0, **b)], 1, a)[0] == b
    assert tune.best([timing(None, dropped="spills", **a), timing(1.0, **b)], 1, a)[0] == b


def test_lines_of_other_cards_stay_and_small_buckets_come_first():
    old = {
        "vrf": (((80, "float32", 512), {"num_warps": 1}), ((90, "float32", 1024), {"num_warps": 1}))
    }
    new = {
        ("vrf", (90, "float32", 1024)): {"num_warps": 8},
        ("vrf", (90, "float32", 512)): {"num_warps": 4},
        ("dive", (90, "bfloat16", 512)): {"BLOCK_R": 4, "num_warps": 4},
    }
    assert tune.merged(old, new) == {
        "dive": (((90, "bfloat16", 512), {"BLOCK_R": 4, "num_warps": 4}),),
        "vrf": (
            ((80, "float32", 512), {"num_warps": 1}),
            ((90, "float32", 512), {"num_warps": 4}),
            ((90, "float32", 1024), {"num_warps": 8}),
        ),
    }


def test_the_file_that_is_written_reads_back(tmp_path):
    lines = {"vrf": (((90, "float32", 512), {"num_warps": 4, "num_stages": 3}),)}
    text = tune.source(lines)
    found = {}
    exec(compile(text, "tuned.py", "exec"), found)
    assert found["LINES"] == lines
    assert text.startswith(tune.TUNED.read_text(encoding="utf-8").partition("LINES: ")[0])


def test_every_timing_is_in_the_csv(tmp_path):
    tune.write_csv(tmp_path / "t.csv", [timing(1.5, num_warps=2), timing(None, (), "no")], "card")
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert [row["ms"] for row in rows] == ["1.50000", ""]
    assert rows[0]["options"] == "num_warps=2"
    assert rows[1]["dropped"] == "no"


@compiles
def test_what_does_not_fit_is_dropped_with_the_reason():
    good = configs.choose("vrf", 90, torch.float32, 67)
    job = tune.Job("vrf", torch.float32, 2048, ((5,),))
    found = tune.fitting(job, [{"num_warps": 4}, {"num_warps": 1}], 90, Here())
    assert found[0] == ""
    assert "spills" in found[1]
    assert tune.fits(good, cubins.Case("vrf", "forward_rows", torch.float32, 67, 90)) == ""
    deep = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 128, "num_warps": 8, "num_stages": 5}
    case = cubins.Case("mpm_nce", "forward_tiles", torch.bfloat16, 512, 89)
    assert "shared memory" in tune.fits(deep, case)


@runs
def test_candidates_run_and_the_wrong_one_is_found(monkeypatch):
    vrf = importlib.import_module("robustft.kernels.vrf")
    plain, seen = vrf.forward, []

    def spoiled(*args):
        options = vrf.config()
        seen.append(options["num_warps"])
        return plain(*args) + (0.1 if options["num_warps"] == 4 else 0)

    monkeypatch.setattr(vrf, "forward", spoiled)
    cost = {1: 3.0, 2: 1.0, 8: 2.0}  # 2 is the table's own

    def clock(call):
        call()
        return cost[seen[-1]] / 1e3

    winners = tune.tune(
        [JOB], False, 90, "cpu", clock, _Accepting(), float("inf"), lambda timings: None
    )
    assert winners == {}
    cost[8] = 0.5
    winners = tune.tune(
        [JOB], False, 90, "cpu", clock, _Accepting(), float("inf"), lambda timings: None
    )
    assert winners == {("vrf", (90, "float32", 1024)): {"num_warps": 8}}
    assert not tune.tune([JOB], False, 90, "cpu", clock, _Accepting(), 0.0, lambda timings: None)
    found = tune.measured(JOB, [{"num_warps": n} for n in (1, 4)], "cpu", clock)
    assert {t.dropped[:5] for t in found if t.options["num_warps"] == 4} == {"wrong"}
    assert [t.milliseconds for t in found if t.options["num_warps"] == 1] == [3.0, 3.0]
    with tune.using("vrf", {"num_warps": 9}):
        assert vrf.config("vrf") == {"num_warps": 9}
    assert vrf.config is configs.config


class _Accepting(Here):
    """Takes every candidate for compiled: the interpreter cannot."""

    def submit(self, function, /, *args, **options):
        if function is tune.fits:
            function = lambda *_: ""  # noqa: E731
        return super().submit(function, *args, **options)


@runs
@pytest.mark.parametrize("op", ["mpm_nce", "dive", "nearest", "vrf", "rsa"])
def test_every_op_runs_as_the_tuner_calls_it(op):
    shapes = {"mpm_nce": (33, 17), "dive": (7,), "nearest": (5, 301), "vrf": (5,), "rsa": (35,)}
    job = tune.Job(op, torch.float32, 32, (shapes[op],))
    options = configs.choose(op, 0, torch.float32, 32)
    (found,) = tune.measured(job, [options], "cpu", lambda call: (call(), 0.5)[1])
    assert found.dropped == ""
    assert found.milliseconds == 500
