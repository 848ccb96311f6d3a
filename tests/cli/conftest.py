"""Image folders written to disk, which no test changes."""

import numpy as np
import pytest
from PIL import Image

CLASSES = ("one", "seven", "zero")


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """root/{train,test}/<class>/*.png: stripes of three kinds, easy to tell apart; and beside root
    others/test/{cat,dog}, four of them as a set of other classes."""
    root = tmp_path_factory.mktemp("data") / "images"
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 6)):
        for index, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 60, (24, 24, 3))
                pixels[:, index * 8 : index * 8 + 8] += 180
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    for name, of in (("cat", "one"), ("dog", "zero")):
        (root.parent / "others" / "test" / name).mkdir(parents=True)
        for number in range(2):
            picture = (root / "test" / of / f"{number}.png").read_bytes()
            (root.parent / "others" / "test" / name / f"{number}.png").write_bytes(picture)
    (root / "templates.txt").write_text("a {}.\nthe digit {}.\n")
    return root
