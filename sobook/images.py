"""From files to batches: decode once, keep the pixels on disk, augment, load.

The random numbers of a batch come from (seed, epoch, number of the batch) alone, so batches do not
depend on the number of worker processes, nor on where a training run was picked up again.
"""

import hashlib
import io
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from tqdm.auto import tqdm

from sobook import resources
from sobook.datasets import ImageSet

RAW_BUDGET = 8 * 2**30  # bytes; beyond it the pixel cache holds JPEG instead of raw pixels
_VERSION = 2  # part of every cache key: raise it when decoding or resizing changes


class ImageError(ValueError):
    """An image file that is missing or cannot be decoded."""


def read_image(path: str | os.PathLike) -> Image.Image:
    """Decode one image file to upright 8-bit RGB, whatever it holds.

    Grayscale, palette, alpha (over white), CMYK, 16-bit and EXIF-rotated images are converted; of
    an animation the first frame is taken.

    Raises:
        ImageError: the file is missing or cannot be decoded; the message names it.
    """
    try:
        with Image.open(path) as image:
            return _to_rgb(ImageOps.exif_transpose(image))
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
    return image.convert("RGB")


class Pixels:
    """Decoded images of an `ImageSet`: one flat file, read through the operating system's cache.

    ``pixels[i]`` is image i as (H, W, 3) uint8. Memory in use does not grow with the number of
    images, and worker processes share one copy.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        with np.load(self.folder / "index.npz") as index:
            self.shapes = index["shapes"]  # (N, 2) height and width
            self._starts = index["starts"]  # (N + 1,) where each image begins
            self.as_jpeg = bool(index["as_jpeg"])
        self._bytes = None  # opened on first use, anew in each worker process

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> np.ndarray:
        if self._bytes is None:
            self._bytes = np.memmap(self.folder / "pixels.bin", np.uint8, mode="r")
        flat = np.asarray(self._bytes[self._starts[index] : self._starts[index + 1]])
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
        enlarge: also enlarge images that are smaller; otherwise they are kept as they are.
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
    folder = resources.data_root() / "cache" / f"pixels-{image_set.name}-{image_set.split}-{key}"
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.partial")
        partial.mkdir(parents=True)
        try:
            _announce(image_set, raw, as_jpeg, partial.parent, progress)
            _decode_all(image_set, short_side, enlarge, as_jpeg, partial, progress)
            _move_into_place(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return Pixels(folder)


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
        image = image.resize(_target(image.size, short_side, enlarge), Image.Resampling.BICUBIC)
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
    if shorter < short_side and not enlarge:
        return size
    return short_side * size[0] // shorter, short_side * size[1] // shorter


def _move_into_place(partial: Path, folder: Path) -> None:
    try:
        os.replace(partial, folder)
    except OSError:
        if not folder.exists():  # otherwise another process was faster: its copy is as good
            raise


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
    ):
        self.source, self.labels = source, np.asarray(labels)
        rng = np.random.default_rng([seed, epoch])
        draw = _balanced_plan if images_per_class else _uniform_plan
        self.plan = draw(rng, self.labels, batch_size, images_per_class)  # (batches, B)
        self.seed = seed, epoch
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(
                    image_size,
                    scale=(crop_scale, 1.0),
                    interpolation=InterpolationMode.BICUBIC,
                    antialias=True,
                ),
                v2.RandomHorizontalFlip(),
            ]
        )

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        rows = self.plan[number]
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global generator
            torch.manual_seed(mix_seeds(*self.seed, number))
            images = [self.transform(_channels_first(self.source[row])) for row in rows]
        return torch.stack(images), torch.from_numpy(self.labels[rows])


def _uniform_plan(rng, labels, batch_size, _):
    if batch_size > len(labels):
        raise ValueError(
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
        raise ValueError(
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


def _channels_first(image: np.ndarray) -> Tensor:
    # A copy: torch refuses to share the read-only page cache.
    return torch.from_numpy(image.copy()).permute(2, 0, 1)  # (3, H, W)


def training_loader(batches: TrainingBatches, *, workers: int = 0, start: int = 0):
    """Iterate over the batches of an epoch, from batch number `start`."""
    return torch.utils.data.DataLoader(
        batches,
        batch_size=None,  # an item is a whole batch already
        sampler=range(start, len(batches)),
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )


def evaluation_short_side(image_size: int) -> int:
    """256 for 224, and in proportion for other sizes.

    >>> evaluation_short_side(224), evaluation_short_side(64)
    (256, 73)
    """
    return round(image_size * 256 / 224)


def evaluation_batches(source: Pixels, image_size: int, batch_size: int) -> Iterator[Tensor]:
    """Centre crops in order: (B, 3, image_size, image_size) uint8."""
    for start in range(0, len(source), batch_size):
        crops = [
            _centre_crop(source[row], image_size)
            for row in range(start, min(start + batch_size, len(source)))
        ]
        yield torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)


def evaluation_crop(image: Image.Image, image_size: int) -> Tensor:
    """One RGB picture, as `evaluation_batches` would give it: (3, image_size, image_size) uint8."""
    target = _target(image.size, evaluation_short_side(image_size), enlarge=True)
    resized = np.asarray(image.resize(target, Image.Resampling.BICUBIC))
    return torch.from_numpy(_centre_crop(resized, image_size).copy()).permute(2, 0, 1)


def _centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    top, left = (round((side - size) / 2) for side in image.shape[:2])
    return image[top : top + size, left : left + size]
