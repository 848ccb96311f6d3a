"""Image folders: root/{train,val,test}/<class>/*, with classnames.txt and templates.txt if wanted.

classnames.txt: "folder<TAB>name" a line, or one name a line in the folders' order, in which numbers
count as numbers (9 before 10). Without it the folders' names are the classes' names. templates.txt:
one prompt with "{}" a line.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from robustft.data.classes import Lines, label_space, read_class_list, sorted_folders
from robustft.data.datasets import ImageDataset
from robustft.data.images import FileImages
from robustft.data.pictures import IMAGE_SUFFIXES
from robustft.data.templates import Templates, read_templates
from robustft.errors import InputError

D = TypeVar("D", bound=ImageDataset)
SPLITS = ("train", "val", "test")
_CARVED = 7  # first word of the seed that carves a validation split
# macOS's archives, Synology's and QNAP's previews and bins, Windows' bin, ext4's repairs.
_SYSTEM = {"__MACOSX", "@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN", "lost+found"}


def load_folder(
    root: str | Path,
    split: str,
    *,
    seed: int = 0,
    val_fraction: float = 0.1,
    classnames: Lines = None,
    templates: Templates = None,
) -> ImageDataset:
    """One split of an image folder.

    A missing val/ is carved from train/, stratified by class and decided by `seed`; train then
    leaves those images out. `classnames` (a list or a text file) either renames the classes, in the
    folders' order, or, when it holds every class found here, gives the label space: a test folder
    with some of the training classes gets the training labels and `class_subset`
    (robustft.data.classes). A class is its folder: names may repeat.
    Errors: InputError for a missing folder or split, an empty class, names that do not match.
    """
    root = Path(root)
    if split not in SPLITS:
        raise InputError(f"split: got {split!r}, expected one of {', '.join(SPLITS)}")
    if not root.is_dir():
        raise InputError(f"image folder not found: {root}")
    carve = split != "test" and not (root / "val").is_dir()
    source = "train" if carve else split
    if not (root / source).is_dir():
        present = [name for name in SPLITS if (root / name).is_dir()]
        raise InputError(
            f"{root} has no {source} split: expected {root / source}/<class>/<image>, "
            f"found {', '.join(present) if present else 'none of train, val, test'}"
        )

    folders, paths, rows = _scan(root / source)
    reference = _class_folders(root / "train") if (root / "train").is_dir() else folders
    strangers = sorted(set(folders) - set(reference))
    if strangers:
        raise InputError(f"{root / source} has the class {strangers[0]!r}, which train/ has not")
    space = label_space(reference, read_class_list(_beside(root, "classnames")))
    space = label_space(reference, read_class_list(classnames), named=space)
    label_of = {folder: label for label, folder in enumerate(space.classes)}
    occurring = sorted(label_of[folder] for folder in folders)
    dataset = ImageDataset(
        FileImages(paths),
        [label_of[folder] for folder in rows],
        classnames=space.names,
        classes=space.classes,
        templates=read_templates(templates or _beside(root, "templates")),
        name=root.resolve().name,
        split=split,
        class_subset=None if len(occurring) == len(space.classes) else occurring,
    )
    return carve_validation(dataset, split, seed, val_fraction) if carve else dataset


def carve_validation(dataset: D, split: str, seed: int, val_fraction: float) -> D:
    """The train or val part of `dataset`: disjoint, covering, stratified, decided by `seed`; of
    images without classes a part of all."""
    if not 0 < val_fraction < 1:
        raise InputError(f"val_fraction must lie between 0 and 1, got {val_fraction}")
    parts = dataset.carved((1 - val_fraction, val_fraction), (_CARVED, seed))
    rows = parts[("train", "val").index(split)]
    if not len(rows):
        raise InputError(
            f"{dataset.name} has too few images to carve a validation split: every class has one"
        )
    part: D = dataset.subset(rows, split=split)  # type: ignore[assignment]
    return part


def _beside(root: Path, stem: str) -> Path | None:
    path = root / f"{stem}.txt"
    return path if path.is_file() else None


def _class_folders(folder: Path) -> list[str]:
    return sorted_folders(p.name for p in folder.iterdir() if p.is_dir() and not _hidden(p, folder))


def _scan(folder: Path) -> tuple[list[str], list[Path], list[str]]:
    """Class folders, image paths, and each image's class folder, all in sorted order."""
    folders = _class_folders(folder)
    if not folders:
        raise InputError(f"{folder} has no class folders: expected {folder}/<class>/<image>")
    paths: list[Path] = []
    rows: list[str] = []
    for name in folders:
        found = sorted(
            p
            for p in (folder / name).rglob("*")
            if p.suffix.lower() in IMAGE_SUFFIXES and not _hidden(p, folder) and p.is_file()
        )
        if not found:
            raise InputError(
                f"class folder {folder / name} holds no image "
                f"({', '.join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))})"
            )
        paths += found
        rows += [name] * len(found)
    return folders, paths, rows


def is_hidden(name: str) -> bool:
    """Whether a name begins with a dot (.ipynb_checkpoints, ._a.jpg), or is that of a folder that
    systems make beside the user's own."""
    return name.startswith(".") or name in _SYSTEM


def _hidden(path: Path, below: Path) -> bool:
    """Whether a part of the path below the folder is hidden."""
    return any(map(is_hidden, path.relative_to(below).parts))
