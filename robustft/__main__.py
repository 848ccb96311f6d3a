"""`python -m robustft`: the command line, as the `robustft` script."""

from robustft.cli import main

main()
