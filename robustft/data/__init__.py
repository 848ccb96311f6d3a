"""Datasets by name or path, and the built-in world that needs no network."""
