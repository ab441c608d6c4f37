"""How data sets lie on disk: the manifest, class folders, and readers of the official lists.

A reader turns a benchmark's layout into a `Listing` of one split. Whether the files are there, and
as many as the manifest says, is checked in `sobook.data.image_sets`, in the same way for all.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from sobook import files
from sobook.data import pictures
from sobook.errors import DatasetError, first_line


@cache
def cards() -> dict[str, dict]:
    """``data/benchmarks.toml``: per benchmark its sources, layouts, counts, license, citation."""
    return files.read_toml(files.shipped("benchmarks.toml"))


def home(name: str, root: Path) -> Path:
    """The benchmark's own folder inside `root`, which must exist."""
    folder = cards()[name]["folder"]
    if not (root / folder).is_dir():
        raise DatasetError(
            f"{name} is not in {root}: there is no folder {folder}. Run `sobook prepare {name}`, "
            f"or name the folder that holds {folder} (root=, --root or SOBOOK_DATA)."
        )
    return root / folder


STAND_IN = "STAND_IN.json"  # in the folder of a benchmark whose pictures `sobook rehearse` drew


def stand_in(home: Path) -> dict[str, Any] | None:
    """What marks drawings in place of a benchmark's pictures; None for the benchmark itself.

    Returns:
        "note", which every report has to carry, and "splits", the counts, as in the manifest.

    Raises:
        DatasetError: the marker is damaged.
    """
    try:
        about = json.loads((home / STAND_IN).read_text(encoding="utf-8"))
        return {"note": str(about["note"]), "splits": dict(about["splits"])}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DatasetError(
            f"{home / STAND_IN} marks a stand-in, but cannot be read ({first_line(error)}): delete "
            f"{home}, and rehearse anew."
        ) from None


def stand_in_note(name: str, splits: dict[str, dict[str, int]]) -> str:
    """What every report on a stand-in says."""
    total = sum(count["images"] for count in splits.values())
    return f"stand-in: {total:,} drawn patterns in the layout of {name}, not its pictures"


def class_folders(root: Path) -> dict[str, list[Path]]:
    """Pictures, by their names alone, of each folder directly in `root`; both sorted."""
    classes: dict[str, list[Path]] = {}
    for path in pictures.walk(root)[0]:
        if path.parent != root:
            classes.setdefault(path.relative_to(root).parts[0], []).append(path)
    return classes


# --- the official lists ---------------------------------------------------------------------------


class Listing(NamedTuple):
    """One split, or all of a benchmark, as its index tells it."""

    base: Path  # the folder that the paths are relative to
    images: list[tuple[str, int]]  # (path, the benchmark's own class id), N
    names: dict[int, str]  # id → name of every class that should be there

    def only(self, ids: range) -> Listing:
        return Listing(
            self.base,
            [(path, k) for path, k in self.images if k in ids],
            {k: name for k, name in self.names.items() if k in ids},
        )


def read(name: str, home: Path, split: str) -> Listing:
    """Read one split of a benchmark from its own folder.

    Raises:
        DatasetError: lists that are missing, damaged, or of another data set.
    """
    try:
        listing = _read(name, home, split)
        if unknown := {k for _, k in listing.images} - listing.names.keys():
            raise DatasetError(f"{name}: class {min(unknown)} has no name in the lists in {home}.")
        if any(not 0 <= k < 2**31 for k in listing.names):
            raise DatasetError(f"{name}: the lists in {home} hold impossible class numbers.")
        return listing
    except DatasetError:
        raise
    except Exception as error:  # damaged bytes make scipy and Python raise anything
        raise DatasetError(
            f"{name}: the lists in {home} cannot be understood ({first_line(error)}): put the "
            "published ones there."
        ) from None


def _read(name: str, home: Path, split: str) -> Listing:
    if name == "cub200":  # whatever train_test_split.txt says
        return _read_cub(home).only(range(1, 101) if split == "train" else range(101, 201))
    if name == "cars196":  # over the union of the official train and test images
        return _read_cars(home).only(range(1, 99) if split == "train" else range(99, 197))
    return _read_sop(home, split) if name == "sop" else _read_inshop(home, split)


def _need(home: Path, *candidates: str) -> Path:
    """The first of the files or folders that exists in `home`."""
    for candidate in candidates:
        if (home / candidate).exists():
            return home / candidate
    raise DatasetError(
        f"{home} lacks {' or '.join(candidates)}: the accepted layouts are in data/README.md."
    )


def _rows(path: Path, columns: int, skip: int = 0, split: Callable = str.split) -> list[list[str]]:
    """Rows of a list; the column that `split` comes to last may hold white space."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    rows = [split(line.strip(), None, columns - 1) for line in lines[skip:] if line.strip()]
    for row in rows:
        if len(row) != columns:
            raise DatasetError(f"{path}: {columns} columns expected, not {' '.join(row)!r}.")
    return rows


def _read_cub(home: Path) -> Listing:
    names = {int(k): name for k, name in _rows(_need(home, "classes.txt"), 2)}
    class_of = {image: int(k) for image, k in _rows(_need(home, "image_class_labels.txt"), 2)}
    rows = _rows(_need(home, "images.txt"), 2)
    # An image without a class is left out here, and missed when images are counted.
    images = [(path, class_of[image]) for image, path in rows if image in class_of]
    return Listing(home / "images", images, names)


def _read_cars(home: Path) -> Listing:
    if (home / "cars_annos.mat").exists():
        (everything,) = _mats(home / "cars_annos.mat")
        return Listing(home, everything["images"], _car_names(everything))
    if any((home / mark).exists() for mark in ("devkit", "car_devkit", "cars_meta.mat")):
        return _cars_devkit(home)
    return _cars_folders(home)


# Of Cars' .mat files all that is needed: names of classes, and (file, class) of each image.
_READ_MATS = """
import json, sys
from scipy.io import loadmat

for path in sys.argv[1:]:
    content, found = loadmat(path, squeeze_me=True), {}
    if "class_names" in content:
        found["names"] = [str(name) for name in content["class_names"]]
    if "annotations" in content:
        rows = content["annotations"]
        file = "fname" if "fname" in rows.dtype.names else "relative_im_path"
        found["images"] = [(str(row[file]), int(row["class"])) for row in rows]
    print(json.dumps(found))
"""


def _mats(*paths: Path) -> list[dict]:
    """What .mat files hold."""
    return _read_mats(*((str(path), path.stat().st_mtime_ns) for path in paths))


@lru_cache(4)
def _read_mats(*versions: tuple[str, int]) -> list[dict]:
    """A process of its own reads (path, date), since a damaged file makes SciPy crash."""
    paths = [path for path, _ in versions]
    command = [sys.executable, "-c", _READ_MATS, *paths]
    done = subprocess.run(command, capture_output=True, timeout=300, check=False)
    if done.returncode:
        raise DatasetError(f"{' or '.join(paths)} is damaged: put the published one there.")
    return [json.loads(line) for line in done.stdout.splitlines()]


def _car_names(mat: dict) -> dict[int, str]:
    return {k: name.replace("/", "-") for k, name in enumerate(mat["names"], 1)}


def _cars_devkit(home: Path) -> Listing:
    def find(file: str) -> Path:
        return _need(home, file, f"devkit/{file}", f"car_devkit/devkit/{file}")

    indices = [
        find(f"cars_{part}.mat") for part in ("meta", "train_annos", "test_annos_withlabels")
    ]
    meta, *parts = _mats(*indices)
    images = []
    for name, part in zip(("train", "test"), parts, strict=True):
        folder = f"cars_{name}"
        if (home / folder / folder).is_dir():  # one of the Kaggle copies doubles it
            folder = f"{folder}/{folder}"
        images += [(f"{folder}/{file}", class_id) for file, class_id in part["images"]]
    return Listing(home, images, _car_names(meta))


def _cars_folders(home: Path) -> Listing:
    """One folder per class, without ids: class 98 is the last with E, class 99 the first with F.

    So the alphabet gives the official split, although not the official order of classes.
    """
    base = _need(home, "train", "car_data/train", "car_data/car_data/train").parent
    parts = [class_folders(base / part) for part in ("train", "test") if (base / part).is_dir()]
    names = sorted(set().union(*parts))
    early = [name for name in names if name.casefold() < "f"]
    late = [name for name in names if name.casefold() >= "f"]
    ids = {name: k for k, name in [*enumerate(early, 1), *enumerate(late, 99)]}
    images = [
        (path.relative_to(base).as_posix(), ids[name])
        for name in names
        for part in parts
        for path in part.get(name, ())
    ]
    return Listing(base, images, {k: name for name, k in ids.items()})


def _read_sop(home: Path, split: str) -> Listing:
    """A header, then ``image_id class_id super_class_id path``."""
    listing = Listing(home, [], {})
    for _, item, _, path in _rows(_need(home, f"Ebay_{split}.txt"), 4, skip=1):
        listing.images.append((path, int(item)))
        kind = path.partition("/")[0].removesuffix("_final")
        listing.names.setdefault(int(item), f"{kind} {item}")
    return listing


def _read_inshop(home: Path, split: str) -> Listing:
    """The number of images, a header, then ``image_name item_id evaluation_status``."""
    index = _need(home, "Eval/list_eval_partition.txt", "list_eval_partition.txt")
    listing = Listing(home / "Img" if (home / "Img").is_dir() else home, [], {})
    for path, item, status in _rows(index, 3, skip=2, split=str.rsplit):
        class_id = int(item.removeprefix("id_"))
        if status == split:
            listing.images.append((path, class_id))
        if (status == "train") == (split == "train"):  # query and gallery have the same classes
            listing.names[class_id] = item
    sizes = pictures.header_sizes([listing.base / path for path, _ in listing.images], most=3)
    if any(max(size) > 256 for size in sizes):
        raise DatasetError(
            f"{home} holds In-Shop's high-resolution pictures, but the benchmark's numbers are "
            "made on the 256-pixel ones: put the content of img.zip there instead."
        )
    return listing
