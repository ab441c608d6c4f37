"""Curves and intervals: training over epochs, Recall@K, and comparisons with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from sobook.figures import style
from sobook.figures.style import Figure, as_array, finish, method_color, panels, use_style

_MARKERS = "osD^v"


@use_style()
def training_curves(runs: Mapping[str, Sequence[Mapping]], *, dim: int) -> Figure:
    """Loss parts, proxy correlation and held-out Recall@1 on one axis of epochs.

    Args:
        runs: name → the lines of a run's ``metrics.jsonl``.
        dim: dimensions of the proxies, for the chance level 1/√dim.
    """
    titles = {
        "proxy_anchor": "Proxy Anchor loss",
        "soft_orthogonality": "soft orthogonality",
        "rms_cosine": "RMS cosine of proxies",
        "recall_at_1": "Recall@1, held-out classes",
    }
    loss, so, cosine, recall = titles
    figure, looks, at_end = style.new_figure(12, 4.4), style.line_looks(runs), []
    axes = figure.subplot_mosaic([[loss, cosine, recall], [so, cosine, recall]])
    for key, title in titles.items():
        axis, ends = axes[key], []
        for name, metrics in runs.items():
            known = [e for e in metrics if e["kind"] == "epoch" and e.get(key) is not None]
            if known:
                epochs, values = [e["epoch"] for e in known], [e[key] for e in known]
                axis.plot(epochs, values, marker="o", ms=4, **looks[name])
                ends.append(f"{name} {values[-1]:.3f}")
        at_end.append(f"{title}: {', '.join(ends) or style.write_inside(axis, 'not measured')}")
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axis.sharex(axes[recall])
        if key != recall:
            axis.set_ylim(0, None)
    axes[recall].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[loss].tick_params(labelbottom=False)
    axes[loss].set_xlabel("")
    label = f"random directions, 1/√{dim}"
    chance = axes[cosine].axhline(1 / math.sqrt(dim), label=label, **style.CHANCE_LINE)
    handles = [Line2D([], [], label=name, **look) for name, look in looks.items()] + [chance]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return finish(figure, f"Training over epochs; at the end {'; '.join(at_end)}.")


@use_style()
def recall_curves(
    recalls: Mapping[str, Mapping[int, float]],
    intervals: Mapping[str, Mapping[int, tuple[float, float]]],
) -> Figure:
    """Recall@K over K, with intervals.

    Args:
        recalls: name → {K: recall in 0..1}, the same K in each.
        intervals: name → {K: (low, high)}.
    """
    ks = list(next(iter(recalls.values())))
    figure, (axis,) = panels(7.5, 5)
    numbers = []
    for index, (name, look) in enumerate(style.line_looks(recalls).items()):
        shift = 0.06 * (2 * index - len(recalls) + 1)  # intervals side by side
        numbers.append(f"{name}: Recall@{ks[0]} {recalls[name][ks[0]]:.1%}")
        look |= {"marker": _MARKERS[index % 5], "ms": 8, "label": numbers[-1]}
        axis.plot(np.arange(len(ks)) + shift, [recalls[name][k] for k in ks], **look)
        for k, (low, high) in intervals[name].items():
            axis.vlines(ks.index(k) + shift, low, high, color=look["color"], lw=2)
    axis.set_xticks(range(len(ks)), [str(k) for k in ks])
    axis.set(xlabel="K: nearest images looked at", ylabel="Recall@K")
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axis.grid(axis="y", **style.GRID)
    figure.legend(loc="outside upper center", ncols=2)
    return finish(figure, f"Recall@K over K up to {ks[-1]}", numbers)


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
    figure, (axis,) = panels(9, 0.55 * len(rows) + 1.5)
    groups, numbers = list(dict.fromkeys(row[4] for row in rows)), []
    for y, (label, value, low, high, group) in enumerate(rows):
        shade, marker = method_color(group), _MARKERS[groups.index(group) % 5]
        axis.hlines(y, low, high, color=shade, lw=2.5)
        axis.plot(value, y, marker, color=shade, ms=8)
        text = f"{value:.{decimals}f}  [{low:.{decimals}f}, {high:.{decimals}f}]"
        axis.text(1.02, y, text, va="center", fontsize=11, transform=axis.get_yaxis_transform())
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
def movement_plot(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Distances that single changes in a picture move its embedding: marks left, nuisances right.

    Args:
        tables: name → a table of `sobook.course.aviary.microscope.summarize`, the same changes in
            each. The rows are sorted by the first.
    """
    first = next(iter(tables.values()))
    marks, alt = first["kind"] != "nuisance", []
    height = 0.42 * max(marks.sum(), (~marks).sum()) + 1.8
    figure, axes = panels(12, height, 1, 2, sharex=True)
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
        axis.set_xlabel("distance moved (95% interval over birds)")
        axis.axvline(1, label="another picture of the species", **style.CHANCE_LINE)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="y", **style.GRID)
    axes[0].set_xlim(0, None)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    what = "How far an embedding moves when one thing in its picture changes (1: another picture)"
    return finish(figure, f"{what}. {'; '.join(alt)}.")


@use_style()
def paired_differences(values: Mapping[str, object], interval: tuple[float, float]) -> Figure:
    """Recall@1 of two methods over the same seeds: a dumbbell per seed, and its difference.

    Rows are seeds, those with the largest difference on top; both panels share them.

    Args:
        values: two names → (S,) one value per seed, in the same order of seeds.
        interval: (low, high) of the mean difference, drawn below the dots.
    """
    (first, a), (second, b) = ((name, as_array(v)) for name, v in values.items())
    order, rows = np.argsort(a - b, kind="stable"), np.arange(len(a))
    a, b = a[order], b[order]
    change, height = b - a, 0.34 * len(a) + 2.6
    figure, (left, right) = panels(10, height, 1, 2, sharey=True, width_ratios=(1.2, 1))
    left.hlines(rows, a, b, color=style.QUIET, lw=3, zorder=1)
    for marker, name, v in (("o", first, a), ("s", second, b)):
        look = {"color": method_color(name), "label": f"{name}, mean {v.mean():.3f}"}
        left.plot(v, rows, marker, ms=9, mec="white", **look)
    left.set(xlabel="Recall@1", ylabel="seeds, by difference", yticks=[])
    left.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    right.axvline(0, **style.CHANCE_LINE)
    right.hlines(rows, 0, change, color=style.QUIET, lw=3, zorder=1)
    right.plot(change, rows, "D", color="#555555", ms=8, mec="white")
    below = len(change) + 0.2  # a separate row for the mean
    right.plot(change.mean(), below, "o", color=style.INK, ms=11)
    right.hlines(below, *interval, color=style.INK, lw=3)
    text = f"mean {change.mean():+.3f}, 95% [{interval[0]:+.3f}, {interval[1]:+.3f}]"
    right.set(xlabel=f"{second} − {first}", ylim=(below + 0.7, -0.7))
    right.set_title(text, fontsize=12)
    for axis in (left, right):
        axis.tick_params(axis="y", length=0)
        axis.locator_params(axis="x", nbins=5)
    return finish(figure, f"Recall@1 of {first} and {second} over {len(a)} seeds: {text}.")
