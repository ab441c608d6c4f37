"""Figures of proxies show what geometry computes: order, limits, bounds and numbers."""

import math

import matplotlib as mpl
import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid

from sobook import figures, geometry
from sobook.errors import SobookError
from sobook.figures.proxies import random_angle_density
from tests.figures.reading import PA, SO, legend, texts


def test_class_order_puts_a_genus_together(proxies, rng):
    shuffle = rng.permutation(18)
    order = figures.class_order(torch.tensor(proxies["PA"][shuffle]))
    assert sorted(order) == list(range(18))
    assert np.count_nonzero(np.diff((shuffle // 6)[order])) == 2


def test_heatmaps_share_order_and_scale_and_outline_groups(proxies):
    groups = np.array(list("abc") * 6)
    figure = figures.proxy_heatmaps(proxies, groups=groups)
    left, right = (axis.images[0] for axis in figure.axes[:2])
    order = figures.class_order(proxies["PA"])
    order = np.concatenate([order[groups[order] == g] for g in dict.fromkeys(groups[order])])
    for image, p in zip((left, right), proxies.values(), strict=True):
        expected = geometry.describe(p[order]).cosines
        np.fill_diagonal(expected, np.nan)
        np.testing.assert_allclose(image.get_array().filled(np.nan), expected, atol=1e-12)
    assert left.get_clim() == right.get_clim()
    low, high = left.get_clim()
    assert low == -high and high >= geometry.describe(proxies["PA"]).coherence > high - 0.1
    assert legend(figure) == ["a", "b", "c"]
    boxes = [[(box.get_x(), box.get_width()) for box in axis.patches] for axis in figure.axes[:2]]
    assert boxes == [[(-0.5, 6), (5.5, 6), (11.5, 6)]] * 2


def test_heatmaps_title_panels_and_show_their_difference_on_the_same_scale(proxies):
    figure = figures.proxy_heatmaps(proxies, difference=True, order=np.arange(18))
    first, second, change = (axis.images[0].get_array() for axis in figure.axes[:3])
    np.testing.assert_allclose(change.compressed(), (second - first).compressed())
    titles = [axis.get_title(loc="left") for axis in figure.axes[:3]]
    assert titles == ["PA", "PA+SO", "PA+SO − PA"]
    assert figure.axes[1]._left_title.get_color() == SO
    assert len({axis.images[0].get_clim() for axis in figure.axes[:3]}) == 1


def test_heatmap_of_many_classes_shows_block_means(rng):
    p = rng.normal(size=(402, 6)) + 0.5
    figure = figures.proxy_heatmaps({"PA": p}, order=np.arange(402), groups=np.arange(402) % 12)
    cells, cosines = figure.axes[0].images[0].get_array(), geometry.describe(p).cosines
    assert cells.shape == (200, 200)
    starts = np.linspace(0, 402, 200, endpoint=False).astype(int)
    a, b = slice(starts[0], starts[1]), slice(starts[7], starts[8])
    assert cells[0, 7] == pytest.approx(cosines[a, b].mean())
    assert cells[0, 0] == pytest.approx(geometry.off_diagonal(cosines[a, a]).mean())
    assert "each cell is the mean of about 4 cosines" in texts(figure)


@pytest.mark.parametrize("dim", [2, 16, 384])
def test_density_of_random_angles_is_exact(dim):
    theta = np.linspace(0, 180, 20_001)
    density = random_angle_density(theta, dim)
    assert trapezoid(density, theta) == pytest.approx(1, abs=1e-3)
    variance = trapezoid(density * np.cos(np.radians(theta)) ** 2, theta)
    assert math.sqrt(variance) == pytest.approx(1 / math.sqrt(dim), rel=1e-3)


def test_angle_histogram_counts_every_pair_and_marks_the_bounds(rng, proxies):
    sets = {"PA": rng.normal(size=(20, 8)) + 0.5, "PA+SO": rng.normal(size=(20, 8))}
    figure = figures.angle_histogram(sets)
    axis = figure.axes[0]
    steps = [patch for patch in axis.patches if hasattr(patch, "get_data")]
    assert [mpl.colors.to_hex(p.get_edgecolor()).upper() for p in steps] == [PA, SO]
    for patch in steps:
        values, edges, _ = patch.get_data()
        assert np.sum(values * np.diff(edges)) == pytest.approx(1)
    marks = sorted(line.get_xdata()[0] for line in axis.lines if len(line.get_xdata()) == 2)
    chance = math.degrees(math.asin(1 / math.sqrt(8)))
    welch = math.degrees(math.acos(geometry.welch_bound(20, 8)))
    assert marks == pytest.approx(sorted([90, 90 - chance, 90 + chance, welch]))
    assert any(label.startswith("PA: mean") for label in legend(figure))
    assert "Welch" not in texts(figures.angle_histogram(proxies))  # C < D: can be orthogonal


def test_spectra_show_singular_values_and_the_flat_line(proxies):
    figure = figures.spectra(proxies)
    flat, first, second = figure.axes[0].lines
    shape = geometry.describe(proxies["PA"])
    np.testing.assert_allclose(first.get_ydata(), shape.spectrum)
    assert flat.get_ydata()[0] == 1  # 18 orthonormal rows
    assert (first.get_color(), second.get_color()) == (PA, SO)
    assert f"PA: effective rank {shape.effective_rank:.1f}" in legend(figure)


@pytest.mark.parametrize(
    ("change", "options", "word"),
    [
        (lambda sets: {**sets, "PA+SO": sets["PA"][:4]}, {}, "shape"),
        (lambda sets: sets, {"groups": [1, 2]}, "groups"),
    ],
)
def test_proxies_are_checked(proxies, change, options, word):
    with pytest.raises(SobookError, match=word):
        figures.proxy_heatmaps(change(proxies), **options)


def epochs_of(shift):
    start = np.random.default_rng(7).normal(size=(18, 32))
    return [start + shift * epoch * np.eye(32)[0] for epoch in range(5)]


def test_ribbons_hold_the_quantiles_on_one_axis_of_time():
    moved = {"PA": geometry.movement(epochs_of(0.8)), "PA+SO": geometry.movement(epochs_of(0.1))}
    figure = figures.proxy_ribbons(moved, {"PA": [None, 0.3, 0.4, 0.5, 0.6], "PA+SO": []}, dim=32)
    cosine, so, recall = figure.axes
    vertices = cosine.collections[0].get_paths()[0].vertices
    at_end = np.sort(vertices[vertices[:, 0] == 4][:, 1])
    assert (at_end[0], at_end[-1]) == pytest.approx(tuple(moved["PA"].cosine_band[-1, [0, 2]]))
    colors = [mpl.colors.to_hex(band.get_facecolor()).upper() for band in cosine.collections]
    assert colors == [PA, SO]
    np.testing.assert_allclose(so.lines[0].get_ydata(), moved["PA"].rms_cosine ** 2)
    assert list(recall.lines[0].get_xdata()) == [1, 2, 3, 4]
    assert len({axis.get_xlim() for axis in figure.axes}) == 1
    assert sorted(legend(figure)) == ["PA", "PA+SO", "random directions, 32-D"]


def test_confusion_vs_cosine_ranks_pairs_on_shared_axes(rng):
    cosines = np.corrcoef(rng.normal(size=(8, 5)))
    sets = {"PA": cosines, "PA+SO": 0.1 * cosines}
    figure = figures.confusion_vs_cosine(sets, {n: np.exp(c) for n, c in sets.items()})
    left, right = figure.axes
    assert right.get_title() == "PA+SO: ρ = +1.00 [+1.00, +1.00], 28 pairs"
    assert len(right.collections[0].get_offsets()) == 28
    assert mpl.colors.to_hex(right.collections[0].get_facecolor()).upper() == SO
    assert left.get_xlim() == right.get_xlim() and left.get_ylim() == right.get_ylim()


def test_attribute_lens_recovers_a_known_relation(rng):
    marks = rng.integers(0, 2, (18, 8))
    shared = (marks[:, None] == marks[None]).sum(axis=2)
    proxies = {"PA": 2.0 * marks - 1, "PA+SO": rng.normal(size=(18, 8))}
    figure = figures.attribute_lens(proxies, shared, what="marks")
    left, right = figure.axes
    assert left.get_title().startswith("PA: ρ = +1.00") and left.title.get_color() == PA
    assert right.title.get_color() == SO and left.get_ylim() == right.get_ylim()
    means = left.lines[0]
    np.testing.assert_allclose(means.get_ydata(), means.get_xdata() / 4 - 1, atol=1e-9)
    assert "ρ = +1.00" in figures.alt_text(figure)
