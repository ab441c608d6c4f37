"""How data sets lie on disk: the manifest, folders of pictures, and readers of the official lists.

A reader turns a benchmark's layout into a `Listing` of one split. Whether the files are there, and
as many as the manifest says, is checked in `sobook.data.image_sets`, in the same way for all.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image

from sobook import files
from sobook.errors import DatasetError

EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
    + (".ppm", ".pgm", ".avif", ".jp2", ".tga")
)
# What Pillow raises on files that are no picture, damaged, or unreasonably large.
DECODING_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
_CLUTTER = ("Thumbs.db", "desktop.ini", "__MACOSX")


@cache
def cards() -> dict[str, dict]:
    """``data/benchmarks.toml``: per benchmark its sources, layouts, counts, license, citation."""
    return files.read_toml(files.shipped("benchmarks.toml"))


@dataclass
class Listing:
    """One split as its index tells it.

    Attributes:
        index: the file it was read from.
        base: the folder that `paths` are relative to.
        paths: N paths, with forward slashes.
        classes: N class ids, the benchmark's own.
        names: id → name of every class that the split should have.
    """

    index: Path
    base: Path
    paths: list[str] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)

    def add(self, path: str, class_id: int) -> None:
        """Append one image."""
        self.paths.append(path)
        self.classes.append(class_id)


def home(name: str, root: Path) -> Path:
    """The benchmark's own folder inside `root`, which must exist."""
    folder = cards()[name]["folder"]
    if (root / folder).is_dir():
        return root / folder
    if root.name == folder and root.is_dir():
        raise DatasetError(
            f"{root} is the folder of {name} itself: name its parent, {root.parent}."
        )
    raise DatasetError(
        f"{name} is not in {root}: there is no folder {folder}. Run `sobook prepare {name}`, or "
        f"name the folder that holds {folder} (root=, --root or SOBOOK_DATA)."
    )


def read(name: str, home: Path, split: str) -> Listing:
    """Read one split of a benchmark from its own folder."""
    return _READERS[name](home, split)


def picture_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files in a folder and its subfolders, sorted: pictures by their extension, and others.

    What is hidden, and what operating systems leave behind, is in neither list.
    """
    found = []
    for where, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not _is_clutter(name)]
        found += [Path(where, name) for name in names if not _is_clutter(name)]
    found.sort()
    pictures = [path for path in found if path.suffix.lower() in EXTENSIONS]
    return pictures, [path for path in found if path.suffix.lower() not in EXTENSIONS]


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name in _CLUTTER


def class_folders(root: Path) -> tuple[dict[str, list[Path]], dict[Path, str]]:
    """Pictures by class folder, both sorted; and the other files, each with why it is left out."""
    classes: dict[str, list[Path]] = {}
    left_out: dict[Path, str] = {}
    for entry in sorted(root.iterdir()):
        if _is_clutter(entry.name):
            continue
        if not entry.is_dir():
            left_out[entry] = "not in a class folder"
            continue
        pictures, others = picture_files(entry)
        if pictures:
            classes[entry.name] = pictures
        left_out |= dict.fromkeys(others, "not a picture file")
    return classes, left_out


def unreadable(paths: Iterable[Path], memory: Path) -> dict[Path, str]:
    """The pictures that cannot be decoded, each with the reason.

    Decoding all of a large folder takes a while, so verdicts are kept in the file `memory` and
    asked for again only when a picture's size or date has changed.
    """
    paths = list(paths)
    known = json.loads(memory.read_text(encoding="utf-8")) if memory.is_file() else {}

    def verdict(path: Path) -> list:
        stat = path.stat()
        old = known.get(str(path), [])
        version = [stat.st_size, stat.st_mtime_ns]
        return old if old[:2] == version else [*version, _why_unreadable(path)]

    with ThreadPoolExecutor(files.available_cores()) as pool:
        verdicts = dict(zip(map(str, paths), pool.map(verdict, paths), strict=True))
    if any(known.get(path) != found for path, found in verdicts.items()):
        files.write_json(memory, {**known, **verdicts})
    return {Path(path): why for path, (_, _, why) in verdicts.items() if why}


def _why_unreadable(path: Path) -> str | None:
    try:
        with Image.open(path) as image:
            image.load()
            return None
    except Image.UnidentifiedImageError:
        return "not a picture, whatever its name says" if path.stat().st_size else "empty file"
    except DECODING_ERRORS as error:
        return getattr(error, "strerror", None) or str(error)


def _need(home: Path, *candidates: str) -> Path:
    """The first of the files or folders that exists in `home`."""
    for candidate in candidates:
        if (home / candidate).exists():
            return home / candidate
    raise DatasetError(
        f"{home} lacks {' or '.join(candidates)}: the accepted layouts are in data/README.md."
    )


def _rows(path: Path, columns: int, skip: int = 0, from_right: bool = False) -> list[list[str]]:
    """Rows of a list separated by white space; the last (or first) column may hold spaces."""
    rows = []
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    for number, line in enumerate(lines[skip:], skip + 1):
        line = line.strip()
        row = line.rsplit(None, columns - 1) if from_right else line.split(None, columns - 1)
        if row and len(row) != columns:
            raise DatasetError(f"{path}, line {number}: {columns} columns expected, not {line!r}.")
        if row:
            rows.append(row)
    return rows


def _read_cub(home: Path, split: str) -> Listing:
    """Classes 1-100 train, 101-200 test, whatever train_test_split.txt says."""
    low, high = (1, 100) if split == "train" else (101, 200)
    listing = Listing(_need(home, "images.txt"), home / "images")
    names = {int(k): name for k, name in _rows(_need(home, "classes.txt"), 2)}
    listing.names = {k: name for k, name in names.items() if low <= k <= high}
    class_of = dict(_rows(_need(home, "image_class_labels.txt"), 2))
    for image, path in _rows(listing.index, 2):
        if image not in class_of:
            raise DatasetError(f"image_class_labels.txt in {home} has no line for image {image}.")
        class_id = int(class_of[image])
        if low <= class_id <= high:
            listing.add(path, class_id)
    return listing


def _read_cars(home: Path, split: str) -> Listing:
    """Classes 1-98 train, 99-196 test, over the union of the official train and test images."""
    if (home / "cars_annos.mat").exists():
        whole = _cars_joint(home)
    elif any((home / mark).exists() for mark in ("devkit", "car_devkit", "cars_meta.mat")):
        whole = _cars_devkit(home)
    else:
        whole = _cars_folders(home)
    listing = Listing(whole.index, whole.base)
    wanted = range(1, 99) if split == "train" else range(99, 197)
    listing.names = {k: name for k, name in whole.names.items() if k in wanted}
    for path, class_id in zip(whole.paths, whole.classes, strict=True):
        if class_id in wanted:
            listing.add(path, class_id)
    return listing


def _mat(path: Path) -> dict:
    from scipy.io import loadmat

    return loadmat(path, squeeze_me=True)


def _car_names(names: Iterable[str]) -> dict[int, str]:
    return {k: str(name).replace("/", "-") for k, name in enumerate(names, 1)}


def _cars_joint(home: Path) -> Listing:
    listing = Listing(home / "cars_annos.mat", home)
    mat = _mat(listing.index)
    listing.names = _car_names(mat["class_names"])
    listing.paths = [str(path) for path in mat["annotations"]["relative_im_path"]]
    listing.classes = [int(k) for k in mat["annotations"]["class"]]
    return listing


def _cars_devkit(home: Path) -> Listing:
    def find(file: str) -> Path:
        folders = ("", "devkit/", "car_devkit/devkit/", "car_devkit/")
        return _need(home, *(folder + file for folder in folders))

    names = _car_names(_mat(find("cars_meta.mat"))["class_names"])
    listing = Listing(find("cars_test_annos_withlabels.mat"), home, names=names)
    for part, index in (("train", find("cars_train_annos.mat")), ("test", listing.index)):
        folder = f"cars_{part}"
        if (home / folder / folder).is_dir():  # one of the Kaggle copies doubles it
            folder = f"{folder}/{folder}"
        table = _mat(index)["annotations"]
        for file, class_id in zip(table["fname"], table["class"], strict=True):
            listing.add(f"{folder}/{file}", int(class_id))
    return listing


def _cars_folders(home: Path) -> Listing:
    """One folder per class, without ids: class 98 is the last with E, class 99 the first with F.

    So the alphabet gives the official split, although not the official order of classes.
    """
    base = _need(home, "train", "car_data/train", "car_data/car_data/train").parent
    listing = Listing(base, base)
    parts = [class_folders(base / part)[0] for part in ("train", "test") if (base / part).is_dir()]
    names = sorted(set().union(*parts))
    early = [name for name in names if name.casefold() < "f"]
    late = [name for name in names if name.casefold() >= "f"]
    ids = {name: k for k, name in [*enumerate(early, 1), *enumerate(late, 99)]}
    listing.names = {k: name for name, k in ids.items()}
    for name in names:
        for path in (path for part in parts for path in part.get(name, ())):
            listing.add(path.relative_to(base).as_posix(), ids[name])
    return listing


def _read_sop(home: Path, split: str) -> Listing:
    """A header, then ``image_id class_id super_class_id path``."""
    listing = Listing(_need(home, f"Ebay_{split}.txt"), home)
    for _, item, _, path in _rows(listing.index, 4, skip=1):
        class_id = int(item)
        listing.add(path, class_id)
        if class_id not in listing.names:
            listing.names[class_id] = f"{path.partition('/')[0].removesuffix('_final')} {item}"
    return listing


def _read_inshop(home: Path, split: str) -> Listing:
    """The number of images, a header, then ``image_name item_id evaluation_status``."""
    index = _need(home, "Eval/list_eval_partition.txt", "list_eval_partition.txt")
    rows = _rows(index, 3, skip=2, from_right=True)
    announced = index.read_text(encoding="utf-8-sig").split(None, 1)[:1]
    if announced != [str(len(rows))]:
        raise DatasetError(f"{index} lists {len(rows)} images, but says {announced} in line 1.")
    listing = Listing(index, home / "Img" if (home / "Img").is_dir() else home)
    _refuse_high_resolution(listing.base, [path for path, *_ in rows])
    parts = ("train",) if split == "train" else ("query", "gallery")
    for path, item, status in rows:
        if status in parts:
            class_id = int(item.removeprefix("id_"))
            listing.names[class_id] = item
            if status == split:
                listing.add(path, class_id)
    return listing


def _refuse_high_resolution(base: Path, paths: list[str]) -> None:
    """Published numbers are made on the 256-pixel pictures; others cannot be held beside them."""
    large = (base / "img_highres").is_dir() and not (base / "img").is_dir()
    for path in paths[:: max(len(paths) // 3, 1)]:
        with contextlib.suppress(*DECODING_ERRORS), Image.open(base / path) as image:
            large |= max(image.size) > 256
    if large:
        raise DatasetError(
            f"{base} holds In-Shop's high-resolution pictures, but the benchmark's numbers are "
            "made on the 256-pixel ones: put the content of img.zip there instead."
        )


_READERS = {"cub200": _read_cub, "cars196": _read_cars, "sop": _read_sop, "inshop": _read_inshop}
