"""Batches: which images go into each, how they are augmented, and how they are prefetched.

The random numbers of a batch come from (seed, epoch, number of the batch) alone, so batches depend
neither on the number of workers nor on where training was resumed. Start with `TrainingBatches`.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from sobook.data.pixels import Pixels, resize
from sobook.errors import SobookError


class TrainingBatches:
    """The batches of one epoch, augmented: item i is (images, labels) of batch i.

    Args:
        source: decoded images.
        labels: (N,) int64.
        image_size: side of the random crops.
        batch_size, images_per_class: as for `batch_plan`.
        crop_scale: smallest fraction of the area that a random crop keeps.
        seed, epoch: with i, they fix order and crops.
        local_slice: the part of every batch to make, where several processes share a batch.

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
        local_slice: slice = slice(None),
    ):
        self.source, self.labels, self.local_slice = source, np.asarray(labels), local_slice
        rng = np.random.default_rng([seed, epoch])
        self.plan = batch_plan(rng, self.labels, batch_size, images_per_class)  # (batches, B)
        self.seed = seed, epoch
        self._crop = v2.RandomResizedCrop(image_size, scale=(crop_scale, 1.0))

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        return self.cut(number, self.draw(number))

    def draw(self, number: int) -> list[tuple[dict[str, int], bool]]:
        """Crops and mirroring of the images of a batch: everything random about it."""
        drawn = []
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global generator
            torch.default_generator.manual_seed(mix_seeds(*self.seed, number))
            for shape in self.source.shapes[self.plan[number]]:
                image = torch.empty(3, *shape.tolist(), device="meta")  # a size, and no pixels
                drawn.append((self._crop.make_params([image]), bool(torch.rand(1) < 0.5)))
        return drawn

    def cut(self, number: int, drawn: list[tuple[dict[str, int], bool]]) -> tuple[Tensor, Tensor]:
        """The batch, as v2.RandomResizedCrop and v2.RandomHorizontalFlip make it, to the bit.

        Draws nothing, so several threads may do it at once. Pinned where there is a GPU.
        """
        rows, size = self.plan[number][self.local_slice], self._crop.size
        pinned = torch.cuda.is_available()
        images = torch.empty(len(rows), 3, *size, dtype=torch.uint8, pin_memory=pinned)
        for image, row, (box, mirror) in zip(images, rows, drawn[self.local_slice], strict=True):
            top, left = box["top"], box["left"]
            band = self.source.band(row, top, box["height"])  # nothing else is read
            cut = band[:, left : left + box["width"]].copy()
            part = torch.from_numpy(cut).permute(2, 0, 1)[None]  # (1, 3, height, width)
            part = nn.functional.interpolate(part, size=size, mode="bicubic", antialias=True)[0]
            image.copy_(part.flip(-1) if mirror else part)
        labels = torch.from_numpy(self.labels[rows])
        return images, labels.pin_memory() if pinned else labels


def batch_plan(
    rng: np.random.Generator, labels: np.ndarray, batch_size: int, images_per_class: int = 0
) -> np.ndarray:
    """Sampler: the images of every batch of an epoch, one row per batch.

    Args:
        rng: source of all draws.
        labels: (N,) whole numbers.
        batch_size: B; every batch is whole, the rest of the epoch is left out.
        images_per_class: 0 draws uniformly without replacement; m ≥ 2 puts m images each of B / m
            classes into a batch; a class with fewer repeats them.

    Returns:
        (batches, B) indices into the N images.

    Raises:
        SobookError: no such batch can be made of these labels.
    """
    batches = len(labels) // batch_size
    if not images_per_class:
        if not batches:
            raise SobookError(
                f"batch_size is {batch_size}, but there are only {len(labels)} training images."
            )
        return rng.permutation(len(labels))[: batches * batch_size].reshape(batches, batch_size)
    classes_per_batch, rest = divmod(batch_size, images_per_class)
    # By one sort: a search for each class takes a second per epoch at the 11,318 of SOP.
    counts = np.unique(labels, return_counts=True)[1]
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    if rest or classes_per_batch > len(members):
        raise SobookError(
            f"batch_size is {batch_size}: with {images_per_class} images per class it must be a "
            f"multiple of {images_per_class} and at most {images_per_class * len(members)}."
        )
    plan = []
    for _ in range(max(1, batches)):
        for k in rng.choice(len(members), classes_per_batch, replace=False):
            few = len(members[k]) < images_per_class
            plan.append(rng.choice(members[k], images_per_class, replace=few))
    return np.concatenate(plan).reshape(-1, batch_size)


def mix_seeds(*numbers: int) -> int:
    """One 63-bit seed out of several small numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


def training_loader(
    batches: TrainingBatches, *, workers: int = 0, start: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of an epoch in order.

    Args:
        batches: of one epoch.
        workers: threads that make batches ahead of need; 0 makes each when it is asked for. Threads
            and not processes, since most of the work happens outside Python's lock, and handing
            the pixels over from one process to another costs as much as making them.
        start: number of the first batch, where an epoch resumes.
    """
    numbers = range(start, len(batches))
    if not workers:
        yield from (batches[number] for number in numbers)
        return
    usual, waiting = torch.get_num_threads(), deque[Future]()
    # One torch thread in each of ours, or together they would ask for more cores than exist.
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for number in numbers:
                waiting.append(pool.submit(batches.cut, number, batches.draw(number)))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            yield from (batch.result() for batch in waiting)
        finally:  # also where the reader stops early
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(usual)  # a thread that others start later would take our 1


def evaluation_short_side(image_size: int) -> int:
    """256 for 224, and in proportion for other sizes.

    >>> evaluation_short_side(224), evaluation_short_side(64)
    (256, 73)
    """
    return round(image_size * 256 / 224)


def evaluation_batches(
    source: Pixels, image_size: int, batch_size: int, rows: slice = slice(None)
) -> Iterator[Tensor]:
    """Center crops in order: (B, 3, image_size, image_size) uint8 each, the last one smaller.

    Args:
        source: decoded images, with a shorter side of ``evaluation_short_side(image_size)``.
        image_size: side of the crops.
        batch_size: B.
        rows: which images; default: all.
    """
    wanted = range(len(source))[rows]
    for start in range(0, len(wanted), batch_size):
        some = wanted[start : start + batch_size]
        crops = np.stack([_center_crop(source[row], image_size) for row in some])
        yield torch.from_numpy(crops).permute(0, 3, 1, 2)


def evaluation_crop(image: Image.Image, image_size: int) -> Tensor:
    """One RGB picture, as `evaluation_batches` would give it: (3, image_size, image_size) uint8."""
    resized = np.asarray(resize(image, evaluation_short_side(image_size)))
    return torch.from_numpy(_center_crop(resized, image_size).copy()).permute(2, 0, 1)


def _center_crop(image: np.ndarray, size: int) -> np.ndarray:
    top, left = (round((side - size) / 2) for side in image.shape[:2])
    return image[top : top + size, left : left + size]
