"""Figures of images: marks, order, proportions and captions."""

import matplotlib as mpl
import numpy as np
import pytest
import torch

from sobook import figures
from sobook.errors import SobookError
from tests.figures.reading import PA, SO, texts


@pytest.fixture
def images(rng):
    return list(rng.integers(0, 256, (8, 12, 12, 3), dtype=np.uint8))


def marks(figure):
    return [t.get_text() for t in figure.findobj(mpl.text.Text) if t.get_text() in ("✓", "✗")]


def test_retrieval_wall_marks_relevant_images_by_color_and_by_sign(images):
    relevant = torch.tensor([[True, False, True], [False, False, True]])
    rows = [images[2:5], images[5:8]]
    figure = figures.retrieval_wall(images[:2], rows, relevant, np.full((2, 3), 0.5), ["a", "b"])
    assert marks(figure) == ["✓", "✗", "✓", "✗", "✗", "✓"]
    expected = {"✓": figures.COLORS["relevant"], "✗": figures.COLORS["irrelevant"]}
    frames = [mpl.colors.to_hex(p.get_edgecolor()).upper() for p in figure.axes[0].patches]
    assert frames == [expected[m] for m in marks(figure)]
    assert len(figure.axes[0].images) == 8 and texts(figure).count("0.50") == 6
    assert figures.alt_text(figure) == "2 queries with their 3 nearest images: 3 of 6 relevant."
    with pytest.raises(SobookError, match="query images"):
        figures.retrieval_wall(images[:1], rows, relevant)


def test_retrieval_comparison_puts_pa_above_so(images):
    rows, relevant = [images[2:5]], [[True, True, False]]
    figure = figures.retrieval_comparison(
        images[:1], {"PA": rows, "PA+SO": rows}, {"PA": [[False] * 3], "PA+SO": relevant}, None, "a"
    )
    names = {t.get_text(): t for t in figure.axes[0].texts if t.get_text() in ("PA", "PA+SO")}
    assert names["PA"].get_position()[1] < names["PA+SO"].get_position()[1]  # y runs downward
    assert (names["PA"].get_color(), names["PA+SO"].get_color()) == (PA, SO)
    assert marks(figure) == ["✗", "✗", "✗", "✓", "✓", "✗"]
    inside = figure.axes[0].get_xlim()
    assert all(image.get_extent()[1] <= inside[1] for image in figure.axes[0].images)


def test_walls_caption_images_and_circle_differences(images):
    captions, spots = [["Northern Fulmar", ""]], [[[(0.5, 0.25, 0.1)], []]]
    figure = figures.retrieval_wall(
        images[:1], [images[1:3]], [[False, True]], None, "a", captions=captions, spots=spots
    )
    assert "Northern Fulmar" in texts(figure).replace("\n", " ")
    rings = [p for p in figure.axes[0].patches if isinstance(p, mpl.patches.Circle)]
    left, _, _, top = figure.axes[0].images[1].get_extent()
    assert {ring.center for ring in rings} == {(left + 0.5, top + 0.25)}


@pytest.mark.parametrize("columns", [2, 12])
def test_a_caption_is_no_wider_than_its_picture(images, columns):
    long = "Great Crested Thick-knee-Stonecurlew-Flowerpecker of Chuck-will's-widow"
    figure = figures.contact_sheet(images[:1] * columns, [long] * columns, columns)
    figure.canvas.draw()
    sides = [image.get_window_extent().width for image in figure.axes[0].images]
    captions = [text.get_window_extent() for text in figure.axes[0].texts]
    for side, caption, after in zip(sides, captions, captions[1:], strict=False):
        assert caption.width < 1.1 * side and caption.x1 <= after.x0 + 1


def test_contact_sheet_keeps_proportions_and_wraps(images):
    wide = np.zeros((10, 20, 3), dtype=np.uint8)
    figure = figures.contact_sheet([*images[:2], wide], ["a", "b", "c"], columns=2)
    left, right, bottom, top = figure.axes[0].images[2].get_extent()
    assert (right - left) / (bottom - top) == pytest.approx(2)
    assert left == 0 and top > 1  # the third image begins the second row
    assert {"a", "b", "c"} <= set(texts(figure).split(" | "))


def test_attention_maps_share_one_scale_in_multiples_of_uniform(images, rng):
    attention = rng.random((2, 3, 16))
    figure = figures.attention_maps(images[:2], torch.tensor(attention), "ab")
    maps = [i for i in figure.axes[0].images if i.get_array().shape == (4, 4)]
    heads = [i for i in maps if i.get_alpha() is None]
    assert len(heads) == 6 and len({i.get_clim() for i in maps}) == 1
    assert all(i.get_array().mean() == pytest.approx(1) for i in heads)


def test_attention_on_an_object_is_a_multiple_of_uniform_attention(images):
    attention = np.ones((1, 2, 16))
    attention[0, 1, :8] = 3  # the upper half gets three quarters
    upper = np.zeros((1, 12, 12))
    upper[:, :6] = 255
    figure = figures.attention_maps(images[:1], attention, "a", masks=upper)
    assert "on it: 1.0 ×" in texts(figure) and "on it: 1.5 ×" in texts(figure)


def test_queries_are_picked_by_what_changed():
    relevant = {"PA": [[0, 1], [1, 1], [0, 0], [1, 0]], "PA+SO": [[1, 1], [0, 1], [0, 0], [1, 0]]}
    relevant = {name: np.array(rows, bool) for name, rows in relevant.items()}
    assert figures.pick_queries("fixed", relevant).tolist() == [0]
    assert figures.pick_queries("broken", relevant).tolist() == [1]
    assert figures.pick_queries("hardest", relevant, 2).tolist() == [2, 3]
    gallery, labels = np.array([[0, 0], [2, 1], [1, 2], [1, 2]]), np.array([0, 1, 2, 2])
    picked = figures.pick_queries("confused", relevant, gallery_labels=gallery, labels=labels)
    assert picked.tolist() == [1, 2, 3]  # classes 1 and 2 retrieve each other
    with pytest.raises(SobookError, match="fixed"):
        figures.pick_queries("best", relevant)


def test_split_chart_counts_classes_in_several_parts():
    labels = np.repeat(np.arange(6), 4)
    disjoint = {"train": labels[:12], "validation": labels[12:16], "test": labels[16:]}
    mixed = {"train": labels[::2], "test": labels[1::2]}
    figure = figures.split_chart({"mixed": mixed, "disjoint": disjoint}, show=6)
    first, second = figure.axes
    assert "6 of 6 classes in more than one part" in first.get_title()
    assert "0 of 6 classes in more than one part" in second.get_title()
    for axis in (first, second):  # every picture is in a bar, and every column holds four
        tops = np.zeros(6)
        for bar in axis.patches:
            tops[round(bar.get_x() + 0.45)] += bar.get_height()
        assert tops.tolist() == [4] * 6
    assert first.get_ylim() == second.get_ylim()
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["train", "test", "validation"]  # including a part of one panel only
    few = figures.split_chart({"disjoint": disjoint}, show=3)
    assert len(few.axes[0].patches) == 3 * 3
