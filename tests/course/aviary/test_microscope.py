"""The same bird with one thing changed: what changes in the picture, and how far it moves."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from sobook import Encoder
from sobook.course.aviary import art, microscope, species as aviary
from sobook.course.aviary.microscope import MARKS, NUISANCES, RELATIVE, redraw
from sobook.data.image_sets import ImageSet
from sobook.data.loader import evaluation_crop
from sobook.errors import SobookError

ONE_OF_EACH_FORM = {bird.look.form: bird for bird in aviary.species(440)}
SOME = [ONE_OF_EACH_FORM[form] for form in ("thrush", "owl", "duck", "hummingbird", "heron")]
BIRDS = [one for one in aviary.species(40) if one.genus != aviary.species(40)[0].genus][:6]


@pytest.mark.parametrize("form", ONE_OF_EACH_FORM)
def test_with_nothing_changed_the_picture_is_the_same_to_the_bit(form):
    assert set(ONE_OF_EACH_FORM) == set(aviary.FORMS)
    one = ONE_OF_EACH_FORM[form]
    assert redraw(one, 4, size=48).tobytes() == aviary.draw(one, 4, size=48).tobytes()


@pytest.mark.parametrize("change", NUISANCES)
def test_one_part_of_chance_is_drawn_anew_and_all_others_stay(change):
    for one in SOME:
        before = microscope._Replay("a", {})
        art.paint(one.look, one.marks, before, 32)
        kept = {part: taken for part, taken in before.taken.items() if part != change}
        after = microscope._Replay("b", kept)
        art.paint(one.look, one.marks, after, 32)
        parts = [part for part in NUISANCES if part != "ground" or one.look.stance != "hover"]
        assert list(before.taken) == list(after.taken) == parts  # in the order of drawing
        anew = [part for part in parts if before.taken[part] != after.taken[part]]
        assert anew == [part for part in parts if part == change]


@pytest.mark.parametrize("mark", MARKS)
def test_another_value_of_a_mark_is_all_that_changes(mark):
    for i, one in enumerate(SOME):
        values = {*aviary.visible_choices(one.look)[mark]} - {getattr(one.marks, mark)}
        others = [replace(one, marks=replace(one.marks, **{mark: value})) for value in values]
        drawn = {aviary.draw(bird, i, size=48).tobytes() for bird in others or [one]}
        assert redraw(one, i, mark, size=48).tobytes() in drawn


def color_moments(images):
    """An encoder that any language could repeat: mean and spread of each color."""
    values = images.double().flatten(2) / 255
    return torch.cat([values.mean(-1), values.std(-1)], dim=1)


def measure(encoder, pictures):
    return microscope.summarize(microscope.by_bird(encoder, pictures))


def test_movement_agrees_with_loops():
    changes = ("cap", "bill_length", RELATIVE, "light", "occlusion")
    table = measure(color_moments, microscope.slides(BIRDS, changes=changes, instances=3, size=48))

    def embedding(picture):
        values = np.asarray(picture).reshape(-1, 3) / 255
        return np.concatenate([values.mean(0), values.std(0, ddof=1)])

    def changed(one, i, change):
        if change != RELATIVE:
            return redraw(one, i, change, size=48)
        family = [bird for bird in BIRDS if bird.genus == one.genus]
        sister = family[(family.index(one) + 1) % len(family)]
        return aviary.draw(replace(one, marks=sister.marks), i, size=48)

    usual = {(s, i): aviary.draw(one, i, size=48) for s, one in enumerate(BIRDS) for i in range(3)}
    pairs = [(s, *pair) for s in range(len(BIRDS)) for pair in itertools.combinations(range(3), 2)]
    between = [embedding(usual[s, i]) - embedding(usual[s, j]) for s, i, j in pairs]
    unit = np.linalg.norm(between, axis=1).mean()
    assert list(table["change"]) == list(changes)
    assert list(table["kind"]) == ["mark", "mark", "marks", "nuisance", "nuisance"]
    for row in table.itertuples():
        birds = []
        for s, one in enumerate(BIRDS):
            pairs = [(usual[s, i], changed(one, i, row.change)) for i in range(3)]
            shown = [(a, b) for a, b in pairs if a.tobytes() != b.tobytes()]
            if shown:
                moved = [np.linalg.norm(embedding(a) - embedding(b)) for a, b in shown]
                birds.append(np.mean(moved) / unit)
        assert row.n == len(birds)
        assert row.moved == pytest.approx(np.mean(birds), rel=1e-9)
        assert row.low < row.moved < row.high


def test_what_shows_on_no_bird_is_not_measured():
    owls = [one for one in aviary.species(440) if one.look.form == "owl"][:3]
    pictures = microscope.slides(owls, changes=["bill_length"], instances=2, size=32)
    row = measure(color_moments, pictures).iloc[0]
    assert row["n"] == 0 and np.isnan([row["moved"], row["low"], row["high"]]).all()


def test_an_encoder_sees_the_pictures_as_in_evaluation():
    encoder = Encoder.create("deit_micro_patch8_64", dim=16).train()
    pictures = microscope.slides(BIRDS[:3], changes=["cap"], instances=2, size=96)
    moved = microscope.by_bird(encoder, pictures)
    assert encoder.training  # as it was

    def cropped(images):
        drawn = [Image.fromarray(one) for one in images.permute(0, 2, 3, 1).numpy()]
        return encoder.eval()(torch.stack([evaluation_crop(picture, 64) for picture in drawn]))

    assert np.allclose(moved, microscope.by_bird(cropped, pictures), atol=1e-4)


def test_mistakes_get_one_sentence():
    with pytest.raises(SobookError, match="unknown change 'capp'.*Did you mean 'cap'"):
        redraw(BIRDS[0], 1, "capp")
    with pytest.raises(SobookError, match="1 species, 3 picture.*2 or more"):
        microscope.slides(BIRDS[:1])


def test_a_silhouette_holds_the_bird_and_nothing_of_its_scene():
    one = aviary.species(4)[0]
    mask = np.asarray(aviary.silhouette(one, 2))
    assert mask.shape == (96, 96) and 0.08 < (mask > 127).mean() < 0.7
    whole = replace(one, marks=replace(one.marks, belly="orange", cap="crimson"))
    changed = np.abs(np.subtract(aviary.draw(whole, 2), aviary.draw(one, 2), dtype=int)).max(2)
    beside = np.asarray(Image.fromarray(mask).filter(ImageFilter.MaxFilter(5))) == 0
    assert changed.max() > 100 and not (changed[beside] > 24).any()  # the camera blurs a little


def test_marks_that_differ_are_found_where_they_are():
    one = next(bird for bird in aviary.species(100) if bird.marks.cap == "none")
    other = replace(one, marks=replace(one.marks, cap="crimson", tail_fork=2))
    found = microscope.where_marks_differ(one, other, 0)
    assert set(found) == {"cap", "tail_fork"}
    (x, y, radius), (tail_x, _, _) = found["cap"], found["tail_fork"]
    assert 0 < x < 1 and 0 < y < 0.7 and 0 < radius < 0.35 and abs(x - tail_x) > 0.1
    assert microscope.where_marks_differ(one, one, 0) == {}
    with pytest.raises(SobookError, match="different genera"):
        microscope.where_marks_differ(one, aviary.species(100)[-1], 0)


def test_mistakes_are_named_and_relatives_circled(tmp_path):
    birds = aviary.species(100)
    relative = next(b for b in birds[1:] if b.genus == birds[0].genus)
    stranger = next(b for b in birds if b.genus != birds[0].genus)
    shown = (birds[0], birds[0], relative, stranger)
    paths = tuple(tmp_path / b.folder / f"{i:04d}.png" for i, b in enumerate(shown))
    names = tuple(b.folder for b in (birds[0], relative, stranger))
    images = ImageSet(paths, np.array([0, 0, 1, 2]), names, "aviary", "test")
    (words,), (circles,) = microscope.name_mistakes(images, [0], np.array([[1, 2, 3]]))
    assert words == ["", relative.name.rpartition(" ")[0], stranger.name.replace("-", " ")]
    assert circles[0] == circles[2] == [] and 1 <= len(circles[1]) <= 4
    photographs = replace(images, name="cub200")
    assert microscope.name_mistakes(photographs, [0], np.array([[2]]))[1] == [[[]]]
