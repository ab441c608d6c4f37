"""The lab: a page that trains a head on frozen features in the browser, live, without Python.

`page` makes it from a data set and a frozen encoder, `from_features` from arrays of the reader;
`piece` makes one question of it, for a notebook.
Inside are the features (one byte each), small pictures of the test images, and the scripts: a
trainer for a Web Worker (``assets/numerics.js``, ``worker.js``) and what the reader sees
(``assets/lab.*``). Notation: N images, F features.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sobook.course.aviary.species import species
from sobook.course.pages.page import Page, plain_name, read_asset, render, sprite
from sobook.data import image_sets, pixels
from sobook.embedding import embed
from sobook.encoder import Encoder
from sobook.errors import SobookError, check_choice, first_line
from sobook.figures.style import evenly
from sobook.retrieval import evaluate, nearest_neighbors
from sobook.training.heads import HeadConfig
from sobook.training.processes import choose_device

STEPS = ("crowding", "remedy", "help", "cones", "threshold", "epochs", "scale")

_SCRIPTS = ("numerics.js", "lab_stats.js", "lab_views.js", "lab_story.js")
_DEPTH = 6  # nearest images kept for each query
_SEEDS = 64  # whose validation classes the page knows
_MOST_BYTES = 500_000  # features of one split; as text a third more
_PIECE_BYTES = 80_000  # features of one split in a notebook
_SHEET_BYTES = 1_300_000  # sheet of pictures, as text
_LOOKS = ((44, 60), (36, 55), (28, 50), (20, 40))  # side in pixels, and quality of WebP
_ONLY_PYTHON = {"loss", "loss_options", "regularizer", "regularizer_weight", "images_per_class"}
_ONLY_PYTHON |= {"so_pairs_fraction", "so_reduction", "max_images_per_class", "schedule"}
_FEWEST = 4  # classes of either split: validation takes two of the training classes


def page(config: HeadConfig | None = None) -> Page:
    """The lab for a data set and a frozen encoder.

    Args:
        config: data, encoder, and the settings that the page starts with; None: the aviary in 64
            dimensions.

    Raises:
        SobookError: missing data, too few classes, or settings that only Python trains with.
    """
    return _from_images(config or HeadConfig(dim=64), _MOST_BYTES)


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
    return _from_images(config or small, _PIECE_BYTES, step)


def from_features(file: str | os.PathLike) -> Page:
    """The lab for features that were computed elsewhere; it shows no pictures.

    Args:
        file: an .npz with features (N, F), labels (N,), and split (N,), "train" or "test" for each
            row. Classes of the test split must not occur in the training split.

    Raises:
        SobookError: the file is no such file.
    """
    file = Path(file).expanduser()
    try:
        splits = _read(file)
    except Exception as error:  # damaged bytes make numpy and zipfile raise anything
        raise SobookError(
            f"{file}: it must be an .npz with numbers features (N, F), and labels (N,) and split "
            f"(N,), without Python objects: {first_line(error)}."
        ) from None
    parts = {}
    for split, (features, classes) in splits.items():
        codes = np.unique(classes, return_inverse=True)[1]
        kept = _fitting(codes, features.shape[1], _MOST_BYTES)
        names, labels = np.unique(classes[kept], return_inverse=True)
        parts[split] = features[kept], labels, names
    return _build(parts, HeadConfig(dim=64), f"Features: {file.name}.", in_python=False)


def _read(file: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Split → features (n, F) and labels (n,) of a file, checked."""
    with np.load(file, allow_pickle=False) as data:
        features, labels, split = (data[name] for name in ("features", "labels", "split"))
    if not (features.ndim == 2 and features.shape[:1] == labels.shape == split.shape):
        raise ValueError("one row, one label and one split per image are needed")
    if features.dtype.kind not in "fiu" or not np.isfinite(features).all():
        raise ValueError("features hold NaN, infinity or no numbers: leave those rows out")
    if unknown := set(split.tolist()) - {"train", "test"}:
        raise ValueError(f"split holds {unknown.pop()!r}: say 'train' or 'test' per row")
    parts = {name: split == name for name in ("train", "test")}
    if shared := np.intersect1d(*(labels[rows] for rows in parts.values())).tolist():
        raise ValueError(
            f"class {shared[0]} is in both splits, but the lab searches among classes that were "
            "never trained on (where each split counts from 0, make the test labels larger)"
        )
    return {name: (features[rows].astype(np.float32), labels[rows]) for name, rows in parts.items()}


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
    parts = {name: base64.b64decode(packed[name]) for name in ("low", "step", "codes")}
    low, step = (np.frombuffer(parts[name], np.float32).astype(float) for name in ("low", "step"))
    codes = np.frombuffer(parts["codes"], np.uint8).reshape(-1, packed["dim"])
    return (low + step * codes).astype(np.float32)


def _from_images(config: HeadConfig, most_bytes: int, step: str | None = None) -> Page:
    """All of the lab or one step; the features of a split take at most so many bytes."""
    usual = HeadConfig().to_dict()
    changed = {name for name, value in config.to_dict().items() if value != usual[name]}
    if refused := sorted(changed & _ONLY_PYTHON):
        raise SobookError(f"the lab trains in the browser, without {', '.join(refused)}: drop it.")
    encoder = Encoder.create(config.encoder, **config.encoder_options)
    encoder = encoder.to(choose_device(config.device))
    parts, notes = {}, []
    for split in ("train", "test"):
        images = image_sets.load(config.dataset, split, **config.load_options)
        shown = images.subset(_fitting(images.labels, encoder.dim, most_bytes))
        names = [plain_name(name) for name in shown.class_names]
        parts[split] = embed(encoder, shown, progress=False), shown.labels, names
        notes += images.notes
        if len(shown) < len(images):
            notes.append(f"{len(shown):,} of {len(images):,} {split} images fit into the page")
    note = "".join(f" Note: {note}." for note in dict.fromkeys(notes))
    note = f"Images: {config.dataset}; encoder: {encoder.name}, frozen.{note}"
    if step is not None:
        return _build(parts, config, note, step=step)
    marks = _marks(config, shown.class_names) if config.dataset == "aviary" else None
    return _build(parts, config, note, pictures=_pictures(shown), marks=marks)


def _build(
    parts, config: HeadConfig, note: str, *, step=None, in_python=True, pictures=None, marks=None
) -> Page:
    """The page, of split → features (n, F), labels (n,) and class names."""
    labels = {split: part[1] for split, part in parts.items()}
    names = {split: part[2] for split, part in parts.items()}
    for split in ("train", "test"):
        sizes = np.bincount(labels[split], minlength=1)
        if len(sizes) < _FEWEST or sizes.min() < 2:
            raise SobookError(
                f"the {split} split has {len(sizes)} classes, the smallest of {sizes.min()} "
                f"images: the lab needs at least {_FEWEST} classes with 2 images each."
            )
    packed = pack(np.concatenate([parts["train"][0], parts["test"][0]]))
    frozen = unpack(packed)[len(labels["train"]) :]
    result, classes = evaluate(frozen, labels["test"], ks=(1,)), len(names["train"])
    held_out = min(max(round(config.validation_fraction * classes), 2), classes - 2)
    held_out *= config.validation_fraction > 0  # as in image_sets.hold_out
    fewest = np.sort(np.bincount(labels["train"]))[: classes - held_out].sum()
    if config.batch_size > fewest:  # small sets: two batches an epoch
        config = config.replace(batch_size=max(int(fewest) // 2, 2))
    data = {
        "note": note,
        "step": step,
        "in_python": in_python,
        "pictures": pictures,
        "marks": marks,
        "lab": {
            "features": packed,
            "labels": np.concatenate([labels["train"], labels["test"]]).tolist(),
            "sizes": {name: len(part) for name, part in labels.items()},
            "classes": {name: len(part) for name, part in names.items()},
            "held_out": held_out,
            "class_order": [
                np.random.default_rng(seed).permutation(classes).tolist() for seed in range(_SEEDS)
            ],
            "frozen": {"recall_at_1": result.recall[1], "interval": result.interval(1)},
        },
        "names": {split: [str(name) for name in part] for split, part in names.items()},
        "nearest": None if step else nearest_neighbors(frozen, _DEPTH)[1].tolist(),
        "start": config.to_dict(),
        "defaults": HeadConfig().to_dict(),
        "worker": read_asset("numerics.js") + read_asset("worker.js"),
    }
    source = render("lab", "The lab", data, scripts=_SCRIPTS)
    title = "The lab: a head that learns in this page"
    return Page(source, title=title, height=900 if step else 1100)


def _fitting(labels: np.ndarray, width: int, most_bytes: int) -> np.ndarray:
    """(N,) bool: as many images of each class as fit into the page; of many classes, some."""
    most = max(most_bytes // width, 2 * _FEWEST)
    rank = pd.Series(labels).groupby(labels).cumcount().to_numpy()  # within its class
    if (rank < 4).sum() > most:
        classes = evenly(np.unique(labels), max(most // 4, _FEWEST))
        rank = np.where(np.isin(labels, classes), rank, len(labels))
    before = np.cumsum(np.bincount(rank))  # how many images have this rank or a lower one
    return rank < max(int((before <= most).sum()), 2)


def _pictures(images: image_sets.ImageSet) -> dict[str, Any]:
    """All images as one sheet of small pictures, as large as the page allows."""
    decoded = list(pixels.decode(images, _LOOKS[0][0], progress=False))
    for side, quality in _LOOKS:
        sheet, columns = sprite(decoded, side, quality)
        if len(sheet) <= _SHEET_BYTES:
            break
    return {"sheet": sheet, "columns": columns, "rows": -(-len(images) // columns)}


def _marks(config: HeadConfig, class_names) -> dict[str, Any]:
    """Field marks of the test species of the aviary."""
    number, seed = config.options.get("species", 100), config.options.get("seed", 0)
    birds = {bird.folder: bird for bird in species(number, seed=seed)}
    marks = [asdict(birds[name].marks) for name in class_names]
    return {
        "names": [name.replace("_", " ") for name in marks[0]],
        "values": [list(values.values()) for values in marks],
        "genera": [birds[name].genus for name in class_names],
    }
