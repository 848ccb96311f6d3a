"""Kill a training run at random moments, resume it, and compare it with one that ran through.

    python -m tests.kills [--times 50] [--seed 0] [--method flyp] [--processes 1]

Each round starts a run that saves every two steps, kills it with SIGKILL after a random part of the
time that a whole run takes (of several processes under torchrun one at random: the others must end
within a minute), and resumes it, again under the threat of a kill, until it ends by
itself. Then its weights must have the bits of the whole run, and its folder the same files: nothing
of a killed run may be left over. A difference ends the command with 1.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUN = """
import os, sys, torch
from robustft.data import load_dataset, load_reference
from robustft.methods import make_method
from robustft.models import load_clip
from robustft.train import TrainConfig, fit

torch.set_num_threads(1)
torch.manual_seed(0)
clip = load_clip("robustft-tiny")
digits = load_dataset("digits", "train").subset(range(45), split="train")
train = digits.preloaded(clip.preprocess_val)
val = load_dataset("digits", "val").subset(range(30), split="val").preloaded(clip.preprocess_val)
config = TrainConfig(epochs=4, batch_size=5, lr=1e-3, warmup=3, wd=0.01, device="cpu",
    log_frequency=1, save_frequency=1, save_steps=2)
print(f"ready {os.getpid()}\\n", end="", flush=True)
fit(make_method(sys.argv[2]), clip, train, val, config, sys.argv[1], progress=False,
    templates=["a photo of the digit {}.", "a {}.", "the number {}."],
    reference=load_reference("glyphs", n=40).preloaded(clip.preprocess_val),
    resume="latest" if sys.argv[3] == "resume" else None)
"""


def start(
    folder: Path, method: str, how: str, processes: int
) -> tuple[subprocess.Popen[str], list[int]]:
    """A run once it has loaded its model, and the ids of its processes."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    script = folder.with_name("run.py")
    script.write_text(RUN)
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    process = subprocess.Popen(
        [sys.executable, *(launch if processes > 1 else []), script, folder, method, how],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    return process, [int(process.stdout.readline().split()[1]) for _ in range(processes)]


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for a run; RuntimeError if it did not end well."""
    _, errors = process.communicate(timeout=600)
    if process.returncode != 0:
        raise RuntimeError(errors)


def kill_and_resume(
    folder: Path, method: str, seconds: float, chance: random.Random, processes: int
) -> int:
    """One round; `seconds`: of a whole run. Returns how many kills met the run alive."""
    kills = 0
    while True:
        started = (folder / "config.yaml").exists() or any(folder.glob("checkpoints/step-*"))
        process, ids = start(folder, method, "resume" if started else "new", processes)
        try:
            process.wait(chance.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(chance.choice(ids), signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
        if process.returncode == -signal.SIGKILL or "Signal 9 (SIGKILL) received" in errors:
            kills += 1
            continue
        if process.returncode != 0:
            raise RuntimeError(
                f"after {kills} kills the run ended with {process.returncode}: {errors}"
            )
        return kills


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.kills",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--times", type=int, default=50, help="kills, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", default="flyp")
    parser.add_argument("--processes", type=int, default=1, help="under torchrun, if several")
    given = parser.parse_args()
    chance = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary) / "whole"
        process, _ = start(whole, given.method, "new", given.processes)
        begun = time.monotonic()
        finish(process)
        seconds = time.monotonic() - begun
        bits = (whole / "model.safetensors").read_bytes()
        kills = rounds = 0
        while kills < given.times:
            folder = Path(temporary) / f"round-{rounds}"
            folder.mkdir()
            kills += kill_and_resume(folder, given.method, seconds, chance, given.processes)
            rounds += 1
            if (folder / "model.safetensors").read_bytes() != bits:
                raise SystemExit(f"round {rounds}: the weights differ from those of a whole run")
            if files(folder) != files(whole):
                left = sorted(files(folder) ^ files(whole))
                raise SystemExit(f"round {rounds}: files differ from those of a whole run: {left}")
            print(f"round {rounds}: {kills} kills so far, equal bits, nothing left", flush=True)
    print(f"{kills} kills in {rounds} runs: every one ended with the bits of a whole run")


if __name__ == "__main__":
    main()
