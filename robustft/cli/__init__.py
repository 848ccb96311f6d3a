"""`robustft <verb>`: demo, train, compare, eval, wise-ft, vrf, import, export, report …

Errors that a user can mend are one line and exit code 2; an interrupt is exit code 130.
"""

from __future__ import annotations

import sys


def main() -> None:
    """The console script."""
    from robustft.cli.app import run

    sys.exit(run())
