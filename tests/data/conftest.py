"""What the tests of decoding and of batches share."""

import numpy as np
import pytest
from PIL import Image

from sobook.data.image_sets import ImageSet


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path / "data"))


@pytest.fixture
def some_images(tmp_path, rng, own_cache):
    """Twelve small pictures of four classes, of different shapes; the cache is empty."""
    paths = []
    for number in range(12):
        height, width = 20 + number, 30 - number
        array = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        paths.append(save(tmp_path / f"{number}.png", array))
    return ImageSet(tuple(paths), np.arange(12) % 4, tuple("abcd"), "folder", "train")
