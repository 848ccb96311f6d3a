"""Ctrl-C ends long native work: in the midst of it, with nothing half-written handed out."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals that Windows has not")
CHILD = Path(__file__).with_name("interrupted.py")
# More under sanitizers (tests/native), where all takes so many times as long.
PATIENCE = float(os.environ.get("ROBUSTFT_PATIENCE", "1"))
# Seconds, on a busy machine; each call takes several times that if nobody ends it.
SOON = 10.0 * PATIENCE


@pytest.mark.timeout(300 * PATIENCE)
def test_ctrl_c_ends_every_long_call(native: str) -> None:
    # The slowest kernels: what is long for them is longer than on any other instruction set.
    environment = os.environ | {"ROBUSTFT_CPU_ISA": "baseline"}
    child = subprocess.Popen(
        [sys.executable, str(CHILD)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in child.stdout:
            lines.put(line.strip())
        lines.put("end")

    threading.Thread(target=read, daemon=True).start()
    try:
        ended = []
        while (line := lines.get(timeout=120 * PATIENCE)) != "end":
            began, name = line.split()
            assert began == "begin", line
            time.sleep(0.2)  # well into the work
            sent = time.monotonic()
            child.send_signal(signal.SIGINT)
            try:
                assert lines.get(timeout=SOON) == f"stopped {name}"
            except queue.Empty:
                pytest.fail(f"{name}: not ended {SOON:.0f} seconds after Ctrl-C")
            print(f"{name}: {time.monotonic() - sent:.2f} s")
            ended.append(name)
        said = child.communicate(timeout=60 * PATIENCE)[1]
    finally:
        child.kill()
    assert len(ended) == 6
    # The last one was raised again: Python ends as it does for Ctrl-C.
    assert said.strip().endswith("KeyboardInterrupt"), said
    assert child.returncode in (-signal.SIGINT, 128 + signal.SIGINT)


class _Alarm(Exception):
    pass


def test_packing_stops_in_the_midst_and_what_a_handler_raises_comes_out(native: str) -> None:
    from robustft import _native

    # One row, a million times: packing takes much longer than it takes to notice a signal.
    count, dim, untouched = 1_500_000, 64, 0x5A5A5A5A
    row, mean = torch.randn(dim), torch.empty(dim)
    panels, words, columns = _native.nearest_layout(count, dim)
    packed = torch.full((panels, words, columns), untouched, dtype=torch.int32)
    constants = torch.full((panels, 4, columns), untouched, dtype=torch.int32)

    def handler(*_: object) -> None:
        raise _Alarm

    def pack() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        outputs = mean.data_ptr(), packed.data_ptr(), constants.data_ptr()
        _native.nearest_pack(row.data_ptr(), 0, count, dim, 1, *outputs)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.raises(_Alarm):
            pack()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert bool((constants[0] != untouched).any())
    assert bool((constants[-1] == untouched).all())
