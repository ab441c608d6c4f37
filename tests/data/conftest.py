"""Pictures that several tests of the data layer need."""

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sobook.data.image_sets import ImageSet


def save(path: Path, array: np.ndarray, **options) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def picture(path: Path, size=(8, 6)) -> Path:
    """A picture of one color, which its path makes: no two are copies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    color = tuple(hashlib.sha256(os.fsencode(path)).digest()[:3])
    Image.new("RGB", size, color).save(path)
    return path


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "cache"


@pytest.fixture
def good(tmp_path, own_cache) -> Path:
    """A good folder: eight classes of two pictures."""
    for name in "abcdefgh":
        for i in range(2):
            picture(tmp_path / "pictures" / name / f"{i}.png")
    return tmp_path / "pictures"


@pytest.fixture
def some_images(tmp_path, rng, own_cache) -> ImageSet:
    """Twelve small pictures of four classes, of different shapes; the cache is empty."""
    paths = []
    for number in range(12):
        height, width = 20 + number, 30 - number
        array = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        paths.append(save(tmp_path / f"{number}.png", array))
    return ImageSet(tuple(paths), np.arange(12) % 4, tuple("abcd"), "folder", "train")


@pytest.fixture
def opened() -> Iterator[list[Path]]:
    """Paths of all files that are opened while the test runs."""
    paths, recording = list[Path](), [True]

    def note(event: str, args: tuple) -> None:
        if event == "open" and recording and isinstance(args[0], str | bytes):
            paths.append(Path(os.fsdecode(args[0])))

    sys.addaudithook(note)  # cannot be removed again
    yield paths
    recording.clear()
