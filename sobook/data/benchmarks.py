"""Layout of data sets on disk: the manifest, class folders, and readers of the official lists.

A reader turns a benchmark's layout into a `Listing` of one split. Whether the files are there, and
as many as the manifest says, is checked in `sobook.data.image_sets`, in the same way for all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from sobook import files
from sobook.data import pictures
from sobook.errors import DatasetError, first_line


@cache
def cards() -> dict[str, dict]:
    """``data/benchmarks.toml``: per benchmark its sources, layouts, counts, license, citation."""
    return files.read_toml(files.shipped("benchmarks.toml"))


class Listing(NamedTuple):
    """One split, or a whole benchmark, as its lists have it."""

    base: Path  # the folder that the paths are relative to
    images: list[tuple[str, int]]  # (path, the benchmark's own class id), N
    names: dict[int, str]  # id → name of every class that should be there

    def halves(self, classes: int) -> dict[str, Listing]:
        """Train on the first half of the classes 1..C, test on the other: no official split."""
        middle = classes // 2 + 1
        parts = {"train": range(1, middle), "test": range(middle, classes + 1)}
        return {
            split: Listing(
                self.base,
                [(path, k) for path, k in self.images if k in ids],
                {k: name for k, name in self.names.items() if k in ids},
            )
            for split, ids in parts.items()
        }


def read(name: str, home: Path) -> dict[str, Listing]:
    """Read all splits of a benchmark from its own folder.

    Raises:
        DatasetError: lists that are missing, damaged, or of another data set.
    """
    readers = {"cub200": _read_cub, "cars196": _read_cars, "sop": _read_sop, "inshop": _read_inshop}
    try:
        return readers[name](home)
    except DatasetError:
        raise
    except Exception as error:  # damaged bytes make scipy and Python raise anything
        raise DatasetError(
            f"{name}: the lists in {home} cannot be understood ({first_line(error)}): put the "
            "published ones there."
        ) from None


def _need(home: Path, *candidates: str) -> Path:
    """The first of the files or folders that exists in `home`."""
    for path in (home / candidate for candidate in candidates):
        if path.exists():
            return path
    raise DatasetError(
        f"{home} lacks {' or '.join(candidates)}: run `sobook prepare`, or name the folder that "
        "holds it (root=, --root or SOBOOK_DATA); data/README.md lists the accepted layouts."
    )


def _rows(path: Path, columns: int, skip: int = 0, split: Callable = str.split) -> list[list[str]]:
    """Rows of a list; the column that `split` comes to last may hold white space."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()[skip:]
    return [split(line.strip(), None, columns - 1) for line in lines if line.strip()]


def _read_cub(home: Path) -> dict[str, Listing]:
    names = {int(k): name for k, name in _rows(_need(home, "classes.txt"), 2)}
    class_of = {image: int(k) for image, k in _rows(_need(home, "image_class_labels.txt"), 2)}
    rows = _rows(_need(home, "images.txt"), 2)
    # An image without a class is left out here, and missed when images are counted.
    images = [(path, class_of[image]) for image, path in rows if image in class_of]
    return Listing(home / "images", images, names).halves(200)


def _read_cars(home: Path) -> dict[str, Listing]:
    if (home / "cars_annos.mat").exists():
        mat = _read_mat(home / "cars_annos.mat")
        listing = Listing(home, mat["annotations"], _car_names(mat))
    elif any((home / mark).exists() for mark in ("devkit", "car_devkit", "cars_meta.mat")):
        listing = _cars_devkit(home)
    else:
        listing = _cars_folders(home)
    return listing.halves(196)


def _read_mat(path: Path) -> dict:
    """A .mat file of Cars: "class_names", and "annotations" as (file, class id) of each image."""
    from scipy.io import loadmat  # here, since it takes a while to import

    content = loadmat(path, squeeze_me=True)
    if "annotations" in content:
        rows = content["annotations"]
        file = "fname" if "fname" in rows.dtype.names else "relative_im_path"
        content["annotations"] = [(str(row[file]), int(row["class"])) for row in rows]
    return content


def _car_names(mat: dict) -> dict[int, str]:
    return {k: str(name).replace("/", "-") for k, name in enumerate(mat["class_names"], 1)}


def _cars_devkit(home: Path) -> Listing:
    def mat(file: str) -> dict:
        return _read_mat(_need(home, file, f"devkit/{file}", f"car_devkit/devkit/{file}"))

    parts = {"train": mat("cars_train_annos.mat"), "test": mat("cars_test_annos_withlabels.mat")}
    images = []
    for name, part in parts.items():
        folder = f"cars_{name}"
        if (home / folder / folder).is_dir():  # one of the Kaggle copies doubles it
            folder = f"{folder}/{folder}"
        images += [(f"{folder}/{file}", class_id) for file, class_id in part["annotations"]]
    return Listing(home, images, _car_names(mat("cars_meta.mat")))


def _cars_folders(home: Path) -> Listing:
    """One folder per class, without ids: class 98 is the last with E, class 99 the first with F.

    So the alphabet gives the official split, although not the official order of classes.
    """
    base = _need(home, "train", "car_data/train", "car_data/car_data/train").parent
    paths = [*sorted(base.glob("train/*/[!.]*.jpg")), *sorted(base.glob("test/*/[!.]*.jpg"))]
    paths.sort(key=lambda path: path.parent.name)
    names = sorted({path.parent.name for path in paths})
    early = [name for name in names if name.casefold() < "f"]
    late = [name for name in names if name.casefold() >= "f"]
    ids = {name: k for k, name in [*enumerate(early, 1), *enumerate(late, 99)]}
    images = [(str(path.relative_to(base)), ids[path.parent.name]) for path in paths]
    return Listing(base, images, {k: name for name, k in ids.items()})


def _read_sop(home: Path) -> dict[str, Listing]:
    """A header, then ``image_id class_id super_class_id path``."""
    splits = {split: Listing(home, [], {}) for split in ("train", "test")}
    for split, listing in splits.items():
        for _, item, _, path in _rows(_need(home, f"Ebay_{split}.txt"), 4, skip=1):
            listing.images.append((path, int(item)))
            kind = path.partition("/")[0].removesuffix("_final")
            listing.names.setdefault(int(item), f"{kind} {item}")
    return splits


def _read_inshop(home: Path) -> dict[str, Listing]:
    """The number of images, a header, then ``image_name item_id evaluation_status``."""
    index = _need(home, "Eval/list_eval_partition.txt", "list_eval_partition.txt")
    base = home / "Img" if (home / "Img").is_dir() else home
    trained, tested = dict[int, str](), dict[int, str]()  # query and gallery have the same classes
    names = {"train": trained, "query": tested, "gallery": tested}
    splits = {split: Listing(base, [], names[split]) for split in names}
    for path, item, status in _rows(index, 3, skip=2, split=str.rsplit):
        class_id = int(item.removeprefix("id_"))
        splits[status].images.append((path, class_id))
        splits[status].names[class_id] = item
    paths = [base / path for listing in splits.values() for path, _ in listing.images]
    if any(max(size) > 256 for size in pictures.header_sizes(paths, most=9)):
        raise DatasetError(
            f"{home} holds In-Shop's high-resolution pictures, but the benchmark's numbers are "
            "made on the 256-pixel ones: put the content of img.zip there instead."
        )
    return splits
