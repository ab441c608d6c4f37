"""Decoding a whole image set: resized pixels in a cache on disk.

Start with `decode`. `pictures` reads a single file, `loader` makes batches of decoded images.
"""

import hashlib
import io
import json
import os
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from sobook import files
from sobook.data.image_sets import ImageSet
from sobook.data.pictures import digests, header_sizes, read_image

RAW_BUDGET = 8 * 2**30  # bytes; training images beyond it are kept as JPEG
_WORTH_SHARING = 0.1  # a subset this large has the whole set decoded, which other subsets then read
_SPARE = 1.25  # times the side asked for: resizing by less costs more than it saves
_VERSION = 5  # part of every cache key: raise it when decoding or resizing changes


def resize(image: Image.Image, short_side: int, *, enlarge: bool = True) -> Image.Image:
    """Resize (bicubic) to a shorter side of `short_side` pixels; the aspect ratio stays.

    Args:
        image: a PIL image.
        short_side: pixels.
        enlarge: also enlarge smaller images, for evaluation. Otherwise they are kept as they are,
            and so are those that are up to a quarter larger.
    """
    target = _target(image.size, short_side, enlarge)
    return image if target == image.size else image.resize(target, Image.Resampling.BICUBIC)


def _target(size: tuple[int, int], short_side: int, enlarge: bool) -> tuple[int, int]:
    """(width, height) after resizing; the longer side is truncated, as in torchvision's Resize."""
    shorter = min(size)
    if not enlarge and shorter <= _SPARE * short_side:
        return size
    width, height = (short_side * side // shorter for side in size)
    return width, height


class Pixels:
    """Decoded images of an `ImageSet` in one flat file, read image by image.

    ``pixels[i]`` is image i as (H, W, 3) uint8, read-only. Memory in use does not grow with the
    number of images.

    Args:
        file: the cache, made by `decode`: its index, beside which the pixels lie.
        rows: (N,) the images to show, of all that are in the file.

    Attributes:
        shapes: (N, 2) heights and widths.
        as_jpeg: whether the images went through JPEG of quality 95.
    """

    def __init__(self, file: Path, rows: np.ndarray):
        self.file = file
        with np.load(file) as index:
            self.shapes: np.ndarray = index["shapes"][rows]
            self._starts: np.ndarray = index["starts"][rows]
            self._sizes: np.ndarray = index["starts"][rows + 1] - self._starts
            self.as_jpeg = bool(index["as_jpeg"])
        self._descriptor = os.open(file.with_suffix(".bin"), os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.band(index, 0, self.shapes[index, 0])

    def band(self, index: int, top: int, height: int) -> np.ndarray:
        """Some rows of one image, (height, W, 3): of raw pixels no others are read."""
        start, size, width = self._starts[index], self._sizes[index], self.shapes[index, 1]
        if not self.as_jpeg:
            start, size = start + top * width * 3, height * width * 3
        data = os.pread(self._descriptor, int(size), int(start))
        if self.as_jpeg:
            return np.asarray(Image.open(io.BytesIO(data)))[top : top + height]
        return np.frombuffer(data, np.uint8).reshape(height, width, 3)


def decode(
    image_set: ImageSet,
    short_side: int,
    *,
    enlarge: bool = True,
    budget: float | None = None,
    progress: bool = True,
) -> Pixels:
    """Decode every image once and keep it, resized, under ``<data root>/cache``.

    A subset reads the cache of the whole set, which is decoded for it where the subset is at least
    a tenth of it: so the hold-outs of all seeds share one cache.

    Args:
        image_set: N images.
        short_side: pixels of the shorter side, as for `resize`.
        enlarge: as for `resize`.
        budget: bytes that raw pixels may take; a set that would take more is kept as JPEG of
            quality 95, about a tenth of the size, and a warning says so. Only for training: None,
            for evaluation, always keeps the exact pixels.
        progress: show a bar.

    Returns:
        The N images. A picture that has changed makes a new cache.

    Raises:
        ImageError: a picture is missing or cannot be decoded; nothing is left behind.
    """

    def cache(images: ImageSet) -> Path:
        key = fingerprint(images, short_side, enlarge, budget)
        return files.data_root() / "cache" / f"pixels-{key}.npz"

    whole, rows = image_set, np.arange(len(image_set))
    while whole.origin is not None:
        whole, outer = whole.origin
        rows = outer[rows]
    file = cache(whole)
    if len(image_set) < _WORTH_SHARING * len(whole) and not file.exists():
        whole, rows, file = image_set, np.arange(len(image_set)), cache(image_set)
    if not file.exists():
        with files.lock(file.with_suffix(".lock")):
            if not file.exists():  # another process may have made it meanwhile
                _make(file, whole, short_side, enlarge, budget, progress)
    return Pixels(file, rows)


def fingerprint(image_set: ImageSet, *settings: object) -> str:
    """Short hash of the pictures of an image set, by their content, and of some settings."""
    content = hashlib.sha256(json.dumps([_VERSION, *settings]).encode())
    content.update("".join(digests(image_set.paths)).encode())
    return content.hexdigest()[:16]


def _make(
    file: Path, images: ImageSet, short_side: int, enlarge: bool, budget: float | None, bar: bool
) -> None:
    sizes = header_sizes(images.paths) if budget is not None else []
    kept = [np.prod(_target(size, short_side, enlarge)) for size in sizes]
    as_jpeg = bool(sizes) and np.mean(kept) * 3 * len(images) > (budget or 0)
    if as_jpeg:
        what = f"{images.name} {images.split}"
        warnings.warn(f"{what} is kept as JPEG for training, since it is large.", stacklevel=3)

    def encode(path: Path) -> tuple[tuple[int, int], bytes]:
        image = resize(read_image(path), short_side, enlarge=enlarge)
        data = io.BytesIO(image.tobytes() if not as_jpeg else b"")
        if as_jpeg:
            image.save(data, "JPEG", quality=95, subsampling=0)
        return (image.height, image.width), data.getvalue()

    shapes, starts = [], [0]
    hidden = None if bar else True  # None hides it where there is no terminal
    progress = tqdm(total=len(images), desc="decoding", unit="image", disable=hidden)
    pool, pixels = ThreadPoolExecutor(files.available_cores()), file.with_suffix(".bin")
    with files.replacing(pixels) as partial, progress, pool, open(partial, "wb") as out:
        for start in range(0, len(images), 256):  # bounds what waits in memory to be written
            for shape, data in pool.map(encode, images.paths[start : start + 256]):
                shapes.append(shape)
                starts.append(starts[-1] + out.write(data))
                progress.update()
    # Written last: where the index is, the pixels are complete.
    with files.replacing(file) as partial, open(partial, "wb") as index:
        np.savez(index, shapes=shapes, starts=starts, as_jpeg=as_jpeg)
