"""From a whole image set to a matrix of embeddings, kept in a cache on disk.

Start with `embed`. The encoder knows only tensors, `data` only images; here they meet.
"""

from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from sobook import files
from sobook.data import loader, pixels
from sobook.data.image_sets import ImageSet
from sobook.encoder import Encoder
from sobook.errors import ImageError


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
            others wait for it.
        progress: show a bar.
        rows: embed only these images (without the cache), where several processes share the work.

    Returns:
        (N, D) float32, rows of unit length.

    Raises:
        ImageError: a file is missing or corrupt.
        SobookError: the cache cannot be written.
    """
    if not cache or rows != slice(None):
        return _compute(encoder, image_set, batch_size, progress, rows)
    key = encoder.fingerprint()
    file = _cache_file(encoder, key, image_set)
    if (known := _cached(encoder, key, image_set)) is not None:
        return known
    waiting = "another process is embedding the same images: waiting for it"
    file.parent.mkdir(parents=True, exist_ok=True)
    with files.lock(file.with_name(f"{file.name}.lock"), waiting=waiting):
        if (known := _cached(encoder, key, image_set)) is not None:  # made while waiting
            return known
        embeddings = _compute(encoder, image_set, batch_size, progress, rows)
        with files.replacing(file) as partial:
            np.save(partial, embeddings)
    return embeddings


@torch.inference_mode()
def _compute(
    encoder: Encoder, image_set: ImageSet, batch_size: int, progress: bool, rows: slice
) -> np.ndarray:
    source = pixels.decode(image_set, _short_side(encoder), progress=progress)
    embeddings = np.empty((len(range(len(source))[rows]), encoder.dim), np.float32)
    device, was_training, done = encoder.mean.device, encoder.training, 0
    encoder.eval()
    try:
        hidden = None if progress else True  # None hides it where there is no terminal
        with tqdm(total=len(embeddings), desc="embedding", unit="image", disable=hidden) as bar:
            for batch in loader.evaluation_batches(source, encoder.image_size, batch_size, rows):
                embeddings[done : done + len(batch)] = encoder(batch.to(device)).cpu().numpy()
                done += len(batch)
                bar.update(len(batch))
    finally:
        encoder.train(was_training)
    return embeddings


def _short_side(encoder: Encoder) -> int:
    return loader.evaluation_short_side(encoder.image_size)


def _cache_file(encoder: Encoder, key: str, image_set: ImageSet) -> Path:
    images = pixels.fingerprint(image_set, _short_side(encoder))
    return files.data_root() / "cache" / f"embeddings-{images}{key}.npy"


def _cached(encoder: Encoder, key: str, image_set: ImageSet) -> np.ndarray | None:
    """(N, D) embeddings from the cache: of these images, or of a set they were taken from."""
    rows = np.arange(len(image_set))
    while True:
        try:
            file = _cache_file(encoder, key, image_set)
        except ImageError:  # an image outside of the subset is gone: it is not needed
            return None
        if file.exists():
            return np.load(file)[rows]
        if image_set.origin is None:
            return None
        image_set, taken = image_set.origin
        rows = taken[rows]
