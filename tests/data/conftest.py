"""What tests of the data share."""

import pytest
from PIL import Image

from robustft.data.corruptions import weather


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """Five photographs of frost, each of one grey."""
    files = [tmp_path / name for name in weather._FROST]
    for number, path in enumerate(files, 1):
        Image.new("RGB", (260, 240), (40 * number,) * 3).save(path, quality=100)
    monkeypatch.setattr(weather, "photographs", lambda: files)
    return files
