"""Decoding a whole image set: resized pixels in a cache on disk.

Start with `decode`. How one file is read is told in `pictures`, how batches are cut in `loader`.
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
from PIL import Image
from tqdm.auto import tqdm

from sobook import files
from sobook.data.image_sets import ImageSet
from sobook.data.pictures import header_sizes, missing, read_image
from sobook.errors import ImageError

RAW_BUDGET = 8 * 2**30  # bytes; training images beyond it are kept as JPEG
_WORTH_SHARING = 0.1  # a subset this large has the whole set decoded, which other subsets then read
_SPARE = 1.25  # times the side asked for: resizing by less costs more than it saves
_LONGEST = 16  # times the shorter side: what is beyond cannot come into an evaluation crop
_VERSION = 4  # part of every cache key: raise it when decoding or resizing changes


def resize(image: Image.Image, short_side: int, *, enlarge: bool = True) -> Image.Image:
    """Resize (bicubic) to a shorter side of `short_side` pixels; the aspect ratio stays.

    Args:
        image: a PIL image.
        short_side: pixels.
        enlarge: also enlarge smaller images, which is for evaluation: of one that is longer than 16
            times its shorter side, only the middle is kept. Otherwise they are kept as they are,
            and so are those that are up to a quarter larger.
    """
    width, height = image.size
    target = _target(image.size, short_side, enlarge)
    if target == image.size:
        return image
    if enlarge and max(width, height) > (longest := _LONGEST * min(width, height)):
        kept_width, kept_height = min(width, longest), min(height, longest)
        left, top = (width - kept_width) // 2, (height - kept_height) // 2
        image = image.crop((left, top, left + kept_width, top + kept_height))
    return image.resize(target, Image.Resampling.BICUBIC)


def _target(size: tuple[int, int], short_side: int, enlarge: bool) -> tuple[int, int]:
    """(width, height) after resizing; the longer side is truncated, as in torchvision's Resize."""
    shorter = min(size)
    if not enlarge and shorter <= _SPARE * short_side:
        return size
    longest = _LONGEST * short_side if enlarge else max(size)
    width, height = (min(short_side * side // shorter, longest) for side in size)
    return width, height


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


def room_needed(
    image_set: ImageSet, short_side: int, *, enlarge: bool = True, budget: float | None = None
) -> int:
    """Bytes on the disk that `decode` of the same would take, roughly; 0 where that is done."""
    own = _Cache(image_set, short_side, enlarge, budget).room()
    whole, rows = _whole(image_set)
    if own == 0 or rows is None:
        return own
    shared = _Cache(whole, short_side, enlarge, budget).room()
    cache = files.data_root() / "cache"
    there = next(path for path in (cache, *cache.absolute().parents) if path.exists())
    shares = len(image_set) >= _WORTH_SHARING * len(whole) and shared <= _free(there)
    return shared if shares or shared == 0 else own


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
            raise missing(path) from None
        digest.update(f"{path}|{stat.st_size}|{stat.st_mtime_ns}".encode(errors="surrogatepass"))
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
        with files.lock(Path(f"{self.folder}.lock")):
            if self.folder.exists():  # another process has made it meanwhile
                return
            self._check_size()
            with files.replacing(self.folder) as partial:
                partial.mkdir()
                self._decode_into(partial, progress)

    def room(self) -> int:
        """Bytes on the disk that making it takes, roughly."""
        if self.folder.exists():
            return 0
        return self.raw_bytes // 10 if self.as_jpeg else self.raw_bytes

    def _check_size(self) -> None:
        where, what = self.folder.parent, f"{self.image_set.name} {self.image_set.split}"
        size = self.room()
        free = _free(where)
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


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


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
        for path in (files.data_root(root) / "cache").glob("*")
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
        # What a killed process was making, .NAME.NUMBER-…, has the lock of NAME.
        name = name.removesuffix(".npy") if name[0] != "." else name[1:].partition(".")[0]
        lock = path.with_name(f"{name}.lock")
        with files.lock(lock):
            files.remove(path)
            lock.unlink(missing_ok=True)
            freed += size
    return freed
