"""What images there are, their labels and their splits: the aviary, four benchmarks, a folder.

`load` turns a data set as published into an `ImageSet`, split by class as the literature does, and
checks it against the counts in ``data/benchmarks.toml``; `prepare` fetches what can be fetched.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from sobook import files
from sobook.data import benchmarks, fetch
from sobook.errors import DatasetError, suggest

NAMES = ("aviary", "cub200", "cars196", "sop", "inshop", "folder")
_AVIARY_OPTIONS = {"species": 100, "images_per_species": 40, "size": 96, "seed": 0}
_HOLD_OUT_OPTIONS = {"validation_fraction": 0.2, "validation_seed": 0}


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
        labels = np.asarray(self.labels)
        if len(self.paths) == 0:
            raise DatasetError(f"{self.name} {self.split} is empty: no image is left in it.")
        if labels.shape != (len(self.paths),) or labels.dtype.kind not in "iu":
            raise DatasetError(
                f"{self.name} {self.split}: labels must be {len(self.paths)} whole numbers, one "
                f"per image, but are {labels.dtype} of shape {labels.shape}."
            )
        if labels.min() < 0 or labels.max() >= len(self.class_names):
            raise DatasetError(
                f"{self.name} {self.split}: labels must lie in 0..{len(self.class_names) - 1}, but "
                f"reach from {labels.min()} to {labels.max()}."
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
        if indices.size == 0 or (indices.dtype == bool and not indices.any()):
            raise DatasetError(f"an empty subset of {self.name} {self.split} was asked for.")
        if indices.ndim != 1 or indices.dtype.kind not in "iub":
            raise DatasetError(f"subset takes a list of whole numbers, not {indices.dtype}.")
        try:
            chosen = np.arange(len(self))[indices]
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

    def describe(self) -> Description:
        """Numbers of images and classes, sizes (of at most 100 images) and notes, to be printed."""
        counts = np.bincount(self.labels, minlength=self.num_classes)
        rows = {
            "images": f"{len(self):,}",
            "classes": f"{self.num_classes:,}",
            "images per class (min / median / max)": (
                f"{counts.min()} / {np.median(counts):g} / {counts.max()}"
            ),
            "first and last class": f"{self.class_names[0]} … {self.class_names[-1]}",
        }
        looked_at = np.linspace(0, len(self) - 1, min(len(self), 100)).astype(int)
        if sizes := _sizes(self.paths[i] for i in looked_at):
            rows["width × height in pixels"] = " × ".join(
                f"{min(sides)}–{max(sides)}" if min(sides) < max(sides) else str(sides[0])
                for sides in zip(*sizes, strict=True)
            )
        if single := int((counts == 1).sum()):
            rows["classes with a single image"] = f"{single:,} (nothing to retrieve for them)"
        return Description(f"{self.name}, {self.split}", rows, self.notes)


@dataclass(frozen=True)
class Description:
    """What `ImageSet.describe` found; prints one fact per line."""

    title: str
    rows: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        lines = [f"{key}: {value}" for key, value in self.rows.items()]
        return "\n  ".join([self.title, *lines, *(f"note: {note}" for note in self.notes)])


def _sizes(paths: Iterable[Path]) -> list[tuple[int, int]]:
    """(width, height) of the pictures whose headers can be read."""
    found = []
    for path in paths:
        try:
            with Image.open(path) as image:
                found.append(image.size)
        except benchmarks.DECODING_ERRORS:
            continue  # reported by whoever wants its pixels
    return found


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
        **options: of the aviary: ``species``, ``images_per_species``, ``size``, ``seed``.

    Returns:
        The data set's own folder.

    Raises:
        DatasetError: wrong name, option or content.
        DownloadError: what cannot be fetched; the message says how to get it by hand.
    """
    _check_name(name)
    _check_options(name, options, _own_options(name))
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
        **options: ``validation_fraction``, ``validation_seed``; for the aviary also ``species``,
            ``images_per_species``, ``size``, ``seed``.

    Raises:
        DatasetError: unknown name, split or option; files missing; counts off.
    """
    _check_words(name, split, options)
    fraction, seed = (options.pop(key, default) for key, default in _HOLD_OUT_OPTIONS.items())
    listed = "train" if split == "validation" else split
    image_set = _read(name, listed, root, allow_partial, options)
    if split == "validation":
        image_set = hold_out(image_set, fraction, seed)[1]
    if notes := image_set.notes:
        more = f" (and {len(notes) - 1} more, see .notes)" if len(notes) > 1 else ""
        warnings.warn(f"{name} {split}: {notes[0]}{more}", stacklevel=2)
    return image_set


def notes(
    name: str, root: str | os.PathLike | None = None, *, allow_partial: bool = False, **options
) -> tuple[str, ...]:
    """What a report on a data set has to say of it: parts that are missing, files left out.

    Args:
        name, root, allow_partial, options: as for `load`.
    """
    if name != "folder" and not allow_partial:
        return ()  # `load` refuses anything to be noted
    tested = ("query", "gallery") if name == "inshop" else ("test",)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # they are what is returned
        parts = [
            load(name, split, root, allow_partial=allow_partial, **options)
            for split in ("train", *tested)
        ]
    named = [
        note if name == "folder" else f"{part.split} {note}"
        for part in parts
        for note in part.notes
    ]
    return tuple(dict.fromkeys(named))


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


def _check_words(name: str, split: str, options: Mapping) -> None:
    """Refuse unknown names, splits and options, with the near match."""
    _check_name(name)
    if name == "inshop" and split == "test":
        raise DatasetError(
            "inshop has no split 'test': its test images come in two parts, so load 'query' and "
            "'gallery' and evaluate the one against the other."
        )
    splits = ["train", "validation", *(["query", "gallery"] if name == "inshop" else ["test"])]
    if split not in splits:
        near = suggest(split, splits)
        raise DatasetError(f"unknown split {split!r}.{near} {name} has {', '.join(splits)}.")
    _check_options(name, options, [*_own_options(name), *_HOLD_OUT_OPTIONS])


def _check_name(name: str) -> None:
    if name not in NAMES:
        near = suggest(name, NAMES)
        raise DatasetError(f"unknown data set {name!r}.{near} There are {', '.join(NAMES)}.")


def _own_options(name: str) -> list[str]:
    """Options that decide what a data set holds; only the aviary has any."""
    return list(_AVIARY_OPTIONS) if name == "aviary" else []


def _check_options(name: str, options: Iterable[str], known: Collection[str]) -> None:
    for option in options:
        if option not in known:
            near = suggest(option, known)
            takes = ", ".join(known) or "no options"
            raise DatasetError(f"unknown option {option!r} for {name}.{near} It takes {takes}.")


def _read(
    name: str, split: str, root: str | os.PathLike | None, allow_partial: bool, options: Mapping
) -> ImageSet:
    if name == "aviary":
        return _read_aviary(split, root, options)
    if name == "folder":
        return _read_folder(split, root)
    home = benchmarks.home(name, files.data_root(root))
    return _read_benchmark(name, split, home, allow_partial)


def _aviary() -> ModuleType:
    # By name and when asked: the data layer needs no drawing code to read photographs.
    return importlib.import_module("sobook.aviary.species")


def _read_aviary(split: str, root: str | os.PathLike | None, options: Mapping) -> ImageSet:
    folder = _aviary().prepare(files.data_root(root), **{**_AVIARY_OPTIONS, **options})
    classes, _ = benchmarks.class_folders(folder)
    # By number, as in the table of attributes: as text, 1000 would come before 101.
    in_order = sorted(classes, key=lambda name: int(name.partition(".")[0]))
    classes = {name: classes[name] for name in in_order}
    return _from_folders(_half(classes, split, folder), "aviary", split)


def _read_folder(split: str, root: str | os.PathLike | None) -> ImageSet:
    """Subfolders train and test are taken as the split; else the classes are halved by name."""
    root = _own_folder(root)
    given = (root / "train").is_dir() and (root / "test").is_dir()
    classes, left_out = benchmarks.class_folders(root / split if given else root)
    if not given:
        classes = _half(classes, split, root)
    key = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:12]
    memory = files.data_root() / "cache" / f"folder-{key}.json"
    unreadable = benchmarks.unreadable((p for paths in classes.values() for p in paths), memory)
    classes = {name: [p for p in paths if p not in unreadable] for name, paths in classes.items()}
    classes = {name: paths for name, paths in classes.items() if paths}
    if not classes:
        raise DatasetError(f"folder {split} is empty: no picture in {root} can be read.")
    left_out |= unreadable
    notes = [f"left out {path}: {reason}" for path, reason in left_out.items()]
    return _from_folders(classes, "folder", split, notes)


def _own_folder(root: str | os.PathLike | None) -> Path:
    if root is None:
        raise DatasetError("'folder' needs root=, the folder that holds one folder for each class.")
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DatasetError(
            f"there is no folder {root}: name the one that holds your class folders."
        )
    return root


def _half(classes: dict[str, list[Path]], split: str, root: Path) -> dict[str, list[Path]]:
    """The first half of the classes, in their order, is for training, the second for testing."""
    if len(classes) < 2:
        raise DatasetError(
            f"{root} has {len(classes)} class folder(s) with pictures in them, but a split by "
            "class needs at least 2: put the pictures of each class into a folder of its own."
        )
    names, middle = list(classes), (len(classes) + 1) // 2
    chosen = names[:middle] if split == "train" else names[middle:]
    return {name: classes[name] for name in chosen}


def _from_folders(classes: Mapping, name: str, split: str, notes: Iterable[str] = ()) -> ImageSet:
    labels = np.repeat(np.arange(len(classes)), [len(paths) for paths in classes.values()])
    paths = tuple(path for paths in classes.values() for path in paths)
    return ImageSet(paths, labels, tuple(classes), name, split, tuple(notes))


def _read_benchmark(name: str, split: str, home: Path, allow_partial: bool) -> ImageSet:
    listing = benchmarks.read(name, home, split)
    there = _present(listing)
    if not there.all() and not allow_partial:
        first = listing.base / listing.paths[int(np.argmin(there))]
        raise DatasetError(
            f"{name} {split}: {first} is missing, as are {int((~there).sum()) - 1:,} more of the "
            f"images listed in {listing.index.name}; move {home} away and prepare it anew, or pass "
            "allow_partial=True to do without them."
        )
    classes = np.asarray(listing.classes, dtype=np.int64)[there]
    notes = _compare(name, split, home, listing.names, classes, allow_partial)
    # query and gallery must agree on labels: they take every class of the two, present or not
    kept = np.unique(list(listing.names) if split in ("query", "gallery") else classes)
    paths = tuple(listing.base / listing.paths[i] for i in np.flatnonzero(there))
    names = tuple(listing.names[k] for k in kept.tolist())
    return ImageSet(paths, np.searchsorted(kept, classes), names, name, split, notes)


def _present(listing: benchmarks.Listing) -> np.ndarray:
    """(N,) whether each listed file exists: one look at each folder, not one at each file."""
    folders: dict[str, set[str]] = {}
    there = np.zeros(len(listing.paths), dtype=bool)
    for i, path in enumerate(listing.paths):
        folder, _, file = path.rpartition("/")
        if folder not in folders:
            where = listing.base / folder
            folders[folder] = set(os.listdir(where)) if where.is_dir() else set()
        there[i] = file in folders[folder]
    return there


def _compare(
    name: str,
    split: str,
    home: Path,
    names: Mapping[int, str],
    classes: np.ndarray,
    allow_partial: bool,
) -> tuple[str, ...]:
    """Check what is there against the official counts: a note where it differs and may do so."""
    official = benchmarks.cards()[name]["splits"][split]
    present = set(np.unique(classes).tolist())
    if (len(classes), len(present)) == (official["images"], official["classes"]):
        return ()
    found = (
        f"{len(classes):,} of {official['images']:,} images, "
        f"{len(present):,} of {official['classes']:,} classes"
    )
    if allow_partial:
        return (f"partial: {found}",)
    lacking = [names[k] for k in sorted(set(names) - present)]
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        found = f"{found} (no {', '.join(lacking[:3])}{more})"
    raise DatasetError(
        f"{name} {split} in {home} is not the whole benchmark: {found}; move it away and prepare "
        "it anew, or pass allow_partial=True to use what is there, which the reports will then say."
    )
