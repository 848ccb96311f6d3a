"""Tools for a card that is there, or is not: `python -m benchmarks TOOL` (docs/gpu.md)."""
