"""Processes that share a store: each shard is computed once, and a dead one is in nobody's way."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import torch

from robustft.features.store import FeatureStore

COUNT, WIDTH = 64 * 9 + 5, 16
FORK = multiprocessing.get_context("fork")


def expected():
    return (torch.arange(COUNT * WIDTH) % 997).float().reshape(COUNT, WIDTH)


def rows(root, log, seconds=0.002):
    """The rows of a slow encoder, which notes every chunk that it computes."""

    def compute(ranges):
        for chunk in ranges:
            time.sleep(seconds)
            with open(log, "a") as file:
                file.write(f"{chunk.start}\n")
            yield chunk, {"values": expected()[chunk.start : chunk.stop]}

    return FeatureStore(root).rows("image", {"of": "a test"}, COUNT, compute, data="test")


def noted(log):
    return [int(line) for line in log.read_text().split()]


def test_processes_share_the_work(store, tmp_path):
    log = tmp_path / "log"
    others = [FORK.Process(target=rows, args=(store.root, log, 0.02)) for _ in range(3)]
    for process in others:
        process.start()
    found = rows(store.root, log, 0.02)
    for process in others:
        process.join(60)
        assert process.exitcode == 0
    assert torch.equal(found[torch.arange(COUNT)], expected())
    assert sorted(noted(log)) == list(range(0, COUNT, 64))


def test_the_store_is_valid_whenever_a_process_is_killed(store, tmp_path):
    """What was finished stays, what was begun is done by the next, nothing is left over."""
    chance, log, kills = random.Random(0), tmp_path / "log", 0
    while True:
        # Ten chunks of 10 ms: several processes die, however fast the machine is; and on one that
        # is slow each lives longer than the one before, so that an end is reached.
        process = FORK.Process(target=rows, args=(store.root, log, 0.01))
        process.start()
        process.join(chance.uniform(0.005, 0.03) * 1.05**kills)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
        if process.exitcode == 0:
            break
        assert kills < 200
    assert kills >= 3
    before = len(noted(log))
    found = rows(store.root, log)
    assert len(noted(log)) == before
    assert torch.equal(found[torch.arange(COUNT)], expected())
    (entry,) = store.entries()
    names = {path.name for path in entry.folder.iterdir() if path.suffix != ".lock"}
    assert names == {"entry.json", *(f"{number:05d}.safetensors" for number in range(10))}


def test_who_waits_for_a_process_that_dies_does_its_work(store, tmp_path):
    log = tmp_path / "log"
    slow = FORK.Process(target=rows, args=(store.root, log, 60))
    slow.start()
    while not list(store.root.glob("*/00000.lock")):
        time.sleep(0.01)
    quick = FORK.Process(target=rows, args=(store.root, log))
    quick.start()
    quick.join(1.5)
    assert quick.exitcode is None  # all but the first shard are there
    os.kill(slow.pid, signal.SIGKILL)
    quick.join(60)
    assert quick.exitcode == 0
    slow.join()
    assert torch.equal(rows(store.root, log)[torch.arange(COUNT)], expected())
    assert sorted(noted(log)) == list(range(0, COUNT, 64))


MEMORY = """
import re, sys, torch
from pathlib import Path
from robustft.features.rows import Rows

def own():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

paths = sorted(Path(sys.argv[1]).glob("*.safetensors"))
rows = Rows(paths, 4096 * len(paths), 4096)
assert rows[torch.tensor([5, 4096 * len(paths) - 1])].tolist()[0][0] == 5.0
before = own()
assert rows.check() == []
for start in range(0, len(rows), len(rows) // 60):
    rows[torch.randint(len(rows), (512,))]
print(own() - before)
"""


def test_memory_does_not_grow_with_the_rows(tmp_path):
    """200 MB of rows, all of them checked and 30,000 of them drawn, in less than 8 MB."""
    from robustft.features.rows import KEY, VALUES
    from robustft.models.tensor_files import write_tensors

    shard = torch.arange(4096.0).reshape(-1, 1).expand(-1, 512).contiguous()
    write_tensors(tmp_path / "00000.safetensors", {VALUES: shard}, KEY, {})
    raw = (tmp_path / "00000.safetensors").read_bytes()
    for number in range(1, 24):
        (tmp_path / f"{number:05d}.safetensors").write_bytes(raw)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)],
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(p for p in sys.path if p)),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 8
