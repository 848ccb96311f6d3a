"""`robustft <verb>`: demo, train, eval, wise-ft, vrf, report and doctor.

Errors that a user can mend are one line and exit code 2; an interrupt is exit code 130.
"""

from __future__ import annotations

import sys


def main() -> None:
    """The console script. typer comes with the `train` extra, so it is imported here."""
    from robustft.extras import MissingExtraError

    try:
        from robustft.cli.app import run
    except ModuleNotFoundError as error:
        if error.name in ("typer", "yaml"):
            sys.exit("robustft: the command line needs: pip install 'robustft[train]'")
        raise
    except MissingExtraError as error:
        sys.exit(f"robustft: {error}")
    sys.exit(run())
