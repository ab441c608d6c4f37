"""From files to batches: decode once, keep the pixels on disk, augment, load.

The random numbers of a batch come from (seed, epoch, number of the batch) alone, so batches do not
depend on the number of workers, nor on where a training run was picked up again.
"""

import hashlib
import io
import json
import os
import shutil
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.transforms import v2
from tqdm.auto import tqdm

from sobook import files
from sobook.data.image_sets import ImageSet
from sobook.errors import ImageError, SobookError

RAW_BUDGET = 8 * 2**30  # bytes; beyond it the pixel cache holds JPEG instead of raw pixels
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
        raise ImageError(f"image {path} is missing: run `sobook prepare`, or restore it.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ImageError(
            f"image {path} cannot be read ({reason}): replace it or leave it out."
        ) from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":  # 16 bits: keep the upper eight
        upper = np.asarray(image).astype(np.int64) >> 8
        return Image.fromarray(upper.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # converting would copy


class Pixels:
    """Decoded images of an `ImageSet`: one flat file, read through the operating system's cache.

    ``pixels[i]`` is image i as (H, W, 3) uint8. Memory in use does not grow with the number of
    images, and processes share one copy.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        with np.load(self.folder / "index.npz") as index:
            self.shapes = index["shapes"]  # (N, 2) height and width
            self._starts = index["starts"]  # (N + 1,) where each image begins
            self.as_jpeg = bool(index["as_jpeg"])
        self._bytes = None  # opened on first use, anew in each process

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> np.ndarray:
        if self._bytes is None:
            self._bytes = np.asarray(np.memmap(self.folder / "pixels.bin", np.uint8, mode="r"))
        flat = self._bytes[self._starts[index] : self._starts[index + 1]]
        if self.as_jpeg:
            return np.asarray(Image.open(io.BytesIO(flat)))
        return flat.reshape(*self.shapes[index], 3)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_bytes": None}


def pixels(
    image_set: ImageSet,
    short_side: int,
    *,
    enlarge: bool = True,
    budget: int = RAW_BUDGET,
    progress: bool = True,
) -> Pixels:
    """Decode every image once and keep it, resized, under ``<data root>/cache``.

    Args:
        image_set: N images.
        short_side: pixels of the shorter side after bicubic resizing; the aspect ratio stays.
        enlarge: also enlarge images that are smaller; otherwise they are kept as they are, and so
            are those that are up to a quarter larger.
        budget: bytes that raw pixels may take; a set that would take more is kept as JPEG of high
            quality, about a tenth of the size but slower to read.
        progress: show a bar while decoding, and say beforehand where a cache of more than 1 GB
            goes.

    Returns:
        `Pixels`. A second call with the same files and settings reads the cache; a source file
        that has changed in size or date makes a new one.

    Raises:
        ImageError: a file is missing or corrupt, or the disk too full; nothing is left behind.
    """
    raw = _raw_size(image_set, short_side, enlarge)
    as_jpeg = raw > budget
    key = fingerprint(image_set, short_side, enlarge, as_jpeg)
    folder = files.data_root() / "cache" / f"pixels-{image_set.name}-{image_set.split}-{key}"
    partial = folder.with_name(f"{folder.name}.partial")
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.exists():  # else another process has made it meanwhile
                _make_cache(image_set, short_side, enlarge, raw, as_jpeg, partial, progress)
                os.replace(partial, folder)
    return Pixels(folder)


def _make_cache(image_set, short_side, enlarge, raw, as_jpeg, partial: Path, progress) -> None:
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    _announce(image_set, raw, as_jpeg, partial.parent, progress)
    partial.mkdir()
    try:
        _decode_all(image_set, short_side, enlarge, as_jpeg, partial, progress)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _raw_size(image_set: ImageSet, short_side: int, enlarge: bool) -> int:
    """Estimated bytes of all decoded images, from the headers of a few."""
    sample = np.linspace(0, len(image_set) - 1, min(len(image_set), 64)).astype(int)
    areas = []
    for index in sample:
        try:
            with Image.open(image_set.paths[index]) as image:
                width, height = _target(image.size, short_side, enlarge)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue  # reported with its path when it is decoded
        areas.append(width * height)
    return int(np.mean(areas) * 3 * len(image_set)) if areas else 0


def _announce(image_set, raw: int, as_jpeg: bool, folder: Path, progress: bool) -> None:
    """Say where a large cache goes, and refuse it where it does not fit."""
    size = raw // 10 if as_jpeg else raw
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ImageError(
            f"the decoded images of {image_set.name} {image_set.split} need about "
            f"{size / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are free: make room, or "
            "set SOBOOK_DATA to another disk."
        )
    if progress and size > 1e9:
        kind = "as JPEG" if as_jpeg else "raw"
        print(f"keeping {len(image_set):,} decoded images {kind}, {size / 1e9:.1f} GB, in {folder}")


def fingerprint(image_set: ImageSet, *settings) -> str:
    """Short hash of the files of an image set (path, size, date) and of some settings."""
    digest = hashlib.sha256(json.dumps([_VERSION, *settings]).encode())
    for path in image_set.paths:
        try:
            stat = os.stat(path)
        except FileNotFoundError:
            raise ImageError(
                f"image {path} is missing: run `sobook prepare`, or restore it."
            ) from None
        digest.update(f"{path}|{stat.st_size}|{stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _decode_all(image_set, short_side, enlarge, as_jpeg, folder, progress) -> None:
    def decode(path) -> tuple[tuple[int, int], bytes]:
        image = read_image(path)
        if (size := _target(image.size, short_side, enlarge)) != image.size:
            image = image.resize(size, Image.Resampling.BICUBIC)
        return (image.height, image.width), _encoded(image) if as_jpeg else image.tobytes()

    shapes, lengths = [], []
    bar = tqdm(
        total=len(image_set), desc="decoding", unit="image", disable=None if progress else True
    )
    with ThreadPoolExecutor(os.cpu_count()) as pool, open(folder / "pixels.bin", "wb") as file, bar:
        for start in range(0, len(image_set), 256):  # bounds what waits in memory to be written
            for shape, data in pool.map(decode, image_set.paths[start : start + 256]):
                shapes.append(shape)
                lengths.append(file.write(data))
                bar.update()
    starts = np.concatenate([[0], np.cumsum(lengths)])
    np.savez(folder / "index.npz", shapes=shapes, starts=starts, as_jpeg=as_jpeg)


def _encoded(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=95, subsampling=0)
    return data.getvalue()


def _target(size: tuple[int, int], short_side: int, enlarge: bool) -> tuple[int, int]:
    """Width and height with the shorter side as wanted; the longer is truncated, as torchvision's
    Resize does."""
    shorter = min(size)
    if not enlarge and shorter <= _SPARE * short_side:
        return size
    return short_side * size[0] // shorter, short_side * size[1] // shorter


class TrainingBatches(torch.utils.data.Dataset):
    """The batches of one epoch, augmented: item i is (images, labels) of batch i.

    Args:
        source: decoded images.
        labels: (N,) int64.
        image_size: side of the random crops.
        batch_size: B; every batch is whole, the rest of the epoch is left over.
        images_per_class: 0 draws uniformly without replacement; m ≥ 2 puts m images each of B / m
            classes into a batch.
        crop_scale: least share of the area a random crop keeps.
        seed, epoch: choose order and crops, together with i.
        rows: the part of every batch to make, where several processes share a batch.

    Batch i is images (B, 3, image_size, image_size) uint8 and labels (B,) int64, augmented as in
    the literature: random resized crop (bicubic) and horizontal flip.
    """

    def __init__(
        self,
        source: Pixels,
        labels: np.ndarray,
        *,
        image_size: int,
        batch_size: int,
        images_per_class: int = 0,
        crop_scale: float = 0.2,
        seed: int = 0,
        epoch: int = 0,
        rows: slice = slice(None),
    ):
        self.source, self.labels, self.rows = source, np.asarray(labels), rows
        rng = np.random.default_rng([seed, epoch])
        draw = _balanced_plan if images_per_class else _uniform_plan
        self.plan = draw(rng, self.labels, batch_size, images_per_class)  # (batches, B)
        self.seed = seed, epoch
        self._crop = v2.RandomResizedCrop(image_size, scale=(crop_scale, 1.0))

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        return self.cut(number, self.draw(number))

    def draw(self, number: int) -> list[tuple[dict[str, int], bool]]:
        """Where each image of a batch is cut, and whether it is mirrored: all that is random."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global generator
            torch.default_generator.manual_seed(mix_seeds(*self.seed, number))
            return [
                (self._crop.make_params([_shape_alone(shape)]), bool(torch.rand(1) < 0.5))
                for shape in self.source.shapes[self.plan[number]]
            ]

    def cut(self, number: int, drawn: list[tuple[dict[str, int], bool]]) -> tuple[Tensor, Tensor]:
        """The batch, as v2.RandomResizedCrop and v2.RandomHorizontalFlip make it, to the bit.

        Draws nothing, so several threads may do it at once.
        """
        rows = self.plan[number][self.rows]
        images = torch.empty(len(rows), 3, *self._crop.size, dtype=torch.uint8)
        for image, row, (box, mirror) in zip(images, rows, drawn[self.rows], strict=True):
            part = _resized_crop(self.source[row], **box, size=self._crop.size)
            image.copy_(part.flip(-1) if mirror else part)
        return images, torch.from_numpy(self.labels[rows])


def _shape_alone(shape: np.ndarray) -> Tensor:
    """What torchvision asks the size of an image of; it holds no pixels."""
    return torch.empty(3, *shape.tolist(), device="meta")


def _resized_crop(image: np.ndarray, top, left, height, width, size) -> Tensor:
    """(3, *size) uint8. Only the part that is cut out is read: large pictures cost no more."""
    part = image[top : top + height, left : left + width].copy()  # torch refuses read-only memory
    part = torch.from_numpy(part).permute(2, 0, 1)[None]  # (1, 3, height, width)
    return nn.functional.interpolate(part, size=size, mode="bicubic", antialias=True)[0]


def _uniform_plan(rng, labels, batch_size, _):
    if batch_size > len(labels):
        raise SobookError(
            f"batch_size is {batch_size}, but there are only {len(labels)} training images: "
            "choose a smaller batch."
        )
    batches = len(labels) // batch_size
    return rng.permutation(len(labels))[: batches * batch_size].reshape(batches, batch_size)


def _balanced_plan(rng, labels, batch_size, images_per_class):
    classes_per_batch, rest = divmod(batch_size, images_per_class)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    if small := sum(len(images) < images_per_class for images in members):
        warnings.warn(
            f"{small} of {len(members)} classes have fewer than {images_per_class} images: "
            "theirs are repeated within a batch.",
            stacklevel=4,
        )
    if rest or classes_per_batch > len(members):
        raise SobookError(
            f"a batch of {batch_size} cannot hold {images_per_class} images each of "
            f"{batch_size / images_per_class:g} classes out of {len(members)}: choose a batch_size "
            f"that is a multiple of {images_per_class} and at most "
            f"{images_per_class * len(members)}."
        )
    plan = []
    for _ in range(max(1, len(labels) // batch_size)):
        chosen = rng.choice(len(members), classes_per_batch, replace=False)
        plan.append(
            [
                image
                for label in chosen  # small classes repeat images rather than break the batch
                for image in rng.choice(
                    members[label], images_per_class, replace=len(members[label]) < images_per_class
                )
            ]
        )
    return np.array(plan)


def mix_seeds(*numbers: int) -> int:
    """One 63-bit seed out of several small numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def training_loader(
    batches: TrainingBatches, *, workers: int = 0, start: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of an epoch in order, from batch number `start`; pinned where there is a GPU.

    Args:
        batches: of one epoch.
        workers: threads that make batches ahead of need; 0 makes each when it is asked for. Threads
            and not processes, since most of the work happens outside Python's lock, and handing
            the pixels over from one process to another costs as much as making them.
        start: number of the first batch, where an epoch goes on.
    """
    numbers = range(start, len(batches))
    if not workers:
        yield from (_make(batches, number, batches.draw(number)) for number in numbers)
        return
    usual, waiting = torch.get_num_threads(), deque()
    # One thread of torch's in each of ours, or they keep the cores from each other.
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for number in numbers:
                waiting.append(pool.submit(_make, batches, number, batches.draw(number)))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # also where the reader stops early
            for batch in waiting:
                batch.cancel()
            torch.set_num_threads(usual)  # a thread that others start later would take our 1


def _make(batches: TrainingBatches, number: int, drawn: list) -> tuple[Tensor, Tensor]:
    images, labels = batches.cut(number, drawn)
    if torch.cuda.is_available():
        return images.pin_memory(), labels.pin_memory()
    return images, labels


def evaluation_short_side(image_size: int) -> int:
    """256 for 224, and in proportion for other sizes.

    >>> evaluation_short_side(224), evaluation_short_side(64)
    (256, 73)
    """
    return round(image_size * 256 / 224)


def evaluation_batches(
    source: Pixels, image_size: int, batch_size: int, rows: slice = slice(None)
) -> Iterator[Tensor]:
    """Center crops in order, of all images or some rows: (B, 3, image_size, image_size) uint8."""
    wanted = range(len(source))[rows]
    for start in range(0, len(wanted), batch_size):
        crops = [
            _center_crop(source[row], image_size) for row in wanted[start : start + batch_size]
        ]
        yield torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)


def evaluation_crop(image: Image.Image, image_size: int) -> Tensor:
    """One RGB picture, as `evaluation_batches` would give it: (3, image_size, image_size) uint8."""
    target = _target(image.size, evaluation_short_side(image_size), enlarge=True)
    resized = np.asarray(image.resize(target, Image.Resampling.BICUBIC))
    return torch.from_numpy(_center_crop(resized, image_size).copy()).permute(2, 0, 1)


def _center_crop(image: np.ndarray, size: int) -> np.ndarray:
    top, left = (round((side - size) / 2) for side in image.shape[:2])
    return image[top : top + size, left : left + size]
