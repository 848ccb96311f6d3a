"""`robustft <verb>`: demo, train, compare, eval, wise-ft, vrf, import, export, report …

Errors that a user can mend are one line and exit code 2; an interrupt is exit code 130.
"""

from __future__ import annotations

import sys


def main() -> None:
    """The console script."""
    from robustft.cli.app import run

    # An α that a pipe's encoding lacks, as Windows' code pages do, is no reason to end.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run())
