"""`robustft <verb>`."""
