"""Microbenchmarks of the ops: `python -m benchmarks OP`, told in docs/performance.md.

One file an op says what is compared, at which shapes and against which truth; harness.py measures,
probes.py finds what the machine can do, report.py and plot.py show the rows in results/.
"""
