"""The lab: a page that trains a head on frozen features in the browser, live, without Python.

`page` makes it from a data set and a frozen encoder, `from_features` from a file of one's own;
`piece` makes one question of it, for a notebook.
Inside are the features (one byte each), small pictures of the test images, and the scripts: a
trainer for a Web Worker (``assets/numerics.js``, ``worker.js``) and what the reader sees
(``assets/lab.*``). Notation: N images, F features, C training classes, T test classes.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sobook.course.aviary.species import species
from sobook.course.pages.page import Page, read_asset, render, sprite
from sobook.data import image_sets, pixels
from sobook.data.image_sets import ImageSet
from sobook.embedding import embed
from sobook.encoder import Encoder
from sobook.errors import SobookError, check_choice, first_line
from sobook.figures.style import evenly
from sobook.retrieval import evaluate, nearest_neighbors
from sobook.training.heads import HeadConfig
from sobook.training.processes import choose_device

STEPS = ("crowding", "remedy", "help", "cones", "threshold", "epochs", "scale")  # of the story

_SCRIPTS = ("numerics.js", "lab_stats.js", "lab_views.js", "lab_story.js")
_DEPTH = 6  # nearest images kept for each query
_SEEDS = 64  # whose validation classes the page knows
_MOST_BYTES = 500_000  # of one split's features; as text a third more
_PIECE_BYTES = 80_000  # of one split's features in a notebook
_PIECE_HEIGHT = 900  # pixels
_SHEET_BYTES = 1_300_000  # of the sheet of pictures, as text
_LOOKS = ((44, 60), (36, 55), (28, 50), (20, 40))  # side in pixels, and quality of WebP
_FEWEST = 4  # classes of either split: validation takes two of the training classes


def page(config: HeadConfig | None = None) -> Page:
    """The lab for a data set and a frozen encoder.

    Args:
        config: data, encoder, and the settings that the page starts with; None: the aviary in 64
            dimensions.

    Raises:
        SobookError: data that are not there, or too few classes.
    """
    return _from_images(HeadConfig(dim=64) if config is None else config, _MOST_BYTES)


def piece(step: str, config: HeadConfig | None = None) -> Page:
    """One question of the lab's story, small enough for a notebook: fewer images, no pictures.

    It shows itself at the end of a cell, as ``lab.piece("cones")``.

    Args:
        step: one of `STEPS`.
        config: as for `page`; None: the aviary in 64 dimensions, 40 epochs.

    Raises:
        SobookError: an unknown step, or as `page`.
    """
    check_choice("step", step, STEPS)
    small = HeadConfig(dim=64, epochs=40, batch_size=50)  # as many steps as the page takes
    return _from_images(small if config is None else config, _PIECE_BYTES, step)


def _from_images(config: HeadConfig, most_bytes: int, step: str | None = None) -> Page:
    """The lab of images: features of either split take so many bytes; of a step, or all of it."""
    encoder = Encoder.create(config.encoder, **config.encoder_options)
    encoder = encoder.to(choose_device(config.device))
    splits, features, notes = {}, {}, []
    for name in ("train", "test"):
        images = image_sets.load(config.dataset, name, **config.load_options)
        splits[name] = images.subset(_some(images.labels, encoder.dim, most_bytes))
        features[name] = embed(encoder, splits[name], progress=False)
        notes += images.notes
        if len(splits[name]) < len(images):
            notes.append(
                f"{len(splits[name]):,} of {len(images):,} {name} images fit into the page"
            )
    note = "".join(f" Note: {note}." for note in dict.fromkeys(notes))
    whole = step is None
    return _build(
        features,
        {name: images.labels for name, images in splits.items()},
        {name: [_plain(one) for one in images.class_names] for name, images in splits.items()},
        config,
        note=f"Images: {config.dataset}; encoder: {encoder.name}, frozen.{note}",
        pictures=_pictures(splits["test"]) if whole else None,
        marks=_marks(config, splits["test"].class_names) if whole else None,
        step=step,
    )


def from_features(file: str | os.PathLike) -> Page:
    """The lab for features that were computed elsewhere; it shows no pictures.

    Args:
        file: an .npz with features (N, F), labels (N,), and split (N,), "train" or "test" for each
            row. Classes of the test split must not occur in the training split.

    Raises:
        SobookError: the file is no such file.
    """
    file = Path(file).expanduser()
    everything, all_labels, split = _read(file)
    features, labels, names = {}, {}, {}
    for name in ("train", "test"):
        rows = split == name
        features[name] = everything[rows]
        found, labels[name] = np.unique(all_labels[rows], return_inverse=True)
        names[name] = [str(one) for one in found]
        some = _some(labels[name], everything.shape[1], _MOST_BYTES)
        kept, labels[name] = np.unique(labels[name][some], return_inverse=True)
        features[name], names[name] = features[name][some], [names[name][c] for c in kept]
    both = set(all_labels[split == "train"].tolist()) & set(all_labels[split == "test"].tolist())
    if both:
        raise SobookError(
            f"{file}: class {min(both)} is in both splits, but the lab searches among classes that "
            "were never trained on. Where each split counts from 0, add the number of training "
            "classes to the labels of the test split."
        )
    return _build(features, labels, names, None, note=f"Features: {file.name}.")


def pack(features: np.ndarray) -> dict[str, Any]:
    """Features (N, F) as one byte each, with a float32 offset and step for each of the F columns.

    A reader computes low + step · code in double precision and rounds once, to float32.
    """
    low, high = features.min(axis=0), features.max(axis=0)  # (F,)
    step = np.maximum((high - low) / 255, np.finfo(np.float32).tiny).astype(np.float32)
    codes = np.clip(np.round((features - low) / step), 0, 255).astype(np.uint8)  # (N, F)
    parts = {"low": low.astype(np.float32), "step": step, "codes": codes}
    text = {name: base64.b64encode(part.tobytes()).decode() for name, part in parts.items()}
    return {"dim": features.shape[1], **text}


def unpack(packed: Mapping[str, Any]) -> np.ndarray:
    """(N, F) float32, exactly as the page reads what `pack` has written."""
    low, step = (
        np.frombuffer(base64.b64decode(packed[name]), np.float32).astype(np.float64)
        for name in ("low", "step")
    )
    codes = np.frombuffer(base64.b64decode(packed["codes"]), np.uint8)
    return (low + step * codes.reshape(-1, packed["dim"])).astype(np.float32)


def _build(
    features: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    names: Mapping[str, Sequence[str]],
    config: HeadConfig | None,
    *,
    note: str,
    pictures: dict[str, Any] | None = None,
    marks: dict[str, Any] | None = None,
    step: str | None = None,
) -> Page:
    """The page, from the two splits; `config` says how to do the same in Python, if one can."""
    for split in ("train", "test"):
        if len(names[split]) < _FEWEST or np.bincount(labels[split]).min() < 2:
            raise SobookError(
                f"the {split} split has {len(names[split])} classes, the smallest of "
                f"{np.bincount(labels[split], minlength=1).min()} images: the lab needs at least "
                f"{_FEWEST} classes with 2 images each."
            )
    packed = pack(np.concatenate([features["train"], features["test"]]))
    frozen = unpack(packed)[len(labels["train"]) :]
    result, classes = evaluate(frozen, labels["test"], ks=(1,)), len(names["train"])
    nearest = nearest_neighbors(frozen, _DEPTH)[1]
    order = [np.random.default_rng(seed).permutation(classes).tolist() for seed in range(_SEEDS)]
    start = config or HeadConfig(dim=64)
    fewest = _fewest(labels["train"], start)
    if (
        start.batch_size > fewest
    ):  # small sets: two batches an epoch, whichever classes are held out
        start = start.replace(batch_size=max(fewest // 2, 2))
    data = {
        "lab": {
            "features": packed,
            "labels": np.concatenate([labels["train"], labels["test"]]).tolist(),
            "sizes": {name: len(part) for name, part in labels.items()},
            "classes": {name: len(part) for name, part in names.items()},
            "class_order": order,
            "frozen": {"recall_at_1": result.recall[1], "interval": result.interval(1)},
        },
        "names": {name: list(part) for name, part in names.items()},
        "nearest": None if step else nearest.tolist(),
        "pictures": pictures,
        "marks": marks,
        "start": start.to_dict(),
        "defaults": HeadConfig().to_dict(),
        "in_python": config is not None,
        "note": note,
        "step": step,
        "worker": read_asset("numerics.js") + read_asset("worker.js"),
    }
    source = render("lab", "The lab", data, scripts=_SCRIPTS)
    title = "The lab: a head that learns in this page"
    return Page(source, title=title, height=_PIECE_HEIGHT if step else 1100)


def _some(labels: np.ndarray, width: int, most_bytes: int) -> np.ndarray:
    """(N,) bool: as many images of each class as fit into the page; of many classes, some."""
    most = max(most_bytes // width, 2 * _FEWEST)
    rank = pd.Series(labels).groupby(labels).cumcount().to_numpy()  # of an image within its class
    if (rank < 4).sum() > most:
        classes = evenly(np.unique(labels), max(most // 4, _FEWEST))
        rank = np.where(np.isin(labels, classes), rank, len(labels))
    before = np.cumsum(np.bincount(rank))  # how many images have this rank or a lower one
    return rank < max(int((before <= most).sum()), 2)


def _fewest(labels: np.ndarray, config: HeadConfig) -> int:
    """Training images there are at least, when the largest classes are held out."""
    counts = np.sort(np.bincount(labels))
    held_out = max(round(config.validation_fraction * len(counts)), 2)
    return int(counts[: -held_out if config.validation_fraction else None].sum())


def _pictures(images: ImageSet) -> dict[str, Any]:
    """All images as one sheet of small pictures, as large as the page allows."""
    decoded = list(pixels.decode(images, _LOOKS[0][0], progress=False))
    for side, quality in _LOOKS:
        sheet, columns = sprite(decoded, side, quality)
        if len(sheet) <= _SHEET_BYTES:
            break
    return {"sheet": sheet, "columns": columns, "rows": -(-len(images) // columns)}


def _marks(config: HeadConfig, class_names: Sequence[str]) -> dict[str, Any] | None:
    """Field marks of the test species, where the images are those of the aviary."""
    if config.dataset != "aviary":
        return None
    number, seed = config.options.get("species", 100), config.options.get("seed", 0)
    known = {one.folder: one for one in species(number, seed=seed)}
    birds = [known[name] for name in class_names]
    return {
        "names": [name.replace("_", " ") for name in asdict(birds[0].marks)],
        "values": [list(asdict(bird.marks).values()) for bird in birds],
        "genera": [bird.genus for bird in birds],
    }


def _read(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (N, F), labels (N,) and split (N,) of a reader's own file."""
    if not file.is_file():
        raise SobookError(f"there is no file {file}: name an .npz with features, labels and split.")
    try:
        with np.load(file, allow_pickle=False) as data:
            arrays = {name: data[name] for name in ("features", "labels", "split")}
    except Exception as error:  # damaged bytes make numpy and zipfile raise anything
        raise SobookError(
            f"{file}: it must be an .npz with the arrays features (N, F), labels (N,) and split "
            f"(N,), without Python objects: {first_line(error)}."
        ) from None
    features, labels, split = arrays["features"], arrays["labels"], arrays["split"].astype(str)
    if features.ndim != 2 or features.dtype.kind not in "fiu" or 0 in features.shape:
        raise SobookError(f"{file}: features must be numbers (N, F), not {features.shape}.")
    if not np.isfinite(features).all():
        raise SobookError(f"{file}: features hold NaN or infinity: leave those rows out.")
    if not len(features) == len(labels) == len(split) or labels.ndim != 1 or split.ndim != 1:
        raise SobookError(
            f"{file}: features {features.shape}, labels {labels.shape} and split {split.shape} "
            "must have one row, one label and one split per image."
        )
    if unknown := set(split.tolist()) - {"train", "test"}:
        raise SobookError(f"{file}: split holds {min(unknown)!r}: say 'train' or 'test' per row.")
    return features.astype(np.float32), labels, split


def _plain(name: str) -> str:
    """Without number and underscores: "007.Barred_Ambertail" → "Barred Ambertail"."""
    return (name.partition(".")[2] or name).replace("_", " ")
