"""Figures of images: marks, order, proportions and captions."""

import matplotlib as mpl
import numpy as np
import pytest
import torch

from sobook import figures
from sobook.errors import SobookError
from tests.figures.reading import PA, SO, legend, texts


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
    with pytest.raises(ValueError, match="zip"):
        figures.retrieval_wall(images[:1], rows, relevant, titles=["a", "b"])


def test_retrieval_comparison_puts_pa_above_so_and_circles_differences(images):
    notes = {"captions": [["Northern Fulmar", "", ""]], "spots": [[[(0.5, 0.25, 0.1)], [], []]]}
    relevant = {"PA": [[False] * 3], "PA+SO": [[True, True, False]]}
    figure = figures.retrieval_comparison(
        images[:1],
        dict.fromkeys(relevant, [images[2:5]]),
        relevant,
        titles="a",
        **{note: dict.fromkeys(relevant, rows) for note, rows in notes.items()},
    )
    (axis,) = figure.axes
    names = {t.get_text(): t for t in axis.texts if t.get_text() in ("PA", "PA+SO")}
    assert names["PA"].get_position()[1] < names["PA+SO"].get_position()[1]  # y runs downward
    assert (names["PA"].get_color(), names["PA+SO"].get_color()) == (PA, SO)
    assert marks(figure) == ["✗", "✗", "✗", "✓", "✓", "✗"]
    assert all(image.get_extent()[1] <= axis.get_xlim()[1] for image in axis.images)
    assert "Northern Fulmar" in texts(figure).replace("\n", " ")
    rings = {p.center for p in axis.patches if isinstance(p, mpl.patches.Circle)}
    corners = [axis.images[nearest].get_extent() for nearest in (1, 4)]
    assert rings == {(left + 0.5, top + 0.25) for left, _, _, top in corners}


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


def test_attention_maps_share_one_scale_in_multiples_of_uniform(images):
    attention = np.ones((1, 2, 16))
    attention[0, 1, :8] = 3  # the upper half gets three quarters
    upper = np.zeros((1, 12, 12))
    upper[:, :6] = 255
    figure = figures.attention_maps(images[:1], torch.tensor(attention), "a", masks=upper)
    maps = [i for i in figure.axes[0].images if i.get_array().shape == (4, 4)]
    heads = [i.get_array() for i in maps if i.get_alpha() is None]
    assert len({i.get_clim() for i in maps}) == 1
    np.testing.assert_allclose(np.mean(heads, axis=(1, 2)), 1)
    assert "on it: 1.0 ×" in texts(figure) and "on it: 1.5 ×" in texts(figure)


def test_queries_are_picked_by_what_changed():
    before = np.array([[0, 1], [1, 1], [0, 0], [1, 0]], bool)
    relevant = {"PA": before, "PA+SO": np.array([[1, 1], [0, 1], [0, 0], [1, 0]], bool)}
    gallery, labels = np.array([[0, 0], [2, 1], [1, 2], [1, 2]]), np.array([0, 1, 2, 2])
    known = {"gallery_labels": gallery, "labels": labels}  # classes 1 and 2 retrieve each other
    picked = {"fixed": [0], "broken": [1], "hardest": [2, 3], "confused": [1, 3]}
    for which, expected in picked.items():
        assert figures.pick_queries(which, relevant, 2, **known).tolist() == expected
    with pytest.raises(SobookError, match="fixed"):
        figures.pick_queries("best", relevant)


def test_split_chart_counts_classes_in_several_parts():
    labels = np.repeat(np.arange(6), 4)
    disjoint = {"train": labels[:12], "validation": labels[12:16], "test": labels[16:]}
    mixed = {"train": labels[::2], "test": labels[1::2]}
    figure = figures.split_chart({"mixed": mixed, "disjoint": disjoint}, show=6)
    for axis, number in zip(figure.axes, (6, 0), strict=True):
        assert f"{number} of 6 classes in more than one part" in axis.get_title()
        tops = np.zeros(6)  # every picture is in a bar, and every column holds four
        for bar in axis.patches:
            tops[round(bar.get_x() + 0.45)] += bar.get_height()
        assert tops.tolist() == [4] * 6
    assert legend(figure) == ["train", "test", "validation"]  # including a part of one panel only
    assert len(figures.split_chart({"disjoint": disjoint}, show=3).axes[0].patches) == 3 * 3
