"""open_clip models, zero-shot heads, R-Adapter and weight-space operations."""
