"""What images there are, their labels and their splits: the aviary, four benchmarks, a folder.

`load` turns a data set as published into an `ImageSet`, split by class as the literature does, and
checks it against the counts in ``data/benchmarks.toml``; `prepare` fetches what can be fetched.
"""

from __future__ import annotations

import importlib
import os
import unicodedata
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
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
        origin: of a subset, the set it was taken from and the (N,) rows there. Pixels and
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

    def subset(self, indices: Iterable[int] | np.ndarray) -> ImageSet:
        """The images at `indices` (whole numbers, or N booleans); labels become 0..C'-1 again."""
        indices = np.asarray(indices if isinstance(indices, np.ndarray) else list(indices))
        try:
            chosen = np.arange(len(self))[indices if indices.size else indices.astype(int)]
        except IndexError as error:
            raise DatasetError(f"subset of {self.name} {self.split}: {error}.") from None
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
            width, height = (
                f"{min(sides)}–{max(sides)}" if min(sides) < max(sides) else str(sides[0])
                for sides in zip(*sizes, strict=True)
            )
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
        root: as for `load`.
        allow_partial: accept a benchmark already there with images or classes missing.
        progress: show bars.
        **options: of the aviary, as for `load`.

    Returns:
        The data set's own folder.

    Raises:
        SobookError: wrong name, option or content.
        DownloadError: what cannot be fetched; the message says how to get it by hand.
    """
    check_choice("data set", name, NAMES)
    options = _checked_options(name, options)
    if name == "aviary":
        return _aviary().prepare(files.data_root(root), **options, progress=progress)
    if name == "folder":
        for split in ("train", "test"):
            load("folder", split, root)
        return _own_folder(root)
    card = benchmarks.cards()[name]

    def check(home: Path) -> None:
        for split in card["splits"]:
            _read_benchmark(name, split, home, allow_partial)

    return fetch.install(name, card, files.data_root(root), check, progress)


def load(
    name: str,
    split: str,
    root: str | os.PathLike | None = None,
    *,
    allow_partial: bool = False,
    validation_fraction: float = 0.2,
    validation_seed: int = 0,
    **options,
) -> ImageSet:
    """Read one split of a data set; the classes of train and test never overlap.

    Args:
        name: one of `NAMES`.
        split: ``train``, ``test``, or ``validation`` (a seeded draw of the *training classes*);
            In-Shop has ``query`` and ``gallery`` instead of ``test``.
        root: the folder that holds each benchmark's own folder as published; for ``"folder"``
            your own folder, with one folder per class. Default: ``SOBOOK_DATA``, else ``data/``.
        allow_partial: accept a benchmark with images or classes missing; a warning then follows
            the data in `ImageSet.notes`.
        validation_fraction, validation_seed: as for `hold_out`.
        **options: of the aviary: ``species``, ``images_per_species``, ``size``, ``seed``, and
            ``split_by_genus``: 1 for training and test classes that share no genus. Each test
            class then has twice as many relatives among the others: compare only within a split.
            Validation classes are drawn from the training classes one by one all the same.

    Raises:
        SobookError: unknown name, split or option; files missing; counts off.
    """
    check_choice("data set", name, NAMES)
    check_choice(f"split of {name}", split, ("train", "validation", *test_splits(name)))
    options = _checked_options(name, options)
    listed = "train" if split == "validation" else split
    if name == "aviary":
        image_set = _read_aviary(listed, root, options)
    elif name == "folder":
        image_set = _read_folder(listed, root)
    else:
        home = benchmarks.home(name, files.data_root(root))
        image_set = _read_benchmark(name, listed, home, allow_partial)
    if split == "validation":
        image_set = hold_out(image_set, validation_fraction, validation_seed)[1]
    if image_set.notes:
        warnings.warn(f"{name}: {'; '.join(image_set.notes)}", stacklevel=2)
    return image_set


def load_splits(
    name: str, root: str | os.PathLike | None = None, *, allow_partial: bool = False, **options
) -> dict[str, ImageSet]:
    """All parts of a data set: "train", and "test" or "query" and "gallery".

    Args:
        name, root, allow_partial, options: as for `load`.
    """
    parts = ("train", *test_splits(name))
    return {part: load(name, part, root, allow_partial=allow_partial, **options) for part in parts}


def notes(
    name: str, root: str | os.PathLike | None = None, *, allow_partial: bool = False, **options
) -> tuple[str, ...]:
    """What a report on a data set has to say of it: parts that are missing, files left out.

    Args:
        name, root, allow_partial, options: as for `load`.
    """
    if name in benchmarks.cards() and not allow_partial:  # `load` refuses anything else to be noted
        made = benchmarks.stand_in(files.data_root(root) / benchmarks.cards()[name]["folder"])
        return (made["note"],) if made else ()
    if name == "aviary":
        return ()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # they are what is returned
        parts = [
            load(name, split, root, allow_partial=allow_partial, **options)
            for split in ("train", *test_splits(name))
        ]
    return tuple(dict.fromkeys(note for part in parts for note in part.notes))


def _checked_options(name: str, options: Mapping[str, Any]) -> dict[str, int]:
    """Options of a data set as plain whole numbers."""
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
    classes, seed = image_set.num_classes, plain("seed", seed, int)
    if seed < 0:
        raise DatasetError(f"seed is {seed}: it must be 0 or more.")
    if not 0 < plain("the fraction to hold out", fraction, float) < 1:
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


def _aviary() -> ModuleType:
    # By name and when asked: the data layer needs no drawing code to read photographs.
    return importlib.import_module("sobook.course.aviary.species")


def _read_aviary(split: str, root: str | os.PathLike | None, options: Mapping) -> ImageSet:
    folder = _aviary().prepare(files.data_root(root), **options)
    classes = benchmarks.class_folders(folder)
    # By number, as in the table of attributes: as text, 1000 would come before 101.
    numbered = [name for name in classes if name.partition(".")[0].isdecimal()]
    in_order = sorted(numbered, key=lambda name: int(name.partition(".")[0]))
    classes = {name: classes[name] for name in in_order}
    if options.get("split_by_genus"):
        genera = {name: name.rpartition("_")[2] for name in in_order}
        trained = _aviary().split_genera(list(genera.values()))
        chosen = [name for name in in_order if (genera[name] in trained) == (split == "train")]
        return _from_folders({name: classes[name] for name in chosen}, "aviary", split)
    return _from_folders(_half(classes, split, folder), "aviary", split)


def _read_folder(split: str, root: str | os.PathLike | None) -> ImageSet:
    """Subfolders train and test are taken as the split; else the classes are halved by name.

    Both splits have all notes of the folder.
    """
    found = pictures.find(_own_folder(root))
    root, parts = found.folder, _given_split(found.folder)
    classes: dict[str, dict[str, list[Path]]] = {"train": {}, "test": {}}
    deeper = set()
    for path in found.pictures:
        folders = path.parent.relative_to(root).parts
        part = "train"  # all of them, until they are halved
        if parts:
            part, folders = parts.get("".join(folders[:1]), ""), folders[1:]
        if not part or not folders:
            found.left_out[path] = "not in a class folder"
            continue
        # A Mac writes é as two characters, others as one: the class is the same.
        classes[part].setdefault(unicodedata.normalize("NFC", folders[0]), []).append(path)
        if len(folders) > 1:
            deeper.add("/".join(folders[:2]))
    notes = list(found.notes())
    if deeper:
        notes.append(
            "classes are the outer folders: their pictures are also those of the "
            f"{len(deeper):,} folders inside: {pictures.listed(sorted(deeper))}"
        )
    both = sorted(classes["train"].keys() & classes["test"].keys())
    if both:
        notes.append(
            f"train and test share {len(both):,} classes, so retrieval is judged on classes that "
            f"were trained on: {pictures.listed(both)}"
        )
    chosen = dict(sorted(classes[split if parts else "train"].items()))
    if not parts:
        chosen = _half(chosen, split, root, notes)
    return _from_folders(chosen, "folder", split, notes)


def _given_split(root: Path) -> dict[str, str]:
    """The names of the folders that hold the split, each with its part; none where it is not given.

    Raises:
        DatasetError: a folder train, but a name for the other part that we do not know.
    """
    folders = {name: name.casefold() for name in os.listdir(root) if (root / name).is_dir()}
    parts = {name: part for name, part in folders.items() if part in ("train", "test")}
    if len(parts) == 2:
        return parts
    others = [name for name, part in folders.items() if part in ("val", "valid", "validation")]
    if parts and others:
        raise DatasetError(
            f"{root} holds the folders {next(iter(parts))} and {others[0]}: name them train and "
            "test, or pass one of them as root, to have its classes halved."
        )
    return {}


def _own_folder(root: str | os.PathLike | None) -> Path:
    if root is None:
        raise DatasetError("'folder' needs root=, the folder that holds one folder for each class.")
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DatasetError(f"there is no folder {root}: name the one with your class folders.")
    return root


def _half(
    classes: dict[str, list[Path]], split: str, root: Path, notes: Iterable[str] = ()
) -> dict[str, list[Path]]:
    """The first half of the classes, in their order, is for training, the second for testing."""
    if len(classes) < 2:
        raise DatasetError(
            f"{root} has {len(classes)} class folder(s) with pictures in them, but a split by "
            "class needs at least 2: put the pictures of each class into a folder of its own, and "
            f"name the folder that holds these.{''.join(f' Note: {note}.' for note in notes)}"
        )
    names, middle = list(classes), (len(classes) + 1) // 2
    chosen = names[:middle] if split == "train" else names[middle:]
    return {name: classes[name] for name in chosen}


def _from_folders(classes: Mapping, name: str, split: str, notes: Iterable[str] = ()) -> ImageSet:
    labels = np.repeat(np.arange(len(classes)), [len(paths) for paths in classes.values()])
    paths = tuple(chain.from_iterable(classes.values()))
    return ImageSet(paths, labels, tuple(classes), name, split, tuple(notes))


def _read_benchmark(name: str, split: str, home: Path, allow_partial: bool) -> ImageSet:
    """All images listed and there, if they are as many as the manifest says, or may be fewer."""
    listing = benchmarks.read(name, home, split)
    paths = [listing.base / path for path, _ in listing.images]
    there = np.array([os.path.isfile(path) for path in paths], dtype=bool)
    ids = np.array([k for _, k in listing.images], dtype=np.int64)[there]
    made, classes = benchmarks.stand_in(home), len(np.unique(ids))
    official = (made or benchmarks.cards()[name])["splits"][split]
    notes: tuple[str, ...] = (made["note"],) if made else ()
    if (len(ids), classes) != (official["images"], official["classes"]):
        found = (
            f"{len(ids):,} of {official['images']:,} images, "
            f"{classes:,} of {official['classes']:,} classes"
        )
        if not allow_partial:
            gone = "" if there.all() else f", {paths[there.argmin()]} is missing"
            raise DatasetError(
                f"{name} {split} in {home} is not the whole benchmark: {found}{gone}; move it away "
                "and prepare it anew, or pass allow_partial=True to use what is there."
            )
        notes = (*notes, f"{split} partial: {found}")
    # query and gallery must agree on labels: they take every class of the two, present or not
    kept = np.unique(list(listing.names) if split in ("query", "gallery") else ids)
    names = tuple(listing.names[k] for k in kept.tolist())
    present = tuple(path for path, exists in zip(paths, there, strict=True) if exists)
    return ImageSet(present, np.searchsorted(kept, ids), names, name, split, notes)
