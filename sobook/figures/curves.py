"""Curves and intervals: training over epochs, Recall@K, and comparisons with their uncertainty."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from sobook.errors import SobookError
from sobook.figures import style
from sobook.figures.style import Figure, as_array, finish, method_color, new_figure, use_style

_MARKERS = "osD^v"


@use_style()
def training_curves(runs: Mapping[str, Sequence[Mapping]], *, dim: int | None = None) -> Figure:
    """Loss parts, proxy correlation and held-out Recall@1 on one axis of epochs.

    Args:
        runs: name → the lines of a run's ``metrics.jsonl``.
        dim: draws the chance level 1/√dim among the cosines.
    """
    figure = new_figure(12, 4.4)
    axes = figure.subplot_mosaic([["pa", "cosine", "recall"], ["so", "cosine", "recall"]])
    panels = {
        "pa": ("Proxy Anchor loss", "proxy_anchor"),
        "so": ("soft orthogonality", "soft_orthogonality"),
        "cosine": ("RMS cosine of proxies", "rms_cosine"),
        "recall": ("Recall@1, held-out classes", "recall_at_1"),
    }
    looks, at_end = style.line_looks(runs), []
    for panel, (title, key) in panels.items():
        axis, ends = axes[panel], []
        for name, metrics in runs.items():
            lines = [line for line in metrics if line["kind"] == "epoch" and key in line]
            values = {line["epoch"]: line[key] for line in lines if line[key] is not None}
            if values:
                axis.plot(list(values), list(values.values()), marker="o", ms=4, **looks[name])
                ends.append(f"{name} {[*values.values()][-1]:.3f}")
        if not ends:
            axis.text(0.5, 0.5, "not measured", ha="center", transform=axis.transAxes)
        at_end.append(f"{title}: {', '.join(ends) or 'not measured'}")
        axis.set_title(title)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axis.sharex(axes["recall"])
        axis.set_xlabel("epoch" if panel != "pa" else "")
        if panel != "recall":
            axis.set_ylim(0, None)
    axes["recall"].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes["pa"].tick_params(labelbottom=False)
    handles = [Line2D([], [], label=name, **look) for name, look in looks.items()]
    if dim:
        chance = axes["cosine"].axhline(1 / math.sqrt(dim), **style.CHANCE_LINE)
        chance.set_label(f"random directions, 1/√{dim}")
        handles.append(chance)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return finish(figure, f"Training over epochs; at the end {'; '.join(at_end)}.")


@use_style()
def recall_curves(
    recalls: Mapping[str, Mapping[int, float]],
    intervals: Mapping[str, Mapping[int, tuple[float, float]]] | None = None,
) -> Figure:
    """Recall@K over K, with intervals where given.

    Args:
        recalls: name → {K: recall in 0..1}, the same K in each.
        intervals: name → {K: (low, high)}.
    """
    ks = list(next(iter(recalls.values())))
    figure = new_figure(7.5, 5)
    axis = figure.subplots()
    markers, numbers = itertools.cycle(_MARKERS), []
    for index, (name, look) in enumerate(style.line_looks(recalls).items()):
        shift = 0.06 * (2 * index - len(recalls) + 1)  # intervals side by side
        numbers.append(f"{name}: Recall@{ks[0]} {recalls[name][ks[0]]:.1%}")
        look |= {"marker": next(markers), "ms": 8, "label": numbers[-1]}
        axis.plot(np.arange(len(ks)) + shift, [recalls[name][k] for k in ks], **look)
        for k, (low, high) in (intervals or {}).get(name, {}).items():
            axis.vlines(ks.index(k) + shift, low, high, color=look["color"], lw=2)
    axis.set_xticks(range(len(ks)), [str(k) for k in ks])
    axis.set(xlabel="K: nearest images looked at", ylabel="Recall@K")
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axis.grid(axis="y", **style.GRID)
    figure.legend(loc="outside upper center", ncols=2)
    return finish(figure, f"Recall@K over K up to {ks[-1]}; {'; '.join(numbers)}.")


@use_style()
def interval_plot(
    rows: Sequence[tuple], xlabel: str, *, reference: float | None = None, decimals: int = 3
) -> Figure:
    """Values with their 95% intervals, one line each.

    Args:
        rows: (label, value, low, high, group); the group gives the color.
        xlabel: name of the values.
        reference: a value to compare with, drawn as a line.
        decimals: digits of the numbers written beside the intervals.
    """
    figure = new_figure(9, 0.55 * len(rows) + 1.5)
    axis = figure.subplots()
    groups = list(dict.fromkeys(row[4] for row in rows))
    numbers = []
    for y, (label, value, low, high, group) in enumerate(rows):
        shade, marker = method_color(group), _MARKERS[groups.index(group) % len(_MARKERS)]
        axis.hlines(y, low, high, color=shade, lw=2.5)
        axis.plot(value, y, marker, color=shade, ms=8)
        text = f"{value:.{decimals}f}  [{low:.{decimals}f}, {high:.{decimals}f}]"
        place = axis.get_yaxis_transform()  # x in fractions of the axes
        axis.text(1.02, y, text, va="center", fontsize=11, transform=place)
        numbers.append(f"{label} {text}")
    if reference is not None:
        axis.axvline(reference, **style.CHANCE_LINE)
    axis.set_yticks(range(len(rows)), [row[0] for row in rows])
    axis.set(ylim=(len(rows) - 0.5, -0.5), xlabel=f"{xlabel} (dot, 95% interval)")
    axis.tick_params(axis="y", length=0)
    axis.xaxis.set_major_locator(MaxNLocator(6))
    axis.grid(axis="x", **style.GRID)
    return finish(figure, f"{xlabel} with 95% intervals: {'; '.join(numbers)}.")


@use_style()
def movement_plot(tables: Mapping[str, pd.DataFrame], *, over: str = "birds") -> Figure:
    """Distances that single changes in a picture move its embedding: marks left, nuisances right.

    Args:
        tables: name → a table of `sobook.course.aviary.microscope.summarize`, the same changes in
            each. The rows are sorted by the first.
        over: unit of the intervals.
    """
    first = next(iter(tables.values()))
    marks = first["kind"] != "nuisance"
    figure = new_figure(12, 0.42 * max(marks.sum(), (~marks).sum()) + 1.8)
    axes = figure.subplots(1, 2, sharex=True)
    alt = []
    for axis, title, chosen in zip(axes, ("marks", "nuisances"), (marks, ~marks), strict=True):
        order = first[chosen].sort_values("moved", ascending=False)["change"]
        for i, (name, table) in enumerate(tables.items()):
            rows, shade = table.set_index("change").loc[order], method_color(name)
            y = np.arange(len(rows)) + 0.24 * (i - (len(tables) - 1) / 2)
            axis.hlines(y, rows["low"], rows["high"], color=shade, lw=2)
            axis.plot(rows["moved"], y, _MARKERS[i % 5], color=shade, ms=6, label=name)
            numbers = (f"{change} {moved:.2f}" for change, moved in rows["moved"].items())
            alt.append(f"{title}, {name}: {', '.join(numbers)}".replace("_", " "))
        axis.set_yticks(range(len(order)), [change.replace("_", " ") for change in order])
        axis.set(title=title, ylim=(len(order) - 0.5, -0.5))
        axis.set_xlabel(f"distance moved (95% interval over {over})")
        axis.axvline(1, label="another picture of the species", **style.CHANCE_LINE)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="y", **style.GRID)
    axes[0].set_xlim(0, None)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    what = "How far an embedding moves when one thing in its picture changes (1: another picture)"
    return finish(figure, f"{what}. {'; '.join(alt)}.")


@use_style()
def paired_differences(
    values: Mapping[str, object],
    interval: tuple[float, float] | None = None,
    *,
    metric: str = "Recall@1",
) -> Figure:
    """Two methods over the same seeds: a dumbbell per seed and, on the right, its difference.

    Rows are seeds, those with the largest difference on top; both panels share them.

    Args:
        values: two names → (S,) one value per seed, in the same order of seeds.
        interval: (low, high) of the mean difference, drawn below the dots.
        metric: name of the values.
    """
    (first, a), (second, b) = ((name, as_array(v)) for name, v in values.items())
    if len(a) != len(b):
        raise SobookError(f"{first} has {len(a)} seeds and {second} has {len(b)}: pair them.")
    change = b - a
    order = np.argsort(-change, kind="stable")
    rows = np.arange(len(change))
    figure = new_figure(10, 0.34 * len(change) + 2.6)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.2, 1))
    left.hlines(rows, a[order], b[order], color=style.QUIET, lw=3, zorder=1)
    for marker, (name, v) in zip("os", ((first, a), (second, b)), strict=True):
        label = f"{name}, mean {v.mean():.3f}"
        look = {"color": method_color(name), "ms": 9, "mec": "white", "label": label}
        left.plot(v[order], rows, marker, **look)
    left.set(xlabel=metric, ylabel="seeds, by difference", yticks=[])
    left.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    right.axvline(0, **style.CHANCE_LINE)
    right.hlines(rows, 0, change[order], color=style.QUIET, lw=3, zorder=1)
    right.plot(change[order], rows, "D", color="#555555", ms=8, mec="white")
    below = len(change) + 0.2  # a separate row for the mean
    right.plot(change.mean(), below, "o", color=style.INK, ms=11)
    text = f"mean {change.mean():+.3f}"
    if interval is not None:
        right.hlines(below, *interval, color=style.INK, lw=3)
        text += f", 95% [{interval[0]:+.3f}, {interval[1]:+.3f}]"
    right.set(xlabel=f"{second} − {first}", ylim=(below + 0.7, -0.7))
    right.set_title(text, fontsize=12)
    for axis in (left, right):
        axis.tick_params(axis="y", length=0)
        axis.locator_params(axis="x", nbins=5)
    return finish(figure, f"{metric} of {first} and {second} over {len(a)} seeds: {text}.")
