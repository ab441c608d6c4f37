"""The drawn dataset: the same pixels everywhere, species that differ, a folder that is whole."""

import hashlib
import itertools
import json
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

import sobook
from sobook.course.aviary import species as aviary

# Pixels of PINNED images. If this changes without intent, caches and published numbers no longer
# mean the same pictures; if with intent, raise species.VERSION.
PINNED_HASH = "d33a690ec1b4b93b79e58655230e95695206469df3aefb853e3a695f391088a5"
PINNED = [(species, instance) for species in range(0, 100, 9) for instance in (0, 17)]


def test_pixels_are_pinned_whatever_the_order_of_drawing():
    every = aviary.species(100)
    drawn = {(s, i): aviary.draw(every[s], i).tobytes() for s, i in reversed(PINNED)}
    assert hashlib.sha256(b"".join(drawn[pair] for pair in PINNED)).hexdigest() == PINNED_HASH


@pytest.mark.parametrize("number", [2, 7, 37, 100, 5200])
def test_any_number_of_species_in_two_volumes(number):
    every = aviary.species(number)
    assert [s.index for s in every] == list(range(number))
    assert len({(s.look, s.marks) for s in every}) == number
    assert len({s.name for s in every}) == len({s.folder for s in every}) == number
    assert every[1].folder.startswith("002.") and " " not in every[1].folder
    if number == 100:
        for half in (every[:50], every[50:]):
            assert [*Counter(s.genus for s in half).values()] == [5] * 10


def test_species_of_a_genus_share_its_look_and_differ_in_two_to_four_marks():
    every = aviary.species(200)
    for genus in {one.genus for one in every}:
        group = [one for one in every if one.genus == genus]
        assert len(group) == 10 and len({s.look for s in group}) == 1
        for a, b in itertools.combinations(group, 2):
            marks = zip(asdict(a.marks).values(), asdict(b.marks).values(), strict=True)
            assert 2 <= sum(x != y for x, y in marks) <= 4


@pytest.mark.parametrize(
    ("number", "training"),
    [(100, 50), (95, 48), (109, 59), (11, 6), (5200, 2600)],
)
def test_genera_are_split_as_evenly_as_they_can_be(number, training):
    """`training` is what trying all sets of genera finds (checked so below, for few genera)."""
    genera = [one.genus for one in aviary.species(number)]
    chosen = aviary.split_genera(genera)
    assert len(set(chosen)) == len(chosen) and set(chosen) < set(genera)
    assert sum(genus in chosen for genus in genera) == training
    if len(set(genera)) <= 11:
        sizes = [genera.count(genus) for genus in dict.fromkeys(genera)]
        sets = itertools.product((0, 1), repeat=len(sizes))
        sums = {sum(itertools.compress(sizes, chosen)) for chosen in sets}
        assert training == min(sums, key=lambda total: (abs(2 * total - number), -total))


def test_split_by_genus_is_of_the_same_pictures_and_shares_no_genus(tmp_path):
    options = {"species": 44, "images_per_species": 2, "size": 32, "seed": 3}
    usual = [sobook.load("aviary", part, tmp_path, **options) for part in ("train", "test")]
    train, test = (
        sobook.load("aviary", part, tmp_path, **options, split_by_genus=1)
        for part in ("train", "test")
    )
    assert {*train.paths, *test.paths} == {*usual[0].paths, *usual[1].paths}
    genus_of = {one.folder: one.genus for one in aviary.species(44, seed=3)}
    ours, theirs = ({genus_of[name] for name in part.class_names} for part in (train, test))
    assert not ours & theirs and ours | theirs == set(genus_of.values())
    assert (train.num_classes, test.num_classes) == (26, 18)  # genera of 9, 9, 8 and of 9, 9


def test_marks_that_differ_can_be_seen():
    """The same pose drawn with the marks of a sister species gives other pixels."""
    for a, b in zip(aviary.species(200)[::5], aviary.species(200)[1::5], strict=True):
        sister = aviary.Species(a.index, a.name, b.genus, b.look, b.marks)
        one, other = (np.asarray(aviary.draw(s, 1, size=64), int) for s in (a, sister))
        assert (np.abs(one - other).max(axis=2) > 24).sum() >= 12, (a.name, b.name)


def test_attributes_table_matches_the_species():
    table, every = aviary.attributes(60), aviary.species(60)
    assert list(table["name"]) == [s.name for s in every]
    assert list(table["genus"]) == [s.genus for s in every]
    for row, one in zip(table.to_dict("records"), every, strict=True):
        assert {key: row[key] for key in aviary.CHOICES} == asdict(one.marks)


def test_prepare_draws_all_once(tmp_path):
    folder = aviary.prepare(tmp_path, species=7, images_per_species=3, size=32, progress=False)
    every = aviary.species(7)
    files = sorted(folder.glob("*/*.png"))
    assert [f.parent.name for f in files[::3]] == [s.folder for s in every]
    with Image.open(files[10]) as image:
        assert image.tobytes() == aviary.draw(every[3], 1, size=32).tobytes()
    assert json.loads((folder / "aviary.json").read_text())["version"] == aviary.VERSION
    assert len((folder / "attributes.csv").read_text().splitlines()) == 8
    before = files[0].stat().st_mtime_ns
    again = aviary.prepare(tmp_path, species=7, images_per_species=3, size=32, progress=False)
    assert again == folder and files[0].stat().st_mtime_ns == before
    assert list(folder.parent.glob("[!.]*")) == [folder]
    assert [p.suffix for p in folder.parent.glob(".*")] == [".lock"]  # no drafts left over


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"species": 1}, "species is 1"),
        ({"size": 1024}, "size is 1024"),
        ({"seed": "x"}, "whole number from 0"),
        ({"species": 10, "split_by_genus": 1}, "10 species are of one genus.*more than 10"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(tmp_path, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        aviary.prepare(tmp_path, progress=False, **options)
    assert list(tmp_path.iterdir()) == []
