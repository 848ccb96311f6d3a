"""`robustft` alone: the tasks with a command each, and the next step in the folder it is called in.

Neither torch nor an optional package is imported, and no file is opened.
"""

from __future__ import annotations

from pathlib import Path

from robustft import __version__
from robustft.cli.ending import command
from robustft.cli.run_folder import CONFIG, WEIGHTS, resume_command

TASKS = {
    "see it work in minutes": "robustft demo",
    "fine-tune on your images": "robustft init --data-location data",
    "evaluate a checkpoint": "robustft eval --model ViT-B-16 --pretrained FILE --id data",
    "make a fine-tuned checkpoint robust without training": (
        "robustft vrf --zeroshot openai --finetuned FILE --data-location data"
    ),
    "compare methods": (
        "robustft compare --methods ft,r-adapter --pretrained openai --data-location data"
    ),
    "use the ops in your code": (
        "python -c 'from robustft.losses import CLIPLoss; help(CLIPLoss)'"
    ),
}


def page() -> str:
    """What `robustft` prints, in at most 24 lines."""
    lines = [f"robustft {__version__}: fine-tune CLIP, and keep what it could do before", ""]
    for task, typed in TASKS.items():
        lines += [f"  {task}", f"      {typed}"]
    lines += ["", "here:"]
    for found, typed in _here(Path()):
        lines += [f"  {found}", f"      {typed}"]
    lines += ["", "robustft --help lists all commands, robustft VERB --help a command's options"]
    return "\n".join(lines)


def _here(folder: Path) -> list[tuple[str, str]]:
    """What is found in a folder and what comes next, three at most."""
    runs = [path.parent for path in folder.glob(f"logs/*/{CONFIG}")]
    ended = [run for run in runs if (run / WEIGHTS).is_file()]
    begun = sorted(set(runs) - set(ended), key=lambda run: run.stat().st_mtime)
    classes = [x for x in folder.glob("data/train/*") if x.is_dir() and not x.name.startswith(".")]
    found = []
    if begun:
        found.append((f"logs: runs that have not ended: {len(begun)}", resume_command(begun[-1])))
    if ended:
        found.append((f"logs: finished runs: {len(ended)}", "robustft report --results-db logs"))
    if (folder / "run.yaml").is_file():
        found.append(("run.yaml: options of a run", "robustft train --config run.yaml"))
    elif classes:
        found.append((f"data/train: classes: {len(classes)}", command("init")))
    return found or [("nothing to go on with", "robustft demo")]
