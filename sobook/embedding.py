"""From a whole image set to a matrix of embeddings, kept in a cache on disk: `embed`."""

import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from sobook import files
from sobook.data import loader, pixels
from sobook.data.image_sets import ImageSet
from sobook.encoder import Encoder
from sobook.errors import ImageError, SobookError


def embed(
    encoder: Encoder,
    image_set: ImageSet,
    *,
    batch_size: int = 64,
    cache: bool = True,
    progress: bool = True,
    rows: slice = slice(None),
) -> np.ndarray:
    """Embed a whole image set with the evaluation transform (short side 256 → center 224).

    For other sizes the transform is in proportion (64: short side 73 → center 64).

    Args:
        encoder: used in evaluation mode, on the device it is on.
        image_set: N images.
        batch_size: images at a time.
        cache: keep the result under ``<data root>/cache`` and read it the next time, also for
            subsets of these images. Of several processes that want the same, one embeds and the
            others wait for it. Where it cannot be kept, a warning says so.
        progress: show a bar.
        rows: embed only these images (without the cache), where several processes share the work.

    Returns:
        (N, D) float32, rows of unit length.

    Raises:
        ImageError: a file is missing or corrupt.
    """
    if not cache or rows != slice(None):
        return _compute(encoder, image_set, batch_size, progress, rows)
    key, short_side = encoder.fingerprint(), loader.evaluation_short_side(encoder.image_size)

    def file_of(images: ImageSet) -> Path:
        name = f"embeddings-{pixels.fingerprint(images, short_side)}{key}.npy"
        return files.data_root() / "cache" / name

    embeddings = _cached(file_of, image_set)  # first without a lock: a cache may be read-only
    if embeddings is not None:
        return embeddings
    file = file_of(image_set)
    waiting = "another process is embedding the same images: waiting for it."
    with files.lock(file.with_suffix(".lock"), waiting=waiting):
        embeddings = _cached(file_of, image_set)
        if embeddings is None:
            files.sweep(file)
            embeddings = _compute(encoder, image_set, batch_size, progress, rows)
            try:
                with files.replacing(file) as partial:
                    np.save(partial, embeddings)
            except SobookError as error:  # the work is done, and its result is here
                warnings.warn(f"the embeddings are not kept: {error}", stacklevel=2)
    return embeddings


@torch.inference_mode()
def _compute(
    encoder: Encoder, image_set: ImageSet, batch_size: int, progress: bool, rows: slice
) -> np.ndarray:
    short_side = loader.evaluation_short_side(encoder.image_size)
    source = pixels.decode(image_set, short_side, progress=progress)
    batches = loader.evaluation_batches(source, encoder.image_size, batch_size, rows)
    count, parts, was_training = len(range(len(source))[rows]), [], encoder.training
    encoder.eval()
    try:
        disable = None if progress else True  # None hides it where there is no terminal
        with tqdm(total=count, desc="embedding", unit="image", disable=disable) as bar:
            for batch in batches:
                parts.append(encoder(batch.to(encoder.mean.device)).cpu().numpy())
                bar.update(len(batch))
    finally:
        encoder.train(was_training)
    return np.concatenate(parts)


def _cached(file_of: Callable[[ImageSet], Path], image_set: ImageSet) -> np.ndarray | None:
    """(N, D) embeddings from the cache: of these images, or of a set they were taken from."""
    rows = np.arange(len(image_set))
    while True:
        try:
            file = file_of(image_set)
        except ImageError:  # an image outside of the subset is gone: it is not needed
            return None
        # Not there, deleted just now, or empty after a power cut.
        with contextlib.suppress(FileNotFoundError, EOFError, ValueError):
            return np.load(file)[rows]
        if image_set.origin is None:
            return None
        image_set, taken = image_set.origin
        rows = taken[rows]
