"""What lies in a run folder, for those who only look."""

from __future__ import annotations

from pathlib import Path

from robustft.cli.ending import command

CONFIG = "config.yaml"
WEIGHTS = "model.safetensors"
RESULTS = "results.jsonl"


def resume_command(folder: Path) -> str:
    """What to type to continue the run in `folder`."""
    return command("train", "--config", folder / CONFIG, "--resume", "latest")
