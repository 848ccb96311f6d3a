"""An image folder written to disk, which no test changes."""

import numpy as np
import pytest
from PIL import Image

CLASSES = ("one", "seven", "zero")


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """root/{train,test}/<class>/*.png: stripes of three kinds, easy to tell apart."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 6)):
        for index, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 60, (24, 24, 3))
                pixels[:, index * 8 : index * 8 + 8] += 180
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    (root / "templates.txt").write_text("a {}.\nthe digit {}.\n")
    return root
