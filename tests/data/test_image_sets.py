"""Readers, splits and counts: on the real lists, on official formats, and on what people get wrong.

The images are empty files wherever only the lists matter.
"""

import csv
import os
import shutil
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from sobook.course.aviary import species
from sobook.data import benchmarks, image_sets, load_splits
from sobook.data.image_sets import ImageSet, hold_out, load
from sobook.errors import DatasetError, SobookError
from tests.data.conftest import picture

PARTIAL = "ignore:.*partial"


def touch(base: Path, paths) -> None:
    """Empty files and their folders; most are links to one, which is many times faster to make."""
    for folder in {os.path.dirname(path) for path in paths}:
        (base / folder).mkdir(parents=True, exist_ok=True)
    first = None
    for i, path in enumerate(paths):
        if i % 1000 == 0:
            first = base / path
            first.touch(exist_ok=False)
        else:
            os.link(first, base / path)


@pytest.fixture(autouse=True)
def tidy(tmp_path):
    """Pytest keeps the folders of three runs, which here would be half a million files."""
    yield
    shutil.rmtree(tmp_path)


@pytest.fixture
def lists(shared_data) -> Path:
    """The complete official lists of CUB and Cars."""
    return shared_data / "lists"


@pytest.fixture
def small_card(monkeypatch):
    """Change what the manifest holds to be the official counts."""

    def change(name, **splits):
        counts = {k: {"images": n, "classes": c} for k, (n, c) in splits.items()}
        cards = {**benchmarks.cards(), name: {**benchmarks.cards()[name], "splits": counts}}
        monkeypatch.setattr(benchmarks, "cards", lambda: cards)

    return change


@pytest.fixture
def five() -> ImageSet:
    labels = np.repeat(np.arange(5), [1, 2, 3, 4, 5])
    paths = tuple(Path(f"{i}.png") for i in range(15))
    return ImageSet(paths, labels, tuple("abcde"), "toy", "train", ("a note",))


def test_subset_renumbers_labels_and_keeps_names(five):
    some = five.subset([14, 3, 4])
    assert some.class_names == ("c", "e")
    assert some.labels.tolist() == [1, 0, 0] and some.labels.dtype == np.int64
    assert [p.name for p in some.paths] == ["14.png", "3.png", "4.png"]
    assert (some.notes, len(some), some.num_classes) == (("a note",), 3, 2)
    assert five.subset(five.labels == 3).class_names == ("d",)


@pytest.mark.parametrize("labels", [[0, 5], [-1, 0], [0], [0.0, 1.0]])
def test_labels_must_fit(labels, five):
    with pytest.raises(DatasetError, match="labels must"):
        ImageSet((Path("a"), Path("b")), np.array(labels), ("x", "y"), "toy", "train")
    with pytest.raises(DatasetError, match="empty"):
        five.subset(np.zeros(15, bool))


def test_describe(tmp_path, five):
    for words in ("toy, train", "images: 15", "classes: 5", "1 / 3 / 5", "single image", "a note"):
        assert words in five.describe()
    for width, name in ((30, "a"), (50, "b"), (40, "c")):
        picture(tmp_path / name / "1.png", (width, 20))
    assert "pixels: 30–50 × 20" in load("folder", "train", tmp_path).describe()


def test_hold_out_takes_whole_classes(five):
    train, validation = hold_out(five, fraction=0.4, seed=3)
    assert (train.num_classes, validation.num_classes) == (3, 2)
    assert not set(train.class_names) & set(validation.class_names)
    assert {*train.paths, *validation.paths} == set(five.paths)
    assert (train.split, validation.split) == ("train", "validation")
    assert validation.notes == five.notes
    for part in (train, validation):
        assert sorted(set(part.labels)) == list(range(part.num_classes))
        for path, label in zip(part.paths, part.labels, strict=True):
            old = five.class_names[five.labels[five.paths.index(path)]]
            assert part.class_names[label] == old


def test_hold_out_follows_its_seed(five):
    names = [hold_out(five, 0.4, seed)[1].class_names for seed in range(20)]
    assert names == [hold_out(five, 0.4, seed)[1].class_names for seed in range(20)]
    assert len(set(names)) > 3


def test_hold_out_of_too_little(five):
    for fraction in (0, 1, -0.1, 7):
        with pytest.raises(DatasetError, match="between 0 and 1"):
            hold_out(five, fraction)
    assert [len(hold_out(five, s)[1].class_names) for s in (0.01, 0.99)] == [1, 4]
    with pytest.raises(DatasetError, match="1 training class.*too few"):
        hold_out(five.subset([0]))


def test_two_classes_at_least_are_held_out_where_that_is_asked_for():
    for classes in (4, 5, 9, 10, 11, 100):
        paths = tuple(Path(f"{number}.png") for number in range(classes))
        toy = ImageSet(paths, np.arange(classes), tuple(map(str, paths)), "toy", "train")
        assert hold_out(toy, at_least=2)[1].num_classes == max(2, round(0.2 * classes))
    with pytest.raises(DatasetError, match="3 training class.* are too few"):
        hold_out(toy.subset(range(3)), at_least=2)


@pytest.mark.parametrize(
    ("args", "options", "words"),
    [
        (("cub20", "train"), {}, "unknown data set 'cub20'.*Did you mean 'cub200'"),
        (("cub200", "tset"), {}, "unknown split.* 'tset'.*Did you mean 'test'"),
        (("inshop", "test"), {}, "choose train, validation, query or gallery"),
        (("aviary", "train"), {"specie": 3}, "'specie' of aviary.*Did you mean 'species'"),
        (("cub200", "train"), {"species": 3}, "'species' of cub200"),
        (("folder", "train"), {}, "'folder' needs root="),
    ],
)
def test_words_nobody_knows(args, options, words, tmp_path):
    with pytest.raises(SobookError, match=words):
        load(*args, **options)


def test_prepare_refuses_unknown_words_before_it_writes(tmp_path):
    with pytest.raises(SobookError, match="Did you mean 'sop'"):
        image_sets.prepare("so", tmp_path)
    with pytest.raises(SobookError, match="Did you mean 'size'"):
        image_sets.prepare("aviary", tmp_path, sizes=3)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["cub200", "cars196", "sop", "inshop"])
def test_benchmark_that_is_not_there(name, tmp_path):
    with pytest.raises(DatasetError, match="lacks .*sobook prepare"):
        load(name, "train", tmp_path)
    home = tmp_path / benchmarks.cards()[name]["folder"]
    home.mkdir()
    with pytest.raises(DatasetError, match="lacks .*data/README.md"):
        load(name, "train", tmp_path)


def test_aviary_halves_its_species(tmp_path):
    options = {"species": 6, "images_per_species": 3, "size": 32, "seed": 1}
    train, test = (load("aviary", split, tmp_path, **options) for split in ("train", "test"))
    assert (len(train), len(test), train.num_classes, test.num_classes) == (9, 9, 3, 3)
    assert not set(train.class_names) & set(test.class_names)
    assert all(path.is_file() for path in (*train.paths, *test.paths))
    validation = load("aviary", "validation", tmp_path, **options)
    assert set(validation.paths) < set(train.paths) and validation.num_classes == 1
    parts = load_splits("aviary", tmp_path, **options)
    assert (parts["train"].paths, parts["test"].paths) == (train.paths, test.paths)
    folder = image_sets.prepare("aviary", tmp_path, progress=False, **options)
    assert train.paths[0].is_relative_to(folder)


def test_aviary_of_more_than_999_species_is_split_by_number(tmp_path, monkeypatch):
    """As text, 1000 would come before 101: the split must be that of the attribute table."""
    every = species.species(1200)
    for one in every:
        (tmp_path / one.folder).mkdir()
        (tmp_path / one.folder / "0000.png").touch()
    monkeypatch.setattr(species, "prepare", lambda *_, **__: tmp_path)
    train, test = (load("aviary", split, species=1200) for split in ("train", "test"))
    assert train.class_names == tuple(one.folder for one in every[:600])
    assert test.class_names == tuple(one.folder for one in every[600:])
    assert [path.parent.name for path in test.paths] == [one.folder for one in every[600:]]


@pytest.fixture
def cub(lists, tmp_path) -> Path:
    """The real lists with empty images."""
    home = tmp_path / "CUB_200_2011"
    shutil.copytree(lists / "cub200", home)
    touch(home / "images", [row.split()[1] for row in (home / "images.txt").open()])
    return home


def test_cub_split_on_the_real_lists(cub):
    train, test = (load("cub200", split, cub.parent) for split in ("train", "test"))
    assert (len(train), train.num_classes) == (5864, 100)
    assert (len(test), test.num_classes) == (5924, 100)
    assert train.class_names[0] == "001.Black_footed_Albatross"
    assert test.class_names[-1] == "200.Common_Yellowthroat"
    for part in (train, test):  # the folder's name tells the class as well
        assert all(
            path.parent.name == part.class_names[label]
            for path, label in zip(part.paths, part.labels, strict=True)
        )
    assert prepare_cub(cub) == cub


def test_cub_with_an_image_missing(cub):
    gone = load("cub200", "train", cub.parent).paths[7]
    gone.unlink()
    (cub / "NOTES.txt").write_text("crops of 2012\n")
    for read in (lambda: load("cub200", "train", cub.parent), lambda: prepare_cub(cub)):
        with pytest.raises(DatasetError, match=f"{gone.name} is missing"):
            read()
    note = "train partial: 5,863 of 5,864 images, 100 of 100 classes"
    with pytest.warns(UserWarning, match=note):
        train = load("cub200", "train", cub.parent, allow_partial=True)
    assert len(train) == 5863 and hold_out(train)[1].notes == ("crops of 2012", note)


def prepare_cub(cub: Path) -> Path:
    return image_sets.prepare("cub200", cub.parent, progress=False)


def test_cub_with_half_an_index(cub):
    rows = (cub / "images.txt").read_text().splitlines()
    (cub / "images.txt").write_text("\n".join(rows[:3000]) + "\n")
    with pytest.raises(DatasetError, match=r"3,000 of 5,864 images, 52 of 100 classes"):
        load("cub200", "train", cub.parent)
    (cub / "images.txt").write_text("1 a.jpg\nbroken\n")
    with pytest.raises(DatasetError, match="cannot be understood"):
        load("cub200", "train", cub.parent)


def cars_joint(home: Path, lists: Path) -> None:
    rows = list(csv.DictReader((lists / "car_ims_labels.csv").open()))
    kind = [(name, object) for name in ("relative_im_path", "bbox_x1", "class", "test")]
    table = np.array([(r["relative_im_path"], 1, int(r["class"]), 0) for r in rows], dtype=kind)
    names = loadmat(lists / "cars_meta.mat")["class_names"]
    home.mkdir()
    savemat(home / "cars_annos.mat", {"annotations": table[None], "class_names": names})
    touch(home, [row["relative_im_path"] for row in rows])


PARTS = {"train": "cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}


def cars_table(lists: Path, part: str):
    table = loadmat(lists / PARTS[part], squeeze_me=True)["annotations"]
    return [(str(row["fname"]), int(row["class"])) for row in table]


def cars_devkit(home: Path, lists: Path) -> None:
    (home / "devkit").mkdir(parents=True)
    for file in ("cars_meta.mat", *PARTS.values()):
        shutil.copy(lists / file, home / "devkit" / file)
    for part in PARTS:
        touch(home / f"cars_{part}", [file for file, _ in cars_table(lists, part)])


def cars_doubled(home: Path, lists: Path) -> None:
    """As torchvision and Kaggle users have it: the test labels lie outside."""
    cars_devkit(home / "car_devkit", lists)
    (home / "car_devkit" / "devkit" / PARTS["test"]).rename(home / PARTS["test"])
    for part in PARTS:
        (home / f"cars_{part}").mkdir()
        (home / "car_devkit" / f"cars_{part}").rename(home / f"cars_{part}" / f"cars_{part}")


def cars_folders(home: Path, lists: Path) -> None:
    names = loadmat(lists / "cars_meta.mat", squeeze_me=True)["class_names"]
    for part in PARTS:
        rows = [(str(names[k - 1]).replace("/", "-"), file) for file, k in cars_table(lists, part)]
        touch(home / "car_data/car_data" / part, [f"{name}/{file}" for name, file in rows])


@pytest.mark.parametrize("packaging", [cars_joint, cars_devkit, cars_doubled, cars_folders])
def test_cars_split_is_the_same_in_all_packagings(packaging, lists, tmp_path):
    packaging(tmp_path / "cars196", lists / "cars196")
    names = loadmat(lists / "cars196" / "cars_meta.mat", squeeze_me=True)["class_names"]
    per_class = Counter(k for part in PARTS for _, k in cars_table(lists / "cars196", part))
    for split, count, ids in (("train", 8054, range(1, 99)), ("test", 8131, range(99, 197))):
        part = load("cars196", split, tmp_path)
        assert (len(part), part.num_classes) == (count, 98)
        found = Counter(part.class_names[k] for k in part.labels)
        assert found == {names[k - 1].replace("/", "-"): per_class[k] for k in ids}
        assert len(set(part.paths)) == count


@pytest.mark.filterwarnings(PARTIAL)
def test_cars_with_classes_missing_does_not_shift_the_split(lists, tmp_path):
    cars_folders(tmp_path / "cars196", lists / "cars196")
    for folder in tmp_path.glob("cars196/car_data/car_data/*/A*"):
        shutil.rmtree(folder)
    with pytest.raises(DatasetError, match="of 98 classes"):
        load("cars196", "train", tmp_path)
    train = load("cars196", "train", tmp_path, allow_partial=True)
    assert train.class_names[-1] == "Eagle Talon Hatchback 1998"
    assert len(load("cars196", "test", tmp_path, allow_partial=True)) == 8131


def sop(home: Path, train: list, test: list) -> None:
    """Write (class, super class, path) rows as Ebay_*.txt has them."""
    home.mkdir(parents=True, exist_ok=True)
    number = 0
    for name, rows in (("train", train), ("test", test)):
        lines = ["image_id class_id super_class_id path"]
        for class_id, super_id, path in rows:
            number += 1
            lines.append(f"{number} {class_id} {super_id} {path}")
        (home / f"Ebay_{name}.txt").write_bytes("\r\n".join(lines).encode() + b"\r\n")
        touch(home, [path for *_, path in rows])


def test_sop_in_the_official_format(tmp_path, small_card):
    small_card("sop", train=(3, 2), test=(2, 1))
    train = [(1, 1, "bicycle_final/111_0.JPG"), (1, 1, "bicycle_final/111_1.JPG")]
    train += [(2, 12, "toaster_final/odd name, 2.JPG")]
    test = [(11319, 2, "cabinet_final/3_0.JPG"), (11319, 2, "cabinet_final/3_1.JPG")]
    sop(tmp_path / "Stanford_Online_Products", train, test)
    loaded = load("sop", "train", tmp_path)
    assert loaded.class_names == ("bicycle 1", "toaster 2")
    assert loaded.labels.tolist() == [0, 0, 1]
    assert loaded.paths[2].name == "odd name, 2.JPG" and loaded.paths[2].is_file()
    assert load("sop", "test", tmp_path).labels.tolist() == [0, 0]


@pytest.mark.slow
def test_sop_at_full_size_is_read_fast_and_small(tmp_path):
    def rows(images, classes, first):
        for i, k in enumerate(np.sort(np.arange(images) % classes).tolist()):
            yield first + k, k % 12 + 1, f"kind{k % 12}_final/{first + k:012d}_{i}.JPG"

    def read():
        return load_splits("sop", tmp_path).values()

    train, test = [*rows(59551, 11318, 1)], [*rows(60502, 11316, 11319)]
    sop(tmp_path / "Stanford_Online_Products", train, test)
    assert [(len(part), part.num_classes) for part in read()] == [(59551, 11318), (60502, 11316)]
    start = time.process_time()
    read()
    seconds = time.process_time() - start
    tracemalloc.start()
    read()
    megabytes = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    print(f"SOP index: {seconds:.2f} s, {megabytes:.0f} MB")
    assert seconds <= 2 and megabytes <= 200


def inshop(home: Path, rows: list, make=touch) -> None:
    """Write (path, item, status) rows as list_eval_partition.txt has them."""
    lines = [str(len(rows)), "image_name item_id evaluation_status"]
    lines += [f"{path:<70} {item} {status:>8}" for path, item, status in rows]
    (home / "Eval").mkdir(parents=True)
    (home / "Eval" / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    make(home / "Img", [path for path, *_ in rows])


def item(k: int, kind="Dresses") -> str:
    return f"img/WOMEN/{kind}/id_{k:08d}"


SMALL = [
    (f"{item(1)}/02_1_front.jpg", "id_00000001", "train"),
    (f"{item(1)}/02_2_side.jpg", "id_00000001", "train"),
    (f"{item(7, 'Odd Kind')}/01_1_front.jpg", "id_00000007", "query"),
    (f"{item(7, 'Odd Kind')}/01_3_back.jpg", "id_00000007", "gallery"),
    (f"{item(5)}/01_3_back.jpg", "id_00000005", "gallery"),
    (f"{item(5)}/01_4_full.jpg", "id_00000005", "query"),
]


@pytest.fixture
def small_inshop(small_card):
    small_card("inshop", train=(2, 1), query=(2, 2), gallery=(2, 2))


def test_inshop_query_and_gallery_share_their_labels(tmp_path, small_inshop):
    inshop(tmp_path / "Inshop_Clothes", SMALL)
    train, query, gallery = (load("inshop", s, tmp_path) for s in ("train", "query", "gallery"))
    assert len(train) == 2 and train.class_names == ("id_00000001",)
    assert query.class_names == gallery.class_names == ("id_00000005", "id_00000007")
    assert query.labels.tolist() == [1, 0] and gallery.labels.tolist() == [1, 0]
    assert all(path.is_file() for path in (*train.paths, *query.paths, *gallery.paths))


def test_inshop_cut_off_list(tmp_path, small_inshop):
    inshop(tmp_path / "Inshop_Clothes", SMALL)
    index = tmp_path / "Inshop_Clothes" / "Eval" / "list_eval_partition.txt"
    index.write_text("\n".join(index.read_text().splitlines()[:-2]))
    with pytest.raises(DatasetError, match="1 of 2 images, 1 of 2 classes"):
        load("inshop", "query", tmp_path)


def pictures_of(size):
    return lambda base, paths: [picture(base / path, size) for path in paths]


def test_inshop_refuses_high_resolution(tmp_path, small_inshop):
    inshop(tmp_path / "Inshop_Clothes", SMALL, pictures_of((750, 1101)))
    with pytest.raises(DatasetError, match="high-resolution.*256-pixel.*img.zip"):
        load("inshop", "train", tmp_path, allow_partial=True)


def test_inshop_is_prepared_from_what_was_put_there(tmp_path, small_inshop):
    inshop(tmp_path / "Inshop_Clothes", SMALL, pictures_of((256, 256)))
    home, downloads = tmp_path / "Inshop_Clothes", tmp_path / "downloads"
    downloads.mkdir()
    shutil.make_archive(str(downloads / "img"), "zip", home / "Img")
    shutil.copy(home / "Eval" / "list_eval_partition.txt", downloads)
    shutil.rmtree(home)
    assert image_sets.prepare("inshop", tmp_path, progress=False) == home
    assert len(load("inshop", "gallery", tmp_path)) == 2


def test_manifest_adds_up():
    for name, card in benchmarks.cards().items():
        assert name in image_sets.NAMES
        splits = card["splits"].values()
        assert sum(split["images"] for split in splits) == card["images"]
        tests = [split for key, split in card["splits"].items() if key != "gallery"]
        assert sum(split["classes"] for split in tests) == card["classes"]
        assert card["license"] and card["citation"] and card["by_hand"] and card["layouts"]
        for archive in card["archives"]:
            assert len(archive.get("sha256", "0" * 64)) == 64


def test_options_are_plain_numbers(tiny_aviary, tiny_options):
    drawn = {name: np.int64(value) for name, value in tiny_options.items()}
    birds = load("aviary", "train", tiny_aviary, **drawn)
    assert birds.paths == load("aviary", "train", tiny_aviary, **tiny_options).paths
    for species_given in ("8", True, None):
        with pytest.raises(SobookError, match="species is"):
            load("aviary", "train", tiny_aviary, species=species_given)
