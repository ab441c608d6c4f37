"""The drawing board under `figures`: the book's style and colors, and the parts figures share."""

from __future__ import annotations

import base64
import io
import itertools
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as _MatplotlibFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image, ImageChops

from sobook.errors import SobookError

# Okabe and Ito's colors, and two of Paul Tol's: told apart under all common color blindness.
COLORS = {
    "PA": "#D55E00",
    "PA+SO": "#0072B2",
    "chance": "#6E6E6E",
    "right": "#009E73",
    "wrong": "#882255",
    "frozen": "#CC79A7",
}
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00",
            "#56B4E9", "#882255", "#999933", "#332288", "#44AA99")  # fmt: skip
_OTHERS = ("#E69F00", "#56B4E9", "#332288", "#999933", "#44AA99")
QUIET = "#C4C4C4"  # what is shown but not spoken of
_STYLE = {
    "font.family": "DejaVu Sans", "font.size": 13, "axes.titlesize": 14, "axes.labelsize": 13,
    "xtick.labelsize": 12, "ytick.labelsize": 12, "legend.fontsize": 12, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 2.4,
    "text.color": "#222222", "axes.labelcolor": "#222222", "axes.edgecolor": "#555555",
    "xtick.color": "#333333", "ytick.color": "#333333", "axes.facecolor": "white",
    "figure.facecolor": "white", "savefig.facecolor": "white",
}  # fmt: skip


def use_style() -> AbstractContextManager:
    """The book's look, for figures of your own: ``with use_style(): ...`` or ``@use_style()``."""
    return mpl.rc_context(_STYLE)


def color(name: str) -> str:
    """The color of a method: fixed for PA and PA+SO, and always the same one for any other name.

    >>> color("PA"), color("PA+SO")
    ('#D55E00', '#0072B2')
    """
    return COLORS.get(name) or _OTHERS[sum(name.encode()) % len(_OTHERS)]


class Figure(_MatplotlibFigure):
    """A matplotlib figure that keeps the book's style and tells a notebook its alternative text."""

    def draw(self, renderer) -> None:
        with use_style():  # matplotlib makes tick labels only now, from the settings of the moment
            super().draw(renderer)

    def _ipython_display_(self) -> None:
        from IPython.display import display

        kind, data, raw = "image/png", io.BytesIO(), io.BytesIO()
        self.savefig(raw, format="png")
        picture = Image.open(raw).convert("RGB")
        if raw.tell() > 250_000:  # photographs: a notebook must stay small
            kind = "image/jpeg"
            picture.save(data, format="jpeg", quality=85)
        else:
            _with_palette(picture).save(data, format="png", optimize=True)
        encoded = base64.b64encode(data.getvalue()).decode()
        bundle = {kind: encoded, "text/plain": alt_text(self)}
        display(bundle, raw=True, metadata={kind: {"alt": alt_text(self)}})


def _with_palette(picture: Image.Image, most: int = 16) -> Image.Image:
    """The picture with 256 colors, half the file, unless that would show (color bars suffer)."""
    small = picture.quantize(256)
    changes = ImageChops.difference(picture, small.convert("RGB")).getextrema()
    return small if max(high for _, high in changes) <= most else picture


def alt_text(figure: _MatplotlibFigure) -> str:
    """One sentence that says what the figure shows, for readers who do not see it."""
    return figure.get_label()


def as_array(values) -> np.ndarray:
    """Tensor (any device, any float type) or array-like → numpy."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
    return np.asarray(values)


def as_matrix(values, what: str) -> np.ndarray:
    matrix = as_array(values)
    if matrix.ndim != 2:
        raise SobookError(f"{what} must have two dimensions, not shape {matrix.shape}")
    return matrix


def new_figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def finish(figure: Figure, alt: str) -> Figure:
    figure.set_label(alt)
    return figure


def dashes() -> Iterator:
    """Line styles beside the colors: the first solid, the second long dashes, and so on."""
    return itertools.cycle(("-", (0, (5, 1.5)), "-.", (0, (1, 1))))


def group_bar(axis: Axes, groups, order: np.ndarray) -> None:
    """A strip left of a heatmap, one color a group (from the eleventh on, colors repeat)."""
    if groups is None:
        return
    if len(groups) != len(order):
        raise SobookError(f"groups names {len(groups)} classes, the proxies have {len(order)}")
    codes = np.unique(np.asarray(groups), return_inverse=True)[1][order]
    strip = np.array([mpl.colors.to_rgb(PALETTE[c % len(PALETTE)]) for c in codes])
    end = max(axis.get_xlim())  # the heatmap runs from −0.5 to here
    left, right = -0.5 - 0.05 * end, -0.5 - 0.015 * end
    axis.imshow(strip[:, None], extent=(left, right, end, -0.5), aspect="auto",
                interpolation="nearest")  # fmt: skip
    axis.set(aspect="equal", xlim=(left, end), ylim=(end, -0.5))


def class_ticks(axis: Axes, names: list[str]) -> None:
    size = 11 if len(names) <= 25 else 8
    axis.set_yticks(range(len(names)), names, fontsize=size)
    axis.tick_params(axis="y", length=0)


def group_legend(figure: Figure, groups) -> None:
    names = [] if groups is None else list(np.unique(np.asarray(groups)))
    if 0 < len(names) <= len(PALETTE):
        handles = [Rectangle((0, 0), 1, 1, color=PALETTE[i]) for i in range(len(names))]
        figure.legend(handles, [str(n) for n in names], loc="outside upper center", fontsize=11,
                      ncols=min(len(names), 6), handlelength=1)  # fmt: skip


def curve(axis: Axes, epochs, values: np.ndarray, shade: str, dash) -> None:
    if not len(epochs):
        return
    axis.plot(epochs, values.mean(axis=0), color=shade, ls=dash, marker="o", ms=4)
    if len(values) > 1:
        axis.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=shade, alpha=0.18,
                          lw=0)  # fmt: skip


def class_styles(labels: np.ndarray, highlight) -> dict[int, tuple[str, str]]:
    """Color and marker of up to 20 classes: ten colors, then the same with another marker."""
    classes = np.unique(labels)
    if highlight is None:
        spread = np.linspace(0, len(classes) - 1, 12).round().astype(int)
        highlight = classes if len(classes) <= 20 else classes[spread]
    missing = [int(c) for c in highlight if c not in classes]
    if missing:
        raise SobookError(f"highlight names classes without any image here: {missing}")
    if len(highlight) > 20:
        raise SobookError(f"highlight takes at most 20 classes, not {len(highlight)}")
    return {int(c): (PALETTE[i % 10], "o^"[i // 10]) for i, c in enumerate(highlight)}


def points_on_map(
    axis: Axes, plane: np.ndarray, labels: np.ndarray, styles: dict, seen=None
) -> None:
    """Points by class; hollow where `seen`, the classes with a proxy, does not name theirs."""
    axis.set(xticks=[], yticks=[])  # a map's coordinates mean nothing
    axis.spines[:].set(visible=True, color=QUIET)
    size = float(np.clip(20_000 / len(plane), 4, 34))
    rest, filled = ~np.isin(labels, list(styles)), np.ones(len(labels), bool)
    if seen is not None:
        filled = np.isin(labels, seen)
        hollow = {"facecolors": "none", "lw": 0.9, "alpha": 0.8}
        axis.scatter(*plane[rest & ~filled].T, s=size * 0.6, edgecolors=QUIET, **hollow)
    axis.scatter(*plane[rest & filled].T, s=size * 0.6, color=QUIET, lw=0, alpha=0.7)
    for label, (shade, marker) in styles.items():
        mine = labels == label
        if filled[mine].all():
            axis.scatter(*plane[mine].T, s=size, color=shade, marker=marker, lw=0, alpha=0.8)
        else:
            axis.scatter(*plane[mine].T, s=size, edgecolors=shade, marker=marker, **hollow)


def stars_on_map(axis: Axes, plane: np.ndarray, classes: np.ndarray, styles: dict) -> None:
    if len(plane) != len(classes):
        raise SobookError(f"{len(plane)} proxies but {len(classes)} proxy labels")
    if not len(plane):
        return
    rest = ~np.isin(classes, list(styles))
    axis.scatter(*plane[rest].T, s=70, color=QUIET, marker="*", zorder=4, ec="#222222", lw=0.5)
    for label, (shade, _) in styles.items():
        axis.scatter(*plane[classes == label].T, s=260, color=shade, marker="*", zorder=5,
                     ec="#222222", lw=1.0)  # fmt: skip


def class_legend(
    figure: Figure, styles: dict, names, total: int, stars: bool, hollow: bool = False
) -> None:
    handles = [Line2D([], [], color=shade, marker=marker, ls="", ms=8)
               for shade, marker in styles.values()]  # fmt: skip
    labels = [str(names[c]) if names is not None else f"class {c}" for c in styles]
    if total > len(styles):
        handles.append(Line2D([], [], color=QUIET, marker="o", ls="", ms=6))
        labels.append(f"{total - len(styles)} other classes")
    if stars:
        handles.append(Line2D([], [], color="white", marker="*", ls="", ms=15, mec="#222222"))
        labels.append("proxy")
    if hollow:
        handles.append(Line2D([], [], color="#555555", marker="o", ls="", ms=7, mfc="none"))
        labels.append("test class: no proxy")
    figure.legend(handles, labels, loc="outside right center", fontsize=11, handletextpad=0.3)


def tiles(
    width: float, height: float, *, top: float = 0.3, extra: float = 0.0
) -> tuple[Figure, Axes]:
    """One axes whose unit is the side of an image: (0, 0) at the upper left.

    `top` leaves room for headings (in sides), `extra` for a color bar (in inches).
    """
    scale = min(1.25, 12 / width)  # inches
    figure = new_figure(width * scale + extra, (height + top) * scale)
    axis = figure.subplots()
    axis.set_axis_off()
    axis.set(xlim=(-0.05, width), ylim=(height, -top), aspect="equal")
    return figure, axis


def tile(axis: Axes, image, x: float, y: float, *, right=None, caption=None, **options):
    """An image inside the unit square at (x, y); framed and marked if `right` is said.

    A caption takes two lines of about 15 letters at most, 0.3 of the side.
    """
    image = as_array(image)
    height, width = image.shape[:2] / np.max(image.shape[:2])
    left, top = x + (1 - width) / 2, y + (1 - height) / 2
    limits = axis.get_xlim(), axis.get_ylim()
    shown = axis.imshow(image, extent=(left, left + width, top + height, top), **options)
    axis.set(xlim=limits[0], ylim=limits[1])
    if right is not None:
        shade = COLORS["right" if right else "wrong"]
        axis.add_patch(Rectangle((x, y), 1, 1, fill=False, ec=shade, lw=4, joinstyle="round"))
        axis.text(x + 0.87, y + 0.13, "✓" if right else "✗", color="white", weight="bold",
                  ha="center", va="center", fontsize=13,
                  bbox={"boxstyle": "circle,pad=0.15", "fc": shade, "ec": "white"})  # fmt: skip
    if caption is not None:
        wrap = textwrap.TextWrapper(17, break_on_hyphens=False, break_long_words=False)
        lines = wrap.wrap(str(caption))[:2]
        axis.text(x + 0.5, y + 1.03, "\n".join(lines), ha="center", va="top", fontsize=10,
                  linespacing=1.0)  # fmt: skip
    return shown


def headings(axis: Axes, titles: Mapping[float, str]) -> None:
    for x, title in titles.items():
        axis.text(x, -0.08, title, ha="left", va="bottom", fontsize=12)


def facing(points: np.ndarray, view: tuple[float, float]) -> np.ndarray:
    """Which points of the sphere face the reader."""
    elevation, azimuth = np.radians(view)
    eye = (np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth),
           np.sin(elevation))  # fmt: skip
    return points @ np.array(eye) > 0


def globe(axis, view: tuple[float, float]) -> None:
    theta, phi = np.linspace(0, np.pi, 13), np.linspace(0, 2 * np.pi, 25)
    across = np.outer(np.sin(theta), np.cos(phi)), np.outer(np.sin(theta), np.sin(phi))
    up = np.outer(np.cos(theta), np.ones_like(phi))
    axis.plot_wireframe(*across, up, color=QUIET, lw=0.5, alpha=0.6)
    axis.set_box_aspect((1, 1, 1), zoom=1.5)
    axis.set(xlim=(-1, 1), ylim=(-1, 1), zlim=(-1, 1))
    axis.set_axis_off()


def points_on_globe(axis, points, labels, stars, styles, view) -> None:
    for label, (shade, marker) in styles.items():
        mine = points[labels == label]
        for part, alpha in ((mine[facing(mine, view)], 0.85), (mine[~facing(mine, view)], 0.18)):
            axis.scatter(*part.T, color=shade, marker=marker, s=22, lw=0, alpha=alpha,
                         depthshade=False)  # fmt: skip
    for label, star in enumerate(stars):
        shade = styles.get(label, (QUIET, "o"))[0]
        alpha = 1.0 if facing(star[None], view)[0] else 0.45
        axis.plot(*np.stack([np.zeros(3), star]).T, color=shade, lw=2.6, alpha=alpha)
        axis.plot(*star[:, None], "*", color=shade, ms=20, mec="#222222", alpha=alpha, zorder=10)
