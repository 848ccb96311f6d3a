"""Ops over ranks: values and gradients are those of one process on the whole batch."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from robustft import ops
from robustft.errors import InputTypeError

WORKER = Path(__file__).with_name("worker.py")
spec = importlib.util.spec_from_file_location("worker", WORKER)
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch has no distributed")

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2}


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """What each rank found: by case, by case once more, passes over data, errors it was told."""
    folder = tmp_path_factory.mktemp("ranks")
    worker.draw_pictures(folder)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    environment["MALLOC_MMAP_THRESHOLD_"] = "1000000"  # what is freed is given back at once
    processes = [
        subprocess.Popen(
            [sys.executable, WORKER, folder, str(rank)],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(worker.WORLD)
    ]  # fmt: skip
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    return folder, [torch.load(folder / f"{rank}.pt") for rank in range(worker.WORLD)]


@pytest.fixture(scope="module")
def ranks(launched):
    return launched[1]


@pytest.mark.parametrize("name", worker.CASES)
def test_ranks_together_equal_one_process(ranks, name):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = worker.CASES[name](None, None)
    torch.set_num_threads(threads)
    is_search = "my_kth" in whole
    for what, expected in whole.items():
        found = [of_rank[0][name][what] for of_rank in ranks]
        if what.startswith("my"):
            together = torch.cat(found)
            if not is_search:  # gradients are W times, for the mean that DDP takes
                together = together / worker.WORLD
        elif what == "scale":
            together = torch.stack(found).mean(0)
        else:
            assert all(torch.equal(part, found[0]) for part in found)
            together = found[0]
        limit = TOLERANCE.get(expected.dtype, 0)
        torch.testing.assert_close(together, expected, atol=limit, rtol=limit, equal_nan=True)


def test_the_bits_are_the_same_each_time(ranks):
    for first, again, *_ in ranks:
        for name, found in first.items():
            for what, value in found.items():
                same = torch.equal(value.nan_to_num(), again[name][what].nan_to_num())
                assert same, (name, what)


def test_a_shared_pass_reads_each_image_once_and_gives_every_rank_the_bits_of_one(launched):
    folder, ranks = launched
    whole = worker.passes(str(folder), None)
    for number, one in enumerate(whole):
        for of_rank in ranks:
            assert all(map(torch.equal, of_rank[2][number]["tensors"], one["tensors"]))
    for number, size in enumerate(worker.SIZES):
        read = [index for of_rank in ranks for index in of_rank[2][number]["read"]]
        assert sorted(read) == list(range(size))


def test_every_rank_knows_of_the_damaged_images_of_all(launched):
    folder, ranks = launched
    for found in ([of_rank[2] for of_rank in ranks], [worker.passes(str(folder), None)]):
        for one in found:
            assert one[-1]["damaged"] == list(worker.DAMAGED)
            assert len(one[-1]["tensors"][2]) == worker.PICTURES - len(worker.DAMAGED)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("width", "width of the features: got 5 on rank 2, expected 6 as on rank 0"),
        (
            "dtype",
            "dtype of the features: got torch.float32 on rank 1, expected torch.float64 as on "
            "rank 0",
        ),
        ("labels", "positives: got row by row on rank 1, expected labels as on rank 0"),
        ("no pair", "image_labels or mask: got no positive pair on any rank, expected one"),
        ("exclude_self", "exclude_self: got False on rank 2, expected True as on rank 0"),
        ("own pairs", "image_labels or mask: got no positive pair on any rank, expected one"),
        ("mask", "mask: got 11 columns, expected 12, all ranks' texts"),
        ("margin", "margin: got 0.1 on rank 1, expected 0.0 as on rank 0"),
        ("smoothing", "label_smoothing: got 0.1 on rank 1, expected 0.2 as on rank 0"),
        ("ignored", "ignore_index: got 1 on rank 1, expected 0 as on rank 0"),
        ("direction", "symmetric: got False on rank 1, expected True as on rank 0"),
        ("exchange", "exchange: got ring on rank 2, expected gather as on rank 0"),
        ("scale", "logit_scale: got 11.0 on rank 1, expected 10.0 as on rank 0"),
        ("kind of scale", "logit_scale: got a tensor on rank 1, expected a number as on rank 0"),
        (
            "trained scale",
            "logit_scale.requires_grad: got False on rank 2, expected True as on rank 0",
        ),
        ("momentum", "momentum: got 0.91 on rank 1, expected 0.9 as on rank 0"),
        ("normalize", "normalize: got False on rank 2, expected True as on rank 0"),
        (
            "gradients",
            "image_features.requires_grad: got False on rank 1, expected True as on rank 0",
        ),
        ("k", "k: got 13, expected 1 to 12, the number of all ranks' rows"),
        ("other k", "k: got 2 on rank 1, expected 1 as on rank 0"),
    ],
)
def test_all_ranks_are_told_the_same(ranks, name, message):
    assert {told[name] for *_, told in ranks} == {message}


def test_a_ring_takes_the_memory_of_a_few_blocks_whatever_the_number_of_ranks(ranks):
    """Two gradients, and texts and their gradients on the way: a rank's rows four times."""
    for *_, peaks, _ in ranks:
        assert peaks["ring"] < 4.5
        assert peaks["gather"] > 5 * worker.WORLD


def test_a_loss_for_other_ranks_than_there_are_is_refused(ranks):
    for rank, (*_, told) in enumerate(ranks):
        assert told["world size"].startswith(f"world_size: got 2 (rank {rank}), expected 3")


def test_what_is_no_group_is_refused():
    x = worker.rows(3, 1)
    for call in (
        lambda group: ops.mpm_nce(x, x, group=group),
        lambda group: ops.dive_loss(x, x, x, x, x[0], group=group),
        lambda group: ops.knn(x, x, 1, group=group),
        lambda group: ops.kth_distance(x, x, 1, group=group),
    ):
        with pytest.raises(InputTypeError, match=r"group: got str, expected .*ProcessGroup"):
            call("world")


def test_a_group_of_one_is_one_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        for name in ("labels_margin_and_smoothing", "difference_vectors", "few_neighbours"):
            case = worker.CASES[name]
            found, expected = case(dist.group.WORLD, None), case(None, None)
            torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12, equal_nan=True)
        x = worker.rows(5, 1)

        @torch.compile(backend="aot_eager")  # what ranks tell each other breaks the graph
        def step(x):
            return ops.mpm_nce(x * 2, x, group=dist.group.WORLD) * 2

        torch.testing.assert_close(step(x), 2 * ops.mpm_nce(x * 2, x))
    finally:
        dist.destroy_process_group()
