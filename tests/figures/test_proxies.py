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


def test_heatmaps_share_order_and_scale_outline_groups_and_show_a_difference(proxies):
    groups = np.array(list("abc") * 6)
    figure = figures.proxy_heatmaps(proxies, groups=groups, difference=True)
    images = [axis.images[0] for axis in figure.axes[:3]]
    order = figures.class_order(proxies["PA"])
    order = np.concatenate([order[groups[order] == g] for g in dict.fromkeys(groups[order])])
    expected = [geometry.describe(p[order]).cosines for p in proxies.values()]
    for image, cosines in zip(images, [*expected, expected[1] - expected[0]], strict=True):
        np.fill_diagonal(cosines, np.nan)
        np.testing.assert_allclose(image.get_array().filled(np.nan), cosines, atol=1e-12)
    ((low, high),) = {image.get_clim() for image in images}
    largest = max(np.abs(image.get_array()).max() for image in images)
    assert low == -high and high >= largest > high - 0.1
    titles = [axis.get_title(loc="left") for axis in figure.axes[:3]]
    assert titles == ["PA", "PA+SO", "PA+SO − PA"] and figure.axes[1]._left_title.get_color() == SO
    assert legend(figure) == ["a", "b", "c"]
    boxes = [[(box.get_x(), box.get_width()) for box in axis.patches] for axis in figure.axes[:3]]
    assert boxes == [[(-0.5, 6), (5.5, 6), (11.5, 6)]] * 3


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


def test_proxies_and_groups_of_other_sizes_are_refused(proxies):
    with pytest.raises(SobookError, match="groups"):
        figures.proxy_heatmaps(proxies, groups=[1, 2])
    with pytest.raises(SobookError, match="shape"):
        figures.proxy_heatmaps({**proxies, "PA+SO": proxies["PA"][:4]})


def test_ribbons_hold_the_quantiles_on_one_axis_of_time(rng):
    start, drift = rng.normal(size=(18, 32)), 0.8 * np.eye(32)[0]
    moved = {
        "PA": geometry.movement([start + epoch * drift for epoch in range(5)]),
        "PA+SO": geometry.movement([start] * 5),
    }
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
