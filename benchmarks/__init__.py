"""Microbenchmarks of the ops: `python -m benchmarks OP [--quick] [--threads N]`."""
