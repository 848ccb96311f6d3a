"""One kernel's proof in a process of its own, which may hang or crash: a verdict in JSON.

python -m robustft.cli.one_proof OP BACKEND DTYPE DEVICE
"""

from __future__ import annotations

import json
import sys

import torch

from robustft import backends
from robustft.backends import proof


def main(op: str, backend: str, dtype: str, device: str) -> None:
    modules = backends.IMPLEMENTATIONS[op][backend], backends.IMPLEMENTATIONS[op]["reference"]
    found = proof.prove(op, backend, modules, torch.device(device), getattr(torch, dtype))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
