"""From a whole image set to a matrix of embeddings, kept in a cache on disk: `embed`."""

import contextlib

import numpy as np
import torch
from tqdm.auto import tqdm

from sobook import files
from sobook.data import loader, pixels
from sobook.data.image_sets import ImageSet
from sobook.encoder import Encoder


def embed(
    encoder: Encoder,
    image_set: ImageSet,
    *,
    batch_size: int = 64,
    cache: bool = True,
    progress: bool = True,
    rows: slice | None = None,
) -> np.ndarray:
    """Embed an image set with the evaluation transform (short side 256 → center 224, or 73 → 64).

    Args:
        encoder: used in evaluation mode, on the device it is on.
        image_set: N images.
        batch_size: images at a time.
        cache: keep the result under ``<data root>/cache`` and read it the next time.
        progress: show a bar.
        rows: embed only these images (without the cache), where several processes share the work.

    Returns:
        (N, D) float32, rows of unit length.

    Raises:
        ImageError: a file is missing or corrupt.
    """
    short_side = loader.evaluation_short_side(encoder.image_size)
    if not cache or rows is not None:
        return _compute(encoder, image_set, short_side, batch_size, progress, rows or slice(None))
    key = pixels.fingerprint(image_set, short_side, encoder.fingerprint())
    file = files.data_root() / "cache" / f"embeddings-{key}.npy"
    # Read without a lock where it exists: a shared cache may be read-only.
    with contextlib.nullcontext() if file.exists() else files.lock(file.with_suffix(".lock")):
        if not file.exists():
            embeddings = _compute(encoder, image_set, short_side, batch_size, progress, slice(None))
            with files.replacing(file) as partial:
                np.save(partial, embeddings)
        return np.load(file)


@torch.inference_mode()
def _compute(
    encoder: Encoder, images: ImageSet, short_side: int, size: int, progress: bool, rows: slice
) -> np.ndarray:
    source = pixels.decode(images, short_side, progress=progress)
    batches = loader.evaluation_batches(source, encoder.image_size, size, rows)
    count, parts, was_training = len(range(len(source))[rows]), [], encoder.training
    disable = None if progress else True  # None hides it where there is no terminal
    encoder.eval()
    exact = torch.autocast(encoder.mean.device.type, enabled=False)  # whatever is on around it
    try:
        with exact, tqdm(total=count, desc="embedding", unit="image", disable=disable) as bar:
            for batch in batches:
                parts.append(encoder(batch.to(encoder.mean.device)).cpu().numpy())
                bar.update(len(batch))
    finally:
        encoder.train(was_training)
    return np.concatenate(parts)
