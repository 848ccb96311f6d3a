"""One op and dtype tuned in a process of its own, which may hang or crash: lines, then JSON.

python -m robustft.cli.one_tuning OP DTYPE DEVICE WIDTH THOROUGH ROWS…     (WIDTH 0: the op's own)
"""

from __future__ import annotations

import json
import sys

import torch

from robustft.backends import tuning


def main(op: str, dtype: str, device: str, width: str, thorough: str, *rows: str) -> None:
    found = tuning.tune(
        op,
        getattr(torch, dtype),
        torch.device(device),
        [int(count) for count in rows],
        int(width) or None,
        quick=thorough != "True",
        say=lambda line: print(line, flush=True),
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
