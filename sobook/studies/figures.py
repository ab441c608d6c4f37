"""Figures of studies: differences with intervals, the common mode of proxies, the regimes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from sobook.figures.style import COLORS, Figure, finish, new_figure, use_style
from sobook.statistics import t_interval
from sobook.studies.study import LABELS, Study


@use_style()
def differences(study: Study, summary: pd.DataFrame) -> Figure:
    """One row per setting of a study: its mean, or its difference from the baseline.

    Args:
        study: what was run.
        summary: its `sobook.studies.report.summary`.
    """
    paired = "difference" in summary
    rows = summary.dropna(subset=["difference"]) if paired else summary
    middle, low, high = (
        ("difference", "difference_low", "difference_high") if paired else ("mean", "low", "high")
    )
    labels = labels_of(rows, study.factors[:-1])
    figure = new_figure(9, 1.3 + 0.34 * len(rows))
    axis = figure.add_subplot()
    at = np.arange(len(rows))[::-1]
    if paired:
        axis.axvline(0, color=COLORS["chance"], linestyle=":", zorder=0)
    ends = np.array([rows[middle] - rows[low], rows[high] - rows[middle]])
    axis.errorbar(rows[middle], at, xerr=np.nan_to_num(ends), fmt="o", color=COLORS["PA+SO"])
    axis.set_yticks(at, labels)
    axis.set_ylim(-0.6, len(rows) - 0.4)
    metric = study.metric.replace("recall_at_", "Recall@")
    axis.set_xlabel(f"{metric}, difference from {_setting(study.baseline)}" if paired else metric)
    fewest, most = int(rows["seeds"].min()), int(rows["seeds"].max())
    seeds = f"{most} seeds" if fewest == most else f"{fewest} to {most} seeds"
    axis.set_title(f"{study.title}\n95 % intervals over {seeds}", loc="left")
    return finish(
        figure,
        f"{study.title}: {axis.get_xlabel()}, one row per setting, with 95 % intervals; "
        + "; ".join(f"{n} {v:+.3f}" for n, v in zip(labels, rows[middle], strict=True)),
    )


@use_style()
def common_mode(tables: dict[str, pd.DataFrame]) -> Figure:
    """The common mode of the proxies: what changes it, and what retrieval makes of it.

    Args:
        tables: name of a data set → its table of the study common_mode_*, one row per run.
    """
    figure = new_figure(12, 1.4 + 3.6 * len(tables))
    axes = figure.subplots(len(tables), 3, squeeze=False, sharey="row")
    panels = ("RMS proxy cosine", "cosine of mean proxy\nand mean embedding", "Recall@1")
    for line, (name, table) in zip(axes, tables.items(), strict=True):
        arms = table.groupby(["so_weight", "center", "margin"], sort=False)
        labels = [arm(*key) for key, _ in arms]
        at = np.arange(len(labels))[::-1]
        marks = [
            (line[0], "rms_cosine", COLORS["PA"], "o"),
            (line[0], "rms_cosine_centred", COLORS["PA+SO"], "D"),
            (line[1], "cosine_of_mean_proxy_and_mean_embedding", COLORS["chance"], "o"),
            (line[2], "recall_at_1", COLORS["PA"], "o"),
            (line[2], "recall_without_common", COLORS["PA+SO"], "D"),
        ]
        for axis, column, shade, mark in marks:
            mean, half = _means(arms, column)
            shift = -0.12 if mark == "D" else 0.12
            axis.errorbar(mean, at + shift, xerr=half, fmt=mark, color=shade, markersize=7)
        line[0].set_yticks(at, labels)
        line[0].set_title(name, loc="left")
        line[1].set_xlim(-1.05, 1.05)
        line[1].axvline(0, color=COLORS["chance"], linestyle=":", zorder=0)
        for axis, text in zip(line, panels, strict=True):
            axis.set_xlabel(text)
            axis.grid(axis="y", alpha=0.25)
    handles = [
        Line2D([], [], marker="o", linestyle="", color=COLORS["PA"], label="as trained"),
        Line2D([], [], marker="D", linestyle="", color=COLORS["PA+SO"], label="mean proxy removed"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return finish(
        figure,
        "Three panels per data set, one row per way of training: RMS cosine of the proxies with "
        "and without their mean, cosine of the mean proxy and the mean embedding, Recall@1 with "
        "and without the direction of the mean proxy.",
    )


@use_style()
def regimes(table: pd.DataFrame, dim: int) -> Figure:
    """RMS proxy cosine against λ, for few, as many and many more classes than dimensions.

    Args:
        table: of the study regimes_heads, one row per run.
        dim: D, the embedding dimension of all its runs.
    """
    settings = list(dict.fromkeys(table["setting"]))
    figure = new_figure(11, 4.4)
    axes = figure.subplots(1, len(settings), sharey=True, squeeze=False)[0]
    for axis, setting in zip(axes, settings, strict=True):
        part = table[table["setting"] == setting]
        cells = part.groupby("so_weight")
        at = np.arange(len(cells))
        mean, half = _means(cells, "rms_cosine")
        axis.errorbar(at, mean, yerr=half, fmt="o-", color=COLORS["PA+SO"])
        floor, classes = part["rms_floor"].iloc[0], int(part["train_classes"].iloc[0])
        axis.axhline(floor, color=COLORS["bound"], linestyle="--")
        axis.axhline(1 / np.sqrt(dim), color=COLORS["chance"], linestyle=":")
        axis.set_xticks(at, [f"{w:g}" for w in cells.groups])
        axis.set(title=f"C = {classes}, D = {dim}", xlabel="λ")
    axes[0].set_ylim(bottom=0)  # only now: set for one panel, it would hold for all
    axes[0].set_ylabel("RMS proxy cosine")
    handles = [
        Line2D([], [], color=COLORS["PA+SO"], marker="o", label="trained"),
        Line2D([], [], color=COLORS["bound"], linestyle="--", label="floor"),
        Line2D([], [], color=COLORS["chance"], linestyle=":", label="random directions"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return finish(
        figure,
        "RMS proxy cosine against the weight of soft orthogonality in three panels, fewer classes "
        "than dimensions, as many, and five times as many, with the lowest possible value.",
    )


def labels_of(rows: pd.DataFrame, factors: Sequence[str]) -> list[str]:
    """A label for each setting, from the factors in which the settings differ.

    Where cases have names, the other factors only say what a name stands for.
    """
    varied = [name for name in factors if rows[name].nunique(dropna=False) > 1] or list(factors)
    if any(name in LABELS for name in varied):
        varied = [name for name in varied if name in (*LABELS, "so_weight")]
    return [
        _setting({name: row[name] for name in varied if not pd.isna(row[name])})
        for _, row in rows.iterrows()
    ]


def _setting(values: dict[str, Any]) -> str:
    """The values of factors in words, e.g. "PA, λ = 10"."""
    parts = []
    for name, value in values.items():
        shown = f"{value:g}" if isinstance(value, int | float) else str(value)
        symbol = "λ" if name == "so_weight" else name.rpartition(".")[2]
        parts.append(shown if name in LABELS else f"{symbol} = {shown}")
    return ", ".join(parts)


def arm(so_weight: float, center: bool, margin: float) -> str:
    """The name of a way of training in the study of the common mode.

    >>> arm(10, False, 0.1), arm(0, True, 0.1)
    ('PA+SO, λ = 10', 'PA, centered proxies')
    """
    if center:
        return "PA, centered proxies"
    method = "PA" if so_weight == 0 else f"PA+SO, λ = {so_weight:g}"
    return method if margin == 0.1 else f"{method}, δ = {margin:g}"


def _means(groups: Any, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each group, and half the width of its 95 % t interval (0 for a single run)."""
    widths = [np.ptp(t_interval(values)) for _, values in groups[column]]
    return groups[column].mean().to_numpy(), np.nan_to_num(widths) / 2
