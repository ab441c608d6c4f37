"""Decoding: any image file to upright RGB, and a cache of resized pixels on disk.

Start with `read_image`, then `decode`. How batches are cut from the pixels is told in `loader`.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from sobook import files
from sobook.data.benchmarks import DECODING_ERRORS, header_sizes
from sobook.data.image_sets import ImageSet
from sobook.errors import ImageError, first_line

RAW_BUDGET = 8 * 2**30  # bytes; training images beyond it are kept as JPEG
_WORTH_SHARING = 0.1  # a subset this large has the whole set decoded, which other subsets then read
_SPARE = 1.25  # times the side asked for: resizing by less costs more than it saves
_VERSION = 3  # part of every cache key: raise it when decoding or resizing changes


def read_image(path: str | os.PathLike) -> Image.Image:
    """Decode one image file to upright 8-bit RGB, whatever it holds.

    Grayscale, palette, alpha (over white), CMYK, 16-bit and EXIF-rotated images are converted; of
    an animation the first frame is taken.

    Raises:
        ImageError: the file is missing or cannot be decoded; the message names it.
    """
    try:
        with Image.open(path) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except FileNotFoundError:
        raise _missing(path) from None
    except DECODING_ERRORS as error:
        raise ImageError(
            f"image {path} cannot be read ({first_line(error)}): replace it or leave it out."
        ) from None


def _missing(path: str | os.PathLike) -> ImageError:
    return ImageError(f"image {path} is missing: run `sobook prepare`, or restore it.")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":  # 16 bits: keep the upper eight
        upper = np.asarray(image).astype(np.int64) >> 8
        return Image.fromarray(upper.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # converting would copy


def resize(image: Image.Image, short_side: int, *, enlarge: bool = True) -> Image.Image:
    """Resize (bicubic) to a shorter side of `short_side` pixels; the aspect ratio stays.

    Args:
        image: a PIL image.
        short_side: pixels.
        enlarge: also enlarge smaller images. Otherwise they are kept as they are, and so are those
            that are up to a quarter larger.
    """
    target = _target(image.size, short_side, enlarge)
    return image if target == image.size else image.resize(target, Image.Resampling.BICUBIC)


def _target(size: tuple[int, int], short_side: int, enlarge: bool) -> tuple[int, int]:
    """(width, height) after resizing; the longer side is truncated, as in torchvision's Resize."""
    shorter = min(size)
    if not enlarge and shorter <= _SPARE * short_side:
        return size
    return short_side * size[0] // shorter, short_side * size[1] // shorter


class Pixels:
    """Decoded images of an `ImageSet`: one flat file, read through the operating system's cache.

    ``pixels[i]`` is image i as (H, W, 3) uint8. Memory in use does not grow with the number of
    images, and processes share one copy.

    Args:
        folder: of the cache, made by `decode`.
        rows: (N,) the images to show, of all that are in the folder; default: all.

    Attributes:
        shapes: (N, 2) heights and widths.
        as_jpeg: whether the images went through JPEG of quality 95.
    """

    def __init__(self, folder: Path, rows: np.ndarray | None = None):
        self.folder = Path(folder)
        with np.load(self.folder / "index.npz") as index:
            chosen = slice(None) if rows is None else rows
            self.shapes: np.ndarray = index["shapes"][chosen]
            self._starts: np.ndarray = index["starts"][:-1][chosen]
            self._ends: np.ndarray = index["starts"][1:][chosen]
            self.as_jpeg = bool(index["as_jpeg"])
        self._bytes = np.asarray(np.memmap(self.folder / "pixels.bin", np.uint8, mode="r"))

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> np.ndarray:
        flat = self._bytes[self._starts[index] : self._ends[index]]
        if self.as_jpeg:
            return np.asarray(Image.open(io.BytesIO(flat.tobytes())))
        return flat.reshape(*self.shapes[index], 3)


def decode(
    image_set: ImageSet,
    short_side: int,
    *,
    enlarge: bool = True,
    budget: float | None = None,
    progress: bool = True,
) -> Pixels:
    """Decode every image once and keep it, resized, under ``<data root>/cache``.

    A subset reads the cache of the set that it was taken from, which is decoded for it where the
    subset is at least a tenth of it: so the hold-outs of all seeds share one cache.

    Args:
        image_set: N images.
        short_side: pixels of the shorter side, as for `resize`.
        enlarge: as for `resize`.
        budget: bytes that raw pixels may take; a set that would take more is kept as JPEG of
            quality 95, about a tenth of the size, and a warning says so. Only for training: None,
            for evaluation, always keeps the exact pixels.
        progress: show a bar.

    Returns:
        The N images. A source file that has changed in size or date makes a new cache.

    Raises:
        ImageError: a file is missing or corrupt, or the disk too full; nothing is left behind.
    """
    own = _Cache(image_set, short_side, enlarge, budget)
    whole, rows = _whole(image_set)
    if rows is not None and not own.folder.exists():
        with contextlib.suppress(ImageError):  # e.g. an image outside of the subset is gone
            shared = _Cache(whole, short_side, enlarge, budget)
            if shared.folder.exists() or len(image_set) >= _WORTH_SHARING * len(whole):
                shared.make(progress)
                return Pixels(shared.folder, rows)
    own.make(progress)
    return Pixels(own.folder)


def _whole(image_set: ImageSet) -> tuple[ImageSet, np.ndarray | None]:
    """The set that a subset was first taken from, and its rows there; None for all."""
    rows = None
    while image_set.origin is not None:
        image_set, outer = image_set.origin
        rows = outer if rows is None else outer[rows]
    return image_set, rows


def fingerprint(image_set: ImageSet, *settings: object) -> str:
    """Short hash of the files of an image set (path, size, date) and of some settings."""
    digest = hashlib.sha256(json.dumps([_VERSION, *settings]).encode())
    for path in image_set.paths:
        try:
            stat = os.stat(path)
        except FileNotFoundError:
            raise _missing(path) from None
        digest.update(f"{path}|{stat.st_size}|{stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


class _Cache:
    """The decoded pixels of one set at one size: where they go, and how they are made."""

    def __init__(self, image_set: ImageSet, short_side: int, enlarge: bool, budget: float | None):
        self.image_set, self.short_side, self.enlarge = image_set, short_side, enlarge
        self.raw_bytes = _raw_bytes(image_set, short_side, enlarge)
        self.as_jpeg = budget is not None and self.raw_bytes > budget
        key = fingerprint(image_set, short_side, enlarge, self.as_jpeg)
        name = f"pixels-{image_set.name}-{image_set.split}-{key}"
        self.folder = files.data_root() / "cache" / name

    def make(self, progress: bool) -> None:
        """Decode, unless that has been done; nothing half done has the folder's name."""
        if self.folder.exists():
            return
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with files.lock(Path(f"{self.folder}.lock")):
            if self.folder.exists():  # another process has made it meanwhile
                return
            partial = self.folder.with_name(f"{self.folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
            self._check_size()
            partial.mkdir()
            try:
                self._decode_into(partial, progress)
                os.replace(partial, self.folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)

    def _check_size(self) -> None:
        where, what = self.folder.parent, f"{self.image_set.name} {self.image_set.split}"
        size = self.raw_bytes // 10 if self.as_jpeg else self.raw_bytes
        free = shutil.disk_usage(where).free
        if size > free:
            raise ImageError(
                f"the decoded images of {what} need about {size / 1e9:.1f} GB in {where}, where "
                f"{free / 1e9:.1f} GB are free: make room, or set SOBOOK_DATA to another disk."
            )
        if self.as_jpeg:
            warnings.warn(
                f"{what} is kept as JPEG for training, since its raw pixels would take "
                f"{self.raw_bytes / 1e9:.1f} GB.",
                stacklevel=4,
            )

    def _decode_into(self, folder: Path, progress: bool) -> None:
        def decoded(path: Path) -> tuple[tuple[int, int], bytes]:
            image = resize(read_image(path), self.short_side, enlarge=self.enlarge)
            return (image.height, image.width), _jpeg(image) if self.as_jpeg else image.tobytes()

        paths, shapes, starts = self.image_set.paths, [], [0]
        hidden = None if progress else True  # None hides it where there is no terminal
        bar = tqdm(total=len(paths), desc="decoding", unit="image", disable=hidden)
        pool = ThreadPoolExecutor(files.available_cores())
        with bar, pool, open(folder / "pixels.bin", "wb") as file:
            for start in range(0, len(paths), 256):  # bounds what waits in memory to be written
                for shape, data in pool.map(decoded, paths[start : start + 256]):
                    shapes.append(shape)
                    starts.append(starts[-1] + file.write(data))
                    bar.update()
        np.savez(folder / "index.npz", shapes=shapes, starts=starts, as_jpeg=self.as_jpeg)


def _raw_bytes(image_set: ImageSet, short_side: int, enlarge: bool) -> int:
    """Estimated bytes of all decoded images, from the headers of a few."""
    sizes = [_target(size, short_side, enlarge) for size in header_sizes(image_set.paths)]
    return int(np.prod(sizes, axis=1).mean() * 3 * len(image_set)) if sizes else 0


def _jpeg(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=95, subsampling=0)
    return data.getvalue()


def cache_entries(root: str | os.PathLike | None = None) -> dict[str, int]:
    """Bytes of all that lies in the cache of the data root `root`, the largest first."""
    sizes = {
        path.name: sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())
        for path in (files.data_root(root) / "cache").glob("[!.]*")
        if path.suffix != ".lock"
    }
    return dict(sorted(sizes.items(), key=lambda item: item[1], reverse=True))


def clear_cache(root: str | os.PathLike | None = None) -> int:
    """Delete the cache of the data root `root`, except what a process is writing; the bytes freed.

    All of it can be made again: it only takes time.
    """
    freed = 0
    for name, size in cache_entries(root).items():
        path = files.data_root(root) / "cache" / name
        lock = FileLock(path.with_name(f"{name.removesuffix('.partial')}.lock"))
        with contextlib.suppress(Timeout), lock.acquire(timeout=0):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            Path(lock.lock_file).unlink(missing_ok=True)
            freed += size
    return freed
