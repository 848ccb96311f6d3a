"""Plain layouts, for data sets of one's own: class folders."""

from __future__ import annotations

from robustft.data.classes import Lines, label_space, read_class_list, sorted_folders
from robustft.data.datasets import ImageDataset
from robustft.data.images import FileImages
from robustft.data.registry.files import class_folders, images_below
from robustft.data.registry.request import Request
from robustft.errors import InputError


def read_class_folders(request: Request) -> ImageDataset:
    """place/<class>/**/<image>. classnames: a list, or a text file below the root, as
    robustft.data.classes reads them; a folder's name is its class's otherwise."""
    folders = sorted_folders(class_folders(request.place))
    if not folders:
        raise InputError(
            f"{request.spec}: {request.place} has no class folders, expected "
            f"{request.place}/<class>/<image>"
        )
    given: Lines = request.options.get("classnames")
    listed = read_class_list(request.root / given if isinstance(given, str) else given)
    space = label_space(folders, listed)
    found = {name: images_below(request.place / name) for name in folders}
    label_of = {name: label for label, name in enumerate(space.classes)}
    occurring = sorted(label_of[name] for name in folders if found[name])
    return ImageDataset(
        FileImages([path for name in folders for path in found[name]]),
        [label_of[name] for name in folders for _ in found[name]],
        classnames=space.names,
        classes=space.classes,
        name=request.display,
        split=request.split,
        class_subset=None if len(occurring) == len(space.classes) else occurring,
    )
