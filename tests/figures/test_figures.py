"""Figures are tested for what they say: labels, limits, order, colors and numbers."""

import math

import matplotlib as mpl
import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid

from sobook import figures, geometry
from sobook.figures import proxies as proxy_figures
from sobook.figures import style

mpl.use("Agg")
PA, SO = figures.COLORS["PA"], figures.COLORS["PA+SO"]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def proxies(rng):
    """Correlated proxies in three genera, and the same ones nearly free of correlation."""
    genus = np.repeat(np.arange(3), 6)
    correlated = rng.normal(size=(3, 32))[genus] + 0.6 * rng.normal(size=(18, 32))
    return {"PA": correlated, "PA+SO": rng.normal(size=(18, 32))}


@pytest.fixture
def images(rng):
    return list(rng.integers(0, 256, (8, 12, 12, 3), dtype=np.uint8))


def texts(figure):
    """Everything that is written anywhere in a figure."""
    return " | ".join(t.get_text() for t in figure.findobj(mpl.text.Text) if t.get_text())


def legend(figure):
    boxes = [*figure.legends, *filter(None, (axis.get_legend() for axis in figure.axes))]
    return [text.get_text() for box in boxes for text in box.get_texts()]


def relative_luminance(color):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
              for c in mpl.colors.to_rgb(color)]  # fmt: skip
    return np.dot(linear, [0.2126, 0.7152, 0.0722])


# ---- colors and style --------------------------------------------------------------------------


def test_methods_keep_their_colors_and_others_get_stable_ones():
    assert figures.color("PA") == PA != figures.color("PA+SO") == SO
    assert figures.color("triplet") == figures.color("triplet")
    assert figures.color("triplet") not in (PA, SO)


def test_right_and_wrong_differ_in_lightness_too():
    right, wrong = (relative_luminance(figures.COLORS[n]) for n in ("right", "wrong"))
    assert (right + 0.05) / (wrong + 0.05) > 1.8


def test_style_leaves_the_settings_of_others_alone(proxies):
    before = dict(mpl.rcParams)
    figures.spectra(proxies).canvas.draw()
    assert dict(mpl.rcParams) == before


def test_style_holds_when_the_figure_is_drawn_later(proxies):
    figure = figures.spectra(proxies)
    with mpl.rc_context({"xtick.labelsize": 3}):
        figure.canvas.draw()
    assert all(label.get_size() == 12 for label in figure.axes[0].get_xticklabels())


def test_a_notebook_gets_the_picture_and_its_alternative_text(proxies, images, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **how: shown.append((data, how)))
    figures.spectra(proxies)._ipython_display_()
    data, how = shown.pop()
    assert data["text/plain"] == how["metadata"]["image/png"]["alt"]
    assert data["text/plain"].startswith("Singular values of the proxies; effective rank of 18: PA")
    noisy = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
    figures.contact_sheet(noisy)._ipython_display_()
    assert "image/jpeg" in shown.pop()[0]  # photographs would make a notebook heavy as PNG


# ---- proxies ------------------------------------------------------------------------------------


def test_class_order_puts_a_genus_together(proxies, rng):
    shuffle = rng.permutation(18)
    order = figures.class_order(torch.tensor(proxies["PA"][shuffle]))
    genus = (shuffle // 6)[order]
    assert sorted(order) == list(range(18))
    assert np.count_nonzero(np.diff(genus)) == 2


def test_class_order_of_very_many_classes_is_a_permutation(rng):
    order = figures.class_order(rng.normal(size=(4100, 8)))
    assert np.array_equal(np.sort(order), np.arange(4100))


def test_heatmaps_share_order_and_scale(proxies):
    names = [f"bird {i}" for i in range(18)]
    figure = figures.proxy_heatmaps(proxies, class_names=names, groups=list("abc") * 6)
    left, right = (axis.images[0] for axis in figure.axes[:2])
    order = [names.index(t.get_text()) for t in figure.axes[0].get_yticklabels()]
    assert order == figures.class_order(proxies["PA"]).tolist()
    for image, p in zip((left, right), proxies.values(), strict=True):
        expected = geometry.describe(p[order]).cosines
        np.fill_diagonal(expected, np.nan)
        np.testing.assert_allclose(image.get_array().filled(np.nan), expected, atol=1e-12)
    assert left.get_clim() == right.get_clim()
    low, high = left.get_clim()
    assert low == -high and math.isclose(high * 10, round(high * 10))
    assert high >= geometry.describe(proxies["PA"]).coherence > high - 0.1
    assert legend(figure) == ["a", "b", "c"]


def test_heatmap_titles_carry_colors_and_numbers(proxies):
    axis = figures.proxy_heatmaps(proxies).axes[1]
    shape = geometry.describe(proxies["PA+SO"])
    assert axis.get_title(loc="left") == "PA+SO" and axis._left_title.get_color() == SO
    said = f"RMS cosine {shape.rms_cosine:.2f}, coherence {shape.coherence:.2f}"
    assert axis.get_title(loc="right") == said


def test_heatmap_difference_and_given_limit(proxies):
    figure = figures.proxy_heatmaps(proxies, difference=True, limit=0.2, order=np.arange(18))
    first, second, change = (axis.images[0].get_array() for axis in figure.axes[:3])
    np.testing.assert_allclose(change.compressed(), (second - first).compressed())
    assert figure.axes[2].get_title(loc="left") == "PA+SO − PA"
    assert {axis.images[0].get_clim() for axis in figure.axes[:3]} == {(-0.2, 0.2)}
    assert "±0.2" in texts(figure) and "clustered" not in texts(figure)


def test_heatmap_of_many_classes_shows_block_means(rng):
    p = rng.normal(size=(402, 6)) + 0.5
    figure = figures.proxy_heatmaps({"PA": p}, order=np.arange(402), groups=np.arange(402) % 12)
    cells = figure.axes[0].images[0].get_array()
    cosines = geometry.describe(p).cosines
    assert cells.shape == (200, 200)
    starts = np.linspace(0, 402, 200, endpoint=False).astype(int)
    a, b = slice(starts[0], starts[1]), slice(starts[7], starts[8])
    assert cells[0, 7] == pytest.approx(cosines[a, b].mean())
    assert cells[0, 0] == pytest.approx(geometry.off_diagonal(cosines[a, a]).mean())
    assert "each cell is the mean of about 4 cosines" in texts(figure)


@pytest.mark.parametrize("dim", [2, 3, 16, 384])
def test_density_of_random_angles_is_exact(dim):
    theta = np.linspace(0, 180, 20_001)
    density = proxy_figures._random_angle_density(theta, dim)
    assert trapezoid(density, theta) == pytest.approx(1, abs=1e-3)
    spread = trapezoid(density * np.cos(np.radians(theta)) ** 2, theta)
    assert math.sqrt(spread) == pytest.approx(1 / math.sqrt(dim), rel=1e-3)


def test_angle_histogram_counts_every_pair_and_marks_the_bounds(rng):
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


def test_angle_histogram_has_no_welch_bound_when_orthogonal_is_possible(proxies):
    assert "Welch" not in texts(figures.angle_histogram(proxies))


def test_spectra_show_singular_values_and_the_flat_line(proxies):
    figure = figures.spectra(proxies)
    flat, first, second = figure.axes[0].lines
    shape = geometry.describe(proxies["PA"])
    np.testing.assert_allclose(first.get_ydata(), shape.spectrum)
    assert flat.get_ydata()[0] == 1  # 18 orthonormal rows
    assert (first.get_color(), second.get_color()) == (PA, SO)
    assert f"PA: effective rank {shape.effective_rank:.1f}" in legend(figure)


def test_proxies_are_checked(proxies):
    with pytest.raises(ValueError, match="by name"):
        figures.proxy_heatmaps(proxies["PA"])
    with pytest.raises(ValueError, match=r"PA\+SO have shape \(4, 32\)"):
        figures.proxy_heatmaps({"PA": proxies["PA"], "PA+SO": proxies["PA"][:4]})
    with pytest.raises(ValueError, match="each of the 18 classes once"):
        figures.proxy_heatmaps(proxies, order=np.zeros(18))
    with pytest.raises(ValueError, match="groups names 2 classes"):
        figures.proxy_heatmaps(proxies, groups=[1, 2])
    with pytest.raises(ValueError, match="exactly two"):
        figures.proxy_heatmaps({"PA": proxies["PA"]}, difference=True)


# ---- training -----------------------------------------------------------------------------------


def metrics(shift=0.0, recall=True):
    lines = [{"kind": "step", "epoch": 1, "step": 1, "proxy_anchor": 99.0}]
    for epoch in range(4):
        line = {"kind": "epoch", "epoch": epoch, "rms_cosine": 0.1, "recall_at_1": 0.4 + shift}
        if epoch:  # nothing was trained before epoch 1
            line |= {"proxy_anchor": 5.0 - epoch + shift, "soft_orthogonality": 0.01}
        lines.append(line if recall else {k: v for k, v in line.items() if k != "recall_at_1"})
    return lines


def test_training_curves_draw_epochs_in_the_colors_of_the_methods():
    figure = figures.training_curves({"PA": metrics(), "PA+SO": metrics(0.1)}, dim=64)
    panels = {axis.get_title(): axis for axis in figure.axes}
    loss = panels["Proxy Anchor loss"].lines
    assert [line.get_color() for line in loss] == [PA, SO]
    assert loss[0].get_xdata().tolist() == [1, 2, 3] and loss[0].get_ydata().tolist() == [4, 3, 2]
    chance = panels["RMS cosine of proxies"].lines[-1]
    assert chance.get_ydata()[0] == pytest.approx(1 / 8)
    assert legend(figure) == ["PA", "PA+SO", "random directions, 1/√64"]
    limits = {axis.get_xlim() for axis in figure.axes}
    assert len(limits) == 1


def test_training_curves_of_several_seeds_show_mean_and_range():
    figure = figures.training_curves({"PA": [metrics(0.0), metrics(0.2)]})
    recall = next(a for a in figure.axes if a.get_title().startswith("Recall@1"))
    assert recall.lines[0].get_ydata() == pytest.approx(np.full(4, 0.5))
    heights = recall.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((0.4, 0.6))


def test_training_curves_say_what_was_not_measured():
    figure = figures.training_curves({"PA": metrics(recall=False)})
    assert "not measured" in texts(figure)
    assert "Recall@1 unknown" in figures.alt_text(figure)
    with pytest.raises(ValueError, match="no runs"):
        figures.training_curves({})


# ---- maps and spheres ---------------------------------------------------------------------------


@pytest.fixture
def clusters(rng):
    labels = np.repeat(np.arange(4), 12)
    centers = rng.normal(size=(4, 16))
    return centers[labels] + 0.2 * rng.normal(size=(48, 16)), labels, centers


def test_umap_keeps_classes_together_and_repeats_itself(clusters):
    points, labels, centers = clusters
    plane = figures.project(torch.tensor(points), n_neighbors=8)
    nearest = np.argsort(np.linalg.norm(plane[:, None] - plane[None], axis=2))[:, 1]
    assert np.mean(labels[nearest] == labels) > 0.95
    np.testing.assert_array_equal(plane, figures.project(points, n_neighbors=8))


def test_maps_print_trustworthiness_and_draw_proxies_as_stars(clusters):
    points, labels, centers = clusters
    figure = figures.embedding_maps({"PA": points, "PA+SO": -points}, labels, method="pca",
                                    proxies={"PA": centers}, class_names="wxyz")  # fmt: skip
    left, right = figure.axes
    assert left.get_title() == "PA" and left.title.get_color() == PA
    assert "trustworthiness 0." in left.get_xlabel() and left.get_xlabel().startswith("PCA")
    star = mpl.markers.MarkerStyle("*").get_path().vertices.shape
    count = [sum(len(c.get_offsets()) for c in axis.collections
                 if c.get_paths()[0].vertices.shape == star) for axis in (left, right)]  # fmt: skip
    assert count == [4, 0]
    assert legend(figure) == ["w", "x", "y", "z", "proxy"]
    assert "fitted on its own" in texts(figure)


def test_many_classes_are_grey_but_for_those_spoken_of(rng):
    labels = np.repeat(np.arange(30), 3)
    points = rng.normal(size=(90, 8))
    figure = figures.embedding_map(points, labels, method="pca", highlight=[3, 7], title="PA")
    assert legend(figure) == ["class 3", "class 7", "28 other classes"]
    sizes = [len(c.get_offsets()) for c in figure.axes[0].collections]
    assert sizes == [84, 3, 3]
    assert mpl.colors.to_hex(figure.axes[0].collections[0].get_facecolor()) == style.QUIET.lower()


def test_twenty_classes_can_be_told_apart():
    styles = style.class_styles(np.arange(20), None)
    assert len(set(styles.values())) == 20


def test_maps_check_their_input(clusters):
    points, labels, centers = clusters
    with pytest.raises(ValueError, match='"umap" or "pca"'):
        figures.project(points, method="tsne")
    with pytest.raises(ValueError, match="48 embeddings but 3 labels"):
        figures.embedding_map(points, labels[:3], method="pca")
    with pytest.raises(ValueError, match=r"without any image here: \[9\]"):
        figures.embedding_map(points, labels, method="pca", highlight=[9])
    with pytest.raises(ValueError, match="same names"):
        figures.embedding_maps({"PA": points}, labels, method="pca", proxies={"SO": centers})


def test_spheres_share_their_view_and_show_all_points(rng):
    labels = np.repeat(np.arange(3), 10)
    points, proxies = rng.normal(size=(30, 3)), np.eye(3)
    figure = figures.spheres({"PA": (points, proxies), "PA+SO": (points, proxies)}, labels)
    left, right = figure.axes
    assert (left.elev, left.azim) == (right.elev, right.azim)
    assert left.get_title() == "PA: RMS cosine 0.00, coherence 0.00"
    drawn = np.concatenate([np.stack(c._offsets3d, axis=1) for c in left.collections
                            if hasattr(c, "_offsets3d")])  # fmt: skip
    assert len(drawn) == 30
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1)
    with pytest.raises(ValueError, match="3-dimensional"):
        figures.sphere(rng.normal(size=(30, 5)), labels, proxies)


# ---- images -------------------------------------------------------------------------------------


def marks(figure):
    return [t.get_text() for t in figure.findobj(mpl.text.Text) if t.get_text() in ("✓", "✗")]


def frames(figure):
    patches = figure.axes[0].patches
    return [mpl.colors.to_hex(p.get_edgecolor()).upper() for p in patches]


def test_retrieval_wall_marks_right_and_wrong_by_color_and_by_sign(images):
    right = torch.tensor([[True, False, True], [False, False, True]])
    rows = [images[2:5], images[5:8]]
    figure = figures.retrieval_wall(images[:2], rows, right, np.full((2, 3), 0.5), ["a", "b"])
    assert marks(figure) == ["✓", "✗", "✓", "✗", "✗", "✓"]
    expected = {"✓": figures.COLORS["right"], "✗": figures.COLORS["wrong"]}
    assert frames(figure) == [expected[m] for m in marks(figure)]
    assert len(figure.axes[0].images) == 8 and texts(figure).count("0.50") == 6
    assert figures.alt_text(figure) == "2 queries with their 3 nearest images: 3 of 6 right."
    with pytest.raises(ValueError, match="1 query images but 2 rows"):
        figures.retrieval_wall(images[:1], rows, right)


def test_retrieval_comparison_puts_pa_above_so(images):
    rows, right = [images[2:5]], [[True, True, False]]
    figure = figures.retrieval_comparison(images[:1], {"PA": rows, "PA+SO": rows},
                                          {"PA": [[False] * 3], "PA+SO": right})  # fmt: skip
    names = {t.get_text(): t for t in figure.axes[0].texts if t.get_text() in ("PA", "PA+SO")}
    assert names["PA"].get_position()[1] < names["PA+SO"].get_position()[1]  # y runs downwards
    assert (names["PA"].get_color(), names["PA+SO"].get_color()) == (PA, SO)
    assert marks(figure) == ["✗", "✗", "✗", "✓", "✓", "✗"]
    inside = figure.axes[0].get_xlim()
    assert all(image.get_extent()[1] <= inside[1] for image in figure.axes[0].images)


def test_contact_sheet_keeps_proportions_and_wraps(images):
    wide = np.zeros((10, 20, 3), dtype=np.uint8)
    figure = figures.contact_sheet([*images[:2], wide], ["a", "b", "c"], columns=2)
    left, right, bottom, top = figure.axes[0].images[2].get_extent()
    assert (right - left) / (bottom - top) == pytest.approx(2)
    assert left == 0 and top > 1  # the third image begins the second row
    assert {"a", "b", "c"} <= set(texts(figure).split(" | "))
    with pytest.raises(ValueError, match="no images"):
        figures.contact_sheet([])


def test_attention_maps_share_one_scale_in_multiples_of_uniform(images, rng):
    attention = rng.random((2, 3, 16))
    figure = figures.attention_maps(images[:2], torch.tensor(attention))
    maps = [i for i in figure.axes[0].images if i.get_array().shape == (4, 4)]
    heads = [i for i in maps if i.get_alpha() is None]
    assert len(heads) == 6 and len({i.get_clim() for i in maps}) == 1
    assert all(i.get_array().mean() == pytest.approx(1) for i in heads)
    with pytest.raises(ValueError, match="17 patches are no square grid"):
        figures.attention_maps(images[:2], rng.random((2, 3, 17)))


# ---- results ------------------------------------------------------------------------------------


def test_recall_curves_draw_values_and_intervals():
    recalls = {"PA": {1: 0.6, 2: 0.7, 4: 0.8}, "PA+SO": {1: 0.62, 2: 0.71, 4: 0.83}}
    figure = figures.recall_curves(recalls, {"PA": {1: (0.58, 0.63)}})
    axis = figure.axes[0]
    assert axis.lines[0].get_ydata().tolist() == [0.6, 0.7, 0.8]
    assert [line.get_color() for line in axis.lines] == [PA, SO]
    assert [t.get_text() for t in axis.get_xticklabels()] == ["1", "2", "4"]
    assert axis.collections[0].get_segments()[0][:, 1].tolist() == [0.58, 0.63]
    assert "PA+SO: Recall@1 62.0%" in legend(figure)


def test_interval_plot_writes_its_numbers():
    rows = [("PA, Aviary", 0.6, 0.58, 0.63, "PA"), ("PA+SO, Aviary", 0.62, 0.6, 0.65, "PA+SO")]
    figure = figures.interval_plot(rows, "Recall@1", reference=0.5)
    axis = figure.axes[0]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["PA, Aviary", "PA+SO, Aviary"]
    assert axis.get_ylim()[0] > axis.get_ylim()[1]  # the first row stands above
    assert "0.620  [0.600, 0.650]" in texts(figure) and "95%" in axis.get_xlabel()


def test_paired_differences_pair_by_seed():
    values = {"PA": [0.60, 0.62], "PA+SO": torch.tensor([0.63, 0.63])}
    figure = figures.paired_differences(values, (0.0, 0.04))
    left, right = figure.axes
    slopes = [line.get_ydata() for line in left.lines[:2]]
    np.testing.assert_allclose(slopes, [[0.60, 0.63], [0.62, 0.63]], atol=1e-6)
    np.testing.assert_allclose(right.lines[1].get_ydata(), [0.03, 0.01], atol=1e-6)
    assert right.get_title() == "PA+SO − PA" and "mean +0.020" in texts(figure)
    with pytest.raises(ValueError, match="2 seeds and PA"):
        figures.paired_differences({"PA": [1, 2], "PA+SO": [1]})


def test_confusion_vs_cosine_ranks_pairs(rng):
    cosines = np.corrcoef(rng.normal(size=(8, 5)))
    figure = figures.confusion_vs_cosine(cosines, np.exp(cosines), name="PA+SO")
    title = figure.axes[0].get_title(loc="left")
    assert title == "PA+SO: Spearman ρ = +1.00 [+1.00, +1.00] over 28 pairs"
    dots = figure.axes[0].collections[0]
    assert len(dots.get_offsets()) == 28
    assert mpl.colors.to_hex(dots.get_facecolor()).upper() == SO
    with pytest.raises(ValueError, match=r"must both be \(C, C\)"):
        figures.confusion_vs_cosine(cosines, cosines[:3])


# ---- what is new with the explorer --------------------------------------------------------------


def epochs_of(shift, count=5):
    rng = np.random.default_rng(7)
    start = rng.normal(size=(18, 32))
    return [start + shift * e * np.eye(32)[0] for e in range(count)]


def test_ribbons_hold_the_quantiles_on_one_axis_of_time():
    moved = {"PA": geometry.movement(epochs_of(0.8)), "PA+SO": geometry.movement(epochs_of(0.1))}
    figure = figures.proxy_ribbons(moved, {"PA": [None, 0.3, 0.4, 0.5, 0.6]}, dim=32)
    cosine, so, recall = figure.axes
    first, second = cosine.collections
    vertices = first.get_paths()[0].vertices
    at_end = np.sort(vertices[vertices[:, 0] == 4][:, 1])
    assert (at_end[0], at_end[-1]) == pytest.approx(tuple(moved["PA"].cosine_band[-1, [0, 2]]))
    assert mpl.colors.to_hex(first.get_facecolor()).upper() == PA
    assert mpl.colors.to_hex(second.get_facecolor()).upper() == SO
    np.testing.assert_allclose(so.lines[0].get_ydata(), moved["PA"].series("rms_cosine") ** 2)
    assert list(recall.lines[0].get_xdata()) == [1, 2, 3, 4]
    assert len({axis.get_xlim() for axis in figure.axes}) == 1
    assert sorted(legend(figure)) == ["PA", "PA+SO", "random directions, 32-D"]
    assert "SO 0." in figures.alt_text(figure)
    assert "not measured" in texts(figures.proxy_ribbons(moved))
    with pytest.raises(ValueError, match="no runs"):
        figures.proxy_ribbons({})


def test_images_of_classes_without_a_proxy_are_hollow(clusters):
    points, labels, centers = clusters
    figure = figures.embedding_maps({"PA": points}, labels, method="pca", class_names="wxyz",
                                    proxies={"PA": centers[:2]}, proxy_labels=[0, 1])  # fmt: skip
    hollow = [c for c in figure.axes[0].collections if len(c.get_facecolor()) == 0]
    assert sorted(len(c.get_offsets()) for c in hollow if len(c.get_offsets())) == [12, 12]
    assert "test class: no proxy" in legend(figure)
    assert "neighbors kept" in figure.axes[0].get_xlabel()


def test_panel_of_maps_has_a_row_a_setting_a_column_a_seed_and_pca(clusters):
    points, labels, _ = clusters
    figure = figures.map_panel(points, labels, n_neighbors=(5, 8), seeds=(0, 1))
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == ["5 neighbors, seed 0", "5 neighbors, seed 1", "PCA",
                      "8 neighbors, seed 0", "8 neighbors, seed 1"]  # fmt: skip
    shown = [axis.get_xlabel() for axis in figure.axes if axis.get_title()]
    assert all("trustworthiness" in text and "kept" in text for text in shown)
    with pytest.raises(ValueError, match="48 embeddings but 2 labels"):
        figures.map_panel(points, labels[:2])


def test_attribute_lens_finds_what_was_put_in(rng):
    marks = rng.integers(0, 2, (18, 8))
    shared = (marks[:, None] == marks[None]).sum(axis=2)
    proxies = {"PA": 2.0 * marks - 1, "PA+SO": rng.normal(size=(18, 8))}
    figure = figures.attribute_lens(proxies, shared)
    left, right = figure.axes
    assert left.get_title().startswith("PA: ρ = +1.00") and left.title.get_color() == PA
    assert right.title.get_color() == SO and left.get_ylim() == right.get_ylim()
    means = left.lines[0]
    np.testing.assert_allclose(
        means.get_ydata(), means.get_xdata() / 4 - 1, atol=1e-9
    )  # cosine of ±1s
    assert "95 % interval" in figures.alt_text(figure)
    with pytest.raises(ValueError, match="there are 18 classes"):
        figures.attribute_lens(proxies, shared[:3, :3])


def test_queries_are_picked_by_what_changed():
    right = {"PA": [[0, 1], [1, 1], [0, 0], [1, 0]], "PA+SO": [[1, 1], [0, 1], [0, 0], [1, 0]]}
    right = {name: np.array(rows, bool) for name, rows in right.items()}
    assert figures.pick_queries("fixed", right).tolist() == [0]
    assert figures.pick_queries("broken", right).tolist() == [1]
    assert figures.pick_queries("hardest", right, 2).tolist() == [2, 3]
    found, labels = np.array([[0, 0], [2, 1], [1, 2], [1, 2]]), np.array([0, 1, 2, 2])
    picked = figures.pick_queries("confused", right, found=found, labels=labels)
    assert picked.tolist() == [1, 2, 3]  # classes 1 and 2 take each other's places
    with pytest.raises(ValueError, match="found and labels"):
        figures.pick_queries("confused", right)
    with pytest.raises(ValueError, match="fixed, broken"):
        figures.pick_queries("best", right)


def test_eleven_thousand_classes_are_shown_as_means_of_blocks(rng):
    many = rng.normal(size=(2000, 8))
    figure = figures.proxy_heatmaps({"PA": many, "PA+SO": many}, difference=True,
                                    order=np.arange(2000))  # fmt: skip
    cells = figure.axes[0].images[0].get_array()
    assert cells.shape == (200, 200) and "mean of about 100 cosines" in texts(figure)
    unit = geometry.unit_rows(many)
    assert cells[0, 1] == pytest.approx((unit[:10] @ unit[10:20].T).mean())
    assert len({axis.images[0].get_clim() for axis in figure.axes[:3]}) == 1


def test_split_chart_shows_who_shares_classes():
    labels = np.repeat(np.arange(6), 4)
    disjoint = {"train": labels[:12], "validation": labels[12:16], "test": labels[16:]}
    mixed = {"train": labels[::2], "test": labels[1::2]}
    figure = figures.split_chart({"mixed": mixed, "disjoint": disjoint})
    first, second = figure.axes
    assert "6 of 6 classes in more than one part" in first.get_title()
    assert "0 of 6 classes in more than one part" in second.get_title()
    for axis in (first, second):  # every picture is in a bar, and every column holds four
        tops = np.zeros(6)
        for bar in axis.patches:
            tops[round(bar.get_x() + 0.45)] += bar.get_height()
        assert tops.tolist() == [4] * 6
    assert first.get_ylim() == second.get_ylim() and "class-disjoint" not in figures.alt_text(
        figure
    )
    few = figures.split_chart({"disjoint": disjoint}, show=3)
    assert len(few.axes[0].patches) == 3 * 3
