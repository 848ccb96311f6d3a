"""Which process of a launch this is, before anything has been set up."""

from __future__ import annotations

import hashlib
import os
from datetime import timedelta

from robustft.optional import require


def rank() -> int:
    """This process's number under torchrun or accelerate launch; 0 without."""
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """How many processes the launch has."""
    return int(os.environ.get("WORLD_SIZE", 1))


def main() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


def join(device: str) -> str:
    """Join the launch's group of processes; this process's own device of the kind `device`. Of one
    process: `device`."""
    if world() == 1:
        return device
    state = require("accelerate", extra="train").PartialState(cpu=device == "cpu")
    return str(state.device)


def first_to_say(message: str) -> bool:
    """Whether no other process of the launch has said `message`. torchrun's own store knows; where
    it cannot be asked each process speaks for itself."""
    if world() == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    key = f"robustft/{attempt}/{hashlib.sha256(message.encode()).hexdigest()}"
    import torch.distributed as dist

    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=10))
        return bool(store.add(key, 1) == 1)
    except (KeyError, ValueError, RuntimeError):
        return True


def part() -> None:
    """Leave the group of processes, if it was joined."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def lost_another(error: BaseException) -> bool:
    """Whether `error` only says that another process has ended, whose own message says why."""
    import torch.distributed as dist

    if isinstance(error, dist.DistError):  # NCCL's, and the store's
        return True
    return isinstance(error, RuntimeError) and "gloo/transport" in str(error)
