"""The look of the book's figures: colors, fonts, the `Figure` class, and helpers for your own.

A method keeps its color, and color is never the only way to tell two things apart.
"""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Iterable, Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as _MatplotlibFigure
from PIL import Image, ImageChops

# Colors of Okabe and Ito, and two of Paul Tol: distinct under all common kinds of color blindness.
COLORS = {
    "PA": "#D55E00",
    "PA+SO": "#0072B2",
    "chance": "#6E6E6E",
    "relevant": "#009E73",
    "irrelevant": "#882255",
    "bound": "#882255",
    "frozen": "#CC79A7",
}
PALETTE = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00"),
    *("#56B4E9", "#882255", "#999933", "#332288", "#44AA99"),
)
_OTHER_METHODS = ("#E69F00", "#56B4E9", "#332288", "#999933", "#44AA99")
QUIET = "#C4C4C4"  # background data
INK = "#222222"
GRID: dict[str, Any] = {"color": "#E4E4E4", "lw": 0.8}
CHANCE_LINE: dict[str, Any] = {"color": COLORS["chance"], "ls": ":", "lw": 1.6}
_STYLE: Any = {
    "font.size": 13,
    "axes.titlesize": 14,
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "legend.fontsize": 12,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 2.4,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#555555",
    "xtick.color": "#333333",
    "ytick.color": "#333333",
}
_HEAVY = 120_000  # bytes; heavier pictures are stored smaller


@contextlib.contextmanager
def use_style() -> Iterator[None]:
    """The book's look, for figures of your own: ``with use_style(): ...`` or ``@use_style()``."""
    with mpl.rc_context(_STYLE):
        yield


def method_color(name: str) -> str:
    """The color of a method: fixed for PA and PA+SO, derived from the name for any other.

    >>> method_color("PA"), method_color("PA+SO")
    ('#D55E00', '#0072B2')
    """
    return COLORS.get(name) or _OTHER_METHODS[sum(name.encode()) % len(_OTHER_METHODS)]


class Figure(_MatplotlibFigure):
    """A matplotlib figure that keeps the book's style and gives a notebook its alternative text."""

    def draw(self, renderer) -> None:
        with use_style():  # matplotlib makes tick labels only now, from the current settings
            super().draw(renderer)

    def encoded(self) -> tuple[str, str, int]:
        """MIME type, base64 and width for a notebook; twice the pixels for lines and letters."""
        photographs = any(
            getattr(i.get_array(), "ndim", 2) == 3 for axis in self.axes for i in axis.images
        )
        sharpness, drawn = 1 if photographs else 2, io.BytesIO()
        self.savefig(drawn, format="png", dpi=sharpness * self.dpi)
        picture = Image.open(drawn).convert("RGB")
        mime, data, small = "image/png", _as_png(picture), picture.reduce(sharpness)
        if len(data) > _HEAVY:
            data = _as_png(small)
        if len(data) > _HEAVY:
            mime, jpeg = "image/jpeg", io.BytesIO()
            small.save(jpeg, format="jpeg", quality=85)
            data = jpeg.getvalue()
        return mime, base64.b64encode(data).decode(), small.width

    def _ipython_display_(self) -> None:
        from IPython.display import display

        mime, data, width = self.encoded()
        metadata = {mime: {"alt": alt_text(self), "width": width}}
        display({mime: data, "text/plain": alt_text(self)}, raw=True, metadata=metadata)


def _as_png(picture: Image.Image, tolerance: int = 16) -> bytes:
    """The picture as PNG, with 256 colors (half the size) unless that would show."""
    small = picture.quantize(256, method=Image.Quantize.MAXCOVERAGE)
    change = np.asarray(ImageChops.difference(picture, small.convert("RGB")))
    png = io.BytesIO()
    (small if change.max() <= tolerance else picture).save(png, format="png", optimize=True)
    return png.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches; its parts make room for each other."""
    return Figure(figsize=(width, height), layout="constrained")


def panels(width: float, height: float, *shape: int, **options: Any) -> tuple[Figure, list[Any]]:
    """A new figure and its `subplots`, row by row."""
    figure = new_figure(width, height)
    figure.subplots(*shape, **options)
    return figure, figure.axes


def finish(figure: Figure, alt: str, numbers: Iterable[str] = ()) -> Figure:
    """The figure with its alternative text: one sentence on what it shows; its main numbers."""
    figure.set_label("; ".join([alt, *numbers]) + "." * bool(numbers))
    return figure


def alt_text(figure: _MatplotlibFigure) -> str:
    """One sentence on what the figure shows, for readers who do not see it."""
    return str(figure.get_label())


def line_looks(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Color and line style of each method: the first solid, the second long dashes, and so on."""
    line_styles = ("-", (0, (5, 1.5)), "-.", (0, (1, 1)))
    return {
        name: {"color": method_color(name), "ls": line_styles[i % 4]}
        for i, name in enumerate(methods)
    }


def write_inside(axis: Axes, text: str) -> str:
    """Say inside empty axes why they are empty; returns the text."""
    axis.text(0.5, 0.6, text, ha="center", color="#666666", transform=axis.transAxes)
    return text


def as_array(values) -> np.ndarray:
    """Tensor or array-like → numpy."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def evenly(values: np.ndarray, max_values: int) -> np.ndarray:
    """At most `max_values` of the values, evenly spread over them."""
    number = min(max_values, len(values))
    return values[np.linspace(0, len(values) - 1, number).round().astype(int)]
