"""Images with labels and class-disjoint splits: the aviary, four benchmarks, a folder.

`load` turns a data set as published into an `ImageSet`, split by class as the literature does, and
checks it against the counts in ``data/benchmarks.toml``; `prepare` fetches what can be fetched.
"""

from __future__ import annotations

import importlib
import os
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, compress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from sobook import files
from sobook.data import benchmarks, fetch, pictures
from sobook.errors import DatasetError, check_choice, check_fields, plain

NAMES = ("aviary", "cub200", "cars196", "sop", "inshop", "folder")
_OPTIONS = {"aviary": ("species", "images_per_species", "size", "seed", "split_by_genus")}


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one split: where they are and of which class.

    Attributes:
        paths: N image files.
        labels: (N,) int64 in 0..C-1, an index into `class_names`.
        class_names: C names.
        name: of the data set, e.g. ``"cub200"``.
        split: e.g. ``"train"``.
        notes: what a reader of any number made from these images has to know (e.g. "partial").
        origin: for a subset, the set it was taken from and the (N,) rows there. Pixels and
            embeddings of that set serve the subset as well.
    """

    paths: tuple[Path, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    name: str
    split: str
    notes: tuple[str, ...] = ()
    origin: tuple[ImageSet, np.ndarray] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        what, labels = f"{self.name} {self.split}", np.asarray(self.labels)
        if len(self.paths) == 0:
            notes = f" ({'; '.join(self.notes)})" if self.notes else ""
            raise DatasetError(f"{what} is empty: no image is left in it{notes}.")
        fit = labels.shape == (len(self.paths),) and labels.dtype.kind in "iu"
        if not fit or labels.min() < 0 or labels.max() >= self.num_classes:
            raise DatasetError(
                f"{what}: labels must be {len(self)} whole numbers, one per image, in "
                f"0..{self.num_classes - 1}."
            )
        object.__setattr__(self, "labels", labels.astype(np.int64))

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def num_classes(self) -> int:
        """C, the number of class names."""
        return len(self.class_names)

    def subset(self, indices: Sequence[int] | np.ndarray) -> ImageSet:
        """The images at `indices` (whole numbers, or N booleans); labels become 0..C'-1 again."""
        chosen = np.arange(len(self))[np.asarray(indices)]
        kept, labels = np.unique(self.labels[chosen], return_inverse=True)
        return replace(
            self,
            paths=tuple(self.paths[i] for i in chosen),
            labels=labels,
            class_names=tuple(self.class_names[k] for k in kept),
            origin=(self, chosen),
        )

    def describe(self) -> str:
        """Numbers of images and classes, sizes (of at most 100 images) and notes, one per line."""
        counts = np.bincount(self.labels, minlength=self.num_classes)
        lines = [
            f"{self.name}, {self.split}",
            f"images: {len(self):,}",
            f"classes: {self.num_classes:,}",
            "images per class (min / median / max): "
            f"{counts.min()} / {np.median(counts):g} / {counts.max()}",
            f"first and last class: {self.class_names[0]} … {self.class_names[-1]}",
        ]
        if sizes := pictures.header_sizes(self.paths):
            spans = [sorted({min(sides), max(sides)}) for sides in zip(*sizes, strict=True)]
            width, height = ("–".join(map(str, span)) for span in spans)
            lines.append(f"width × height in pixels: {width} × {height}")
        if single := int((counts == 1).sum()):
            lines.append(f"classes with a single image: {single:,} (nothing to retrieve for them)")
        return "\n  ".join([*lines, *(f"note: {note}" for note in self.notes)])


def test_splits(name: str) -> tuple[str, ...]:
    """The parts that the test images of a data set come in."""
    return ("query", "gallery") if name == "inshop" else ("test",)


def prepare(
    name: str,
    root: str | os.PathLike | None = None,
    *,
    allow_partial: bool = False,
    progress: bool = True,
    **options,
) -> Path:
    """Draw, or fetch, verify and unpack a data set; returns at once when that has been done.

    Killed at any moment, the next call resumes or starts anew, and never takes half for whole.

    Args:
        name: one of `NAMES`; ``"folder"`` is only looked through.
        root, allow_partial, options: as for `load`.
        progress: show bars.

    Returns:
        The data set's own folder.

    Raises:
        SobookError: wrong name, option or content.
        DownloadError: what cannot be fetched; the message says how to get it by hand.
    """
    options = _checked_options(name, options)
    if name == "aviary":
        return _aviary().prepare(files.data_root(root), **options, progress=progress)
    if name == "folder":
        load_splits("folder", root)
        return Path(root or "").expanduser()

    def check(home: Path) -> None:
        _read_benchmark(name, home, allow_partial)

    return fetch.install(name, benchmarks.cards()[name], files.data_root(root), check, progress)


def load(
    name: str,
    split: str,
    root: str | os.PathLike | None = None,
    *,
    allow_partial: bool = False,
    **options,
) -> ImageSet:
    """Read one split of a data set; the classes of train and test never overlap.

    Args:
        name: one of `NAMES`.
        split: ``train``, ``test``, or ``validation`` (a fifth of the *training classes*, as
            `hold_out` draws them); In-Shop has ``query`` and ``gallery`` instead of ``test``.
        root: the folder that holds each benchmark's own folder as published; for ``"folder"``
            your own folder, with one folder per class (inner folders belong to the outer one).
            Default: ``SOBOOK_DATA``, else ``data/``.
        allow_partial: accept a benchmark with images or classes missing; a warning then follows
            the data in `ImageSet.notes`.
        **options: of the aviary: ``species``, ``images_per_species``, ``size``, ``seed``, and
            ``split_by_genus``: 1 for training and test classes that share no genus. Each test
            class then has twice as many relatives among the others: compare only within a split.
            Validation classes are drawn from the training classes one by one all the same.

    Raises:
        SobookError: unknown name, split or option; files missing; counts off.
    """
    check_choice("data set", name, NAMES)
    check_choice(f"split of {name}", split, ("train", "validation", *test_splits(name)))
    parts = load_splits(name, root, allow_partial=allow_partial, **options)
    return hold_out(parts["train"])[1] if split == "validation" else parts[split]


def load_splits(
    name: str, root: str | os.PathLike | None = None, *, allow_partial: bool = False, **options
) -> dict[str, ImageSet]:
    """Read all parts of a data set, with one walk of its folder or one reading of its lists.

    Args:
        name, root, allow_partial, options: as for `load`.

    Returns:
        "train" and "test"; for In-Shop "train", "query" and "gallery".
    """
    options = _checked_options(name, options)
    if name == "aviary":
        parts = _read_aviary(files.data_root(root), options)
    elif name == "folder":
        parts = _read_folder(root)
    else:
        home = files.data_root(root) / benchmarks.cards()[name]["folder"]
        parts = _read_benchmark(name, home, allow_partial)
    if notes := dict.fromkeys(note for part in parts.values() for note in part.notes):
        warnings.warn(f"{name}: {'; '.join(notes)}", stacklevel=2)
    return parts


def _checked_options(name: str, options: Mapping[str, Any]) -> dict[str, int]:
    """Options of a data set as plain whole numbers."""
    check_choice("data set", name, NAMES)
    check_fields(name, options, _OPTIONS.get(name, ()))
    return {option: plain(option, value, int) for option, value in options.items()}


def hold_out(
    image_set: ImageSet, fraction: float = 0.2, seed: int = 0, *, at_least: int = 1
) -> tuple[ImageSet, ImageSet]:
    """Split by whole classes into (train, validation).

    Retrieval is judged on classes never trained on, so settings are chosen on such classes too.

    Args:
        image_set: the training images.
        fraction: of the classes, for validation; between 0 and 1.
        seed: draws the classes.
        at_least: fewest classes on either side. Two where Recall@1 of the validation classes
            selects something: within a single class every neighbor is relevant.

    Raises:
        DatasetError: a fraction outside (0, 1), or too few classes.
    """
    classes = image_set.num_classes
    if not 0 < fraction < 1:
        raise DatasetError(f"the fraction to hold out must lie between 0 and 1, not {fraction}.")
    if classes < 2 * at_least:
        raise DatasetError(
            f"{classes} training class(es) are too few to hold out {at_least} for validation: "
            'add classes, or select nothing on them (selection="last", --selection last).'
        )
    count = min(max(round(fraction * classes), at_least), classes - at_least)
    held = np.random.default_rng(seed).permutation(classes)[:count]
    mask = np.isin(image_set.labels, held)
    train, validation = image_set.subset(~mask), image_set.subset(mask)
    return replace(train, split="train"), replace(validation, split="validation")


# --- readers --------------------------------------------------------------------------------------


def _aviary() -> ModuleType:
    # By name and when asked: the data layer needs no drawing code to read photographs.
    return importlib.import_module("sobook.course.aviary.species")


def _read_aviary(root: Path, options: Mapping) -> dict[str, ImageSet]:
    folder = _aviary().prepare(root, **options)
    names = [name for name in os.listdir(folder) if name.partition(".")[0].isdecimal()]
    # By number, as in the table of attributes: as text, 1000 would come before 101.
    names.sort(key=lambda name: int(name.partition(".")[0]))
    classes = {name: sorted((folder / name).glob("[0-9]*.png")) for name in names}
    trained = names[: (len(names) + 1) // 2]
    if options.get("split_by_genus"):
        genera = _aviary().split_genera([name.rpartition("_")[2] for name in names])
        trained = [name for name in names if name.rpartition("_")[2] in genera]
    tested = [name for name in names if name not in set(trained)]
    return {
        split: _from_folders({name: classes[name] for name in part}, "aviary", split)
        for split, part in (("train", trained), ("test", tested))
    }


def _read_folder(root: str | os.PathLike | None) -> dict[str, ImageSet]:
    """Subfolders train and test are taken as the split; else the classes are halved by name.

    Both parts have all notes of the folder.
    """
    if root is None:
        raise DatasetError("'folder' needs root=, the folder that holds one folder for each class.")
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DatasetError(f"there is no folder {root}: name the one with your class folders.")
    given = {name.casefold() for name in os.listdir(root) if (root / name).is_dir()}
    if {"train"} == given & {"train", "test"} and given & {"val", "valid", "validation"}:
        raise DatasetError(
            f"{root} holds folders train and val: name them train and test, or pass one of them as "
            "root, to have its classes halved."
        )
    scan = pictures.scan_folder(root)
    parts: dict[str, dict[str, list[Path]]] = {"train": {}, "test": {}}
    places = class_folders(root, scan.pictures)
    is_split = any(part for part, _ in places)
    for path, (part, name) in zip(scan.pictures, places, strict=True):
        if not name or (is_split and not part):
            scan.left_out[path] = "not in a class folder"
        else:
            parts[part or "train"].setdefault(name, []).append(path)
    notes = list(scan.notes())
    if shared := sorted(parts["train"].keys() & parts["test"].keys()):
        notes.append(
            f"train and test share {len(shared):,} classes, so retrieval is judged on classes that "
            f"were trained on: {pictures.listed(shared)}"
        )
    if not is_split:
        classes = sorted(parts["train"].items())
        if len(classes) < 2:
            raise DatasetError(
                f"{root} has {len(classes)} class folder(s) with pictures in them, but a split by "
                "class needs at least 2: put the pictures of each class into a folder of its own, "
                f"and name the folder that holds these.{''.join(f' Note: {n}.' for n in notes)}"
            )
        middle = (len(classes) + 1) // 2
        parts = {"train": dict(classes[:middle]), "test": dict(classes[middle:])}
    return {
        split: _from_folders(dict(sorted(part.items())), "folder", split, notes)
        for split, part in parts.items()
    }


def class_folders(root: Path, paths: Sequence[Path]) -> list[tuple[str, str]]:
    """Split and class of the pictures in a folder, by the folders that they are in.

    The outermost folder is the class. Where there are folders train and test, they are the split
    and the next one is the class; one of the two alone is a class like any other.

    Returns:
        "train", "test" or "" where the folder has no split, and the class, "" where there is none.
    """
    inner = [path.parent.relative_to(root).parts for path in paths]
    is_split = {"train", "test"} <= {parts[0].casefold() for parts in inner if parts}
    places = []
    for outer, *deeper in (parts or ("",) for parts in inner):
        in_part = is_split and outer.casefold() in ("train", "test")
        part, name = (outer.casefold(), "".join(deeper[:1])) if in_part else ("", outer)
        # A Mac writes é as two characters, others as one: the class is the same.
        places.append((part, unicodedata.normalize("NFC", name)))
    return places


def _from_folders(
    classes: Mapping[str, list[Path]], name: str, split: str, notes: Iterable[str] = ()
) -> ImageSet:
    labels = np.repeat(np.arange(len(classes)), [len(paths) for paths in classes.values()])
    paths = tuple(chain.from_iterable(classes.values()))
    return ImageSet(paths, labels, tuple(classes), name, split, tuple(notes))


def _read_benchmark(name: str, home: Path, allow_partial: bool) -> dict[str, ImageSet]:
    """All images listed and there, if they are as many as the manifest says, or may be fewer."""
    parts = {}
    for split, listing in benchmarks.read(name, home).items():
        paths = [listing.base / path for path, _ in listing.images]
        there = np.array([os.path.isfile(path) for path in paths], dtype=bool)
        ids = np.array([k for _, k in listing.images], dtype=np.int64)[there]
        notes, classes = pictures.own_notes(home), len(np.unique(ids))
        official = benchmarks.cards()[name]["splits"][split]
        if (len(ids), classes) != (official["images"], official["classes"]):
            counts = (
                f"{len(ids):,} of {official['images']:,} images, "
                f"{classes:,} of {official['classes']:,} classes"
            )
            if not allow_partial:
                gone = "" if there.all() else f", {paths[there.argmin()]} is missing"
                raise DatasetError(
                    f"{name} {split} in {home} is not the whole benchmark: {counts}{gone}; move it "
                    "away and prepare it anew, or pass allow_partial=True to use what is there."
                )
            notes.append(f"{split} partial: {counts}")
        # query and gallery must agree on labels: they take every class of the two, present or not
        kept = np.unique(list(listing.names) if split in ("query", "gallery") else ids)
        names = tuple(listing.names.get(k, f"class {k}") for k in kept.tolist())
        present, labels = tuple(compress(paths, there)), np.searchsorted(kept, ids)
        parts[split] = ImageSet(present, labels, names, name, split, tuple(notes))
    return parts
