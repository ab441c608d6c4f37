"""The figure of a study: its settings one below the other, or curves over one of its factors.

Every figure shows the frozen encoder; a filled dot is a difference that the study's family shows
after correction, a hollow one is not shown.
"""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sobook.course.studies.study import LABELS, Study
from sobook.figures.style import (
    CHANCE_LINE,
    COLORS,
    GRID,
    PALETTE,
    Figure,
    finish,
    new_figure,
    use_style,
)
from sobook.statistics import t_interval

_FROZEN: dict[str, Any] = {"color": COLORS["frozen"], "ls": (0, (4, 2)), "lw": 1.8}
_ABOVE: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 2, "fontsize": 11}
_MIN_SEEDS = 3  # for an interval in a figure: over two it is wider than the figure
_MARKERS = "osD^vPX*"
_NUMBERS = ["value", "low", "high", "verdict"]
_NOT_SHOWN = "no difference shown"
_WORDS = {
    "so_weight": "λ",
    "scale": "α",
    "margin": "δ",
    "threshold": "b",
    "dim": "D",
    "images_per_class": "images per class in a batch",
    "mean_cosine": "mean cosine of proxies",
    "rms_cosine": "RMS cosine of proxies",
    "embedding_mean_length": "length of the mean embedding",
    "threshold_at_end": "b at the end",
    "recall_without_common": "Recall@1 without the common direction",
}


def in_words(name: str) -> str:
    """The name of a factor or a metric for readers.

    >>> in_words("so_weight"), in_words("recall_at_1"), in_words("options.species")
    ('λ', 'Recall@1', 'species')
    """
    name = name.rpartition(".")[2]
    return _WORDS.get(name) or name.replace("recall_at_", "Recall@").replace("_", " ")


def labels_of(rows: pd.DataFrame, factors: Sequence[str]) -> list[str]:
    """A label for each setting, from the factors in which the settings differ.

    Where cases have names, the other factors only say what a name stands for.
    """
    varied = [name for name in factors if rows[name].nunique(dropna=False) > 1] or list(factors)
    if any(name in LABELS for name in varied):
        varied = [name for name in varied if name in (*LABELS, "so_weight", "epochs")]
    return [_setting(row.dropna().to_dict()) for _, row in rows[varied].iterrows()]


def _setting(values: dict[str, Any]) -> str:
    """The values of factors in words, e.g. "PA, λ = 10"."""
    parts: list[str] = []
    for name, value in values.items():
        text = f"{value:g}" if isinstance(value, int | float) else str(value)
        part = text if name in LABELS else f"{in_words(name)} = {text}"
        if name == "images_per_class":
            part = f"{text} images per class in a batch" if value else "random batches"
        if not any(part in before for before in parts):  # the name of a case may say it already
            parts.append(part)
    return ", ".join(parts)


@use_style()
def draw(study: Study, table: pd.DataFrame, summary: pd.DataFrame, family: pd.DataFrame) -> Figure:
    """The figure of a study.

    Args:
        study: what was run; its `x`, `panels` and `curves_of` ask for curves.
        table: one row per run.
        summary: its `sobook.course.studies.report.summary`.
        family: its `sobook.course.studies.report.comparisons`.
    """
    figure = _curves(study, table, summary) if study.x else _settings(study, summary, family)
    few, many = summary["seeds"].min(), summary["seeds"].max()
    seeds = f"{few:g} seeds" if few == many else f"{few:g} to {many:g} seeds"
    title = textwrap.fill(f"{study.title} ({seeds})", int(figure.get_figwidth() / 0.105))
    figure.suptitle(title, x=0.01, ha="left", fontsize=15)
    return figure


def _settings(study: Study, summary: pd.DataFrame, family: pd.DataFrame) -> Figure:
    """One row per setting: its mean beside the frozen encoder, its difference from the baseline."""
    labels, metric = labels_of(summary, study.factors[:-1]), in_words(study.metric)
    means = summary[["mean", "low", "high"]].assign(verdict="").set_axis(_NUMBERS, axis=1)
    means.loc[summary["seeds"] < _MIN_SEEDS, ["low", "high"]] = np.nan
    panels = {metric: means}
    if "difference" in summary:
        panels[f"difference from {_setting(study.baseline)}"] = _differences(summary)
    for first, second in study.family.columns:
        pairs = family[family["metric"] == f"{second} − {first}"].set_index("row")
        panels[f"{in_words(second)}\n− {in_words(first)}"] = _differences(pairs, "")
    width = 3.2 * len(panels) + max(3, 0.11 * max(map(len, labels)))
    figure = new_figure(width, 0.42 * len(summary) + 2.2)
    axes, alt = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], []
    for axis, (name, rows) in zip(axes, panels.items(), strict=True):
        axis.hlines(rows.index, rows["low"], rows["high"], color=COLORS["PA+SO"], lw=2.2)
        _draw_dots(axis, rows["value"], rows.index, rows["verdict"], mew=1.8)
        numbers = [
            f"{labels[y]} {value:+.3f} ({verdict})" if verdict else f"{labels[y]} {value:.3f}"
            for y, value, verdict in rows[["value", "verdict"]].itertuples()
        ]
        alt.append(f"{name}: {', '.join(numbers)}".replace("\n", " "))
        axis.set_xlabel(name)
        axis.grid(axis="x", **GRID)
        axis.tick_params(axis="y", length=0)
        axis.locator_params(axis="x", nbins=5)
    for axis in axes[1:]:
        axis.axvline(0, **CHANCE_LINE)
    if "frozen" in summary:
        steps = np.repeat(summary["frozen"].to_numpy(float), 2)
        places = np.repeat(np.arange(len(summary)), 2) + np.tile([-0.5, 0.5], len(summary))
        axes[0].plot(steps, places, **_FROZEN)
        axes[0].legend(handles=[Line2D([], [], label="frozen encoder", **_FROZEN)], **_ABOVE)
    if "difference" in summary:
        axes[1].legend(handles=_legend_of_dots(), **_ABOVE)
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].set_ylim(len(labels) - 0.5, -0.5)
    return finish(figure, f"{study.title}, with 95% intervals. {'; '.join(alt)}.")


def _curves(study: Study, table: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """Metrics over the factor `study.x`: a row of panels each, and one of the differences."""
    x, factors, paired = study.x, study.factors[:-1], "difference" in summary
    metrics = study.curves_of or (study.metric,)
    rows = {
        in_words(metric): _means(table.groupby(factors, dropna=False, sort=False)[metric])
        for metric in metrics
    }
    if paired:
        reference = f"{in_words(study.metric)},\ndifference from\n{_setting(study.baseline)}"
        rows[reference] = _differences(summary)
    columns = summary[study.panels] if study.panels else pd.Series("", summary.index)
    others = [name for name in factors if name not in (x, study.panels)]
    if x in LABELS:  # a case's other factors only say what its name stands for
        others = [name for name in others if name in study.grid]
    names = pd.Series(labels_of(summary, others) if others else "", summary.index)
    looks = {
        name: {"color": PALETTE[i % len(PALETTE)], "marker": _MARKERS[i % len(_MARKERS)]}
        for i, name in enumerate(names.unique())
    }
    ticks = summary[x].unique() if x in LABELS else np.sort(summary[x].unique())
    places = summary[x].map({tick: place for place, tick in enumerate(ticks)})
    figure = new_figure(4.6 * columns.nunique() + 2.6, 3.0 * len(rows) + 0.8)
    axes = figure.subplots(len(rows), columns.nunique(), sharex=True, sharey="row", squeeze=False)
    alt = []
    for column, panel in zip(axes.T, columns.unique(), strict=True):
        for index, (name, look) in enumerate(looks.items()):
            line = places[(columns == panel) & (names == name)].sort_values()
            at = line + 0.05 * (index - (len(looks) - 1) / 2)  # intervals side by side
            for axis, numbers in zip(column, rows.values(), strict=True):
                numbers, color = numbers.reindex(at.index), look["color"]
                axis.plot(at, numbers["value"], color=color, lw=1.8)
                axis.vlines(at, numbers["low"], numbers["high"], color=color, lw=1.5)
                _draw_dots(axis, at, numbers["value"], numbers["verdict"], **look)
            means = summary.loc[line.index]
            ends = [f"{_setting({x: row[x]})}: {row['mean']:.3f}" for _, row in means.iterrows()]
            where = [_setting({study.panels: panel})] if study.panels else []
            alt.append(f"{', '.join([*where, *filter(None, [name])])}: {', '.join(ends)}")
        inside = summary[columns == panel]
        if paired and inside["difference"].isna().all():
            look = {"ha": "center", "va": "center", "color": "#666666"}
            column[-1].text(0.5, 0.6, "not in the family", transform=column[-1].transAxes, **look)
        for axis, metric in zip(column, [*metrics, "difference"], strict=False):
            if metric == study.metric and "frozen" in summary:
                axis.axhline(inside["frozen"].mean(), **_FROZEN)
            if metric in ("mean_cosine", "embedding_mean_length", "difference"):
                axis.axhline(0, **CHANCE_LINE)
        if study.panels:
            column[0].set_title(_setting({study.panels: panel}))
        column[-1].set_xlabel("" if x in LABELS else in_words(x))
        column[-1].set_xticks(range(len(ticks)), [_setting({LABELS[0]: tick}) for tick in ticks])
    for axis, name in zip(axes[:, 0], rows, strict=True):
        axis.set_ylabel(name)
    handles = [Line2D([], [], label=name, **look) for name, look in looks.items() if name]
    handles += [Line2D([], [], label="frozen encoder", **_FROZEN)]
    handles += _legend_of_dots() if paired else []
    longest = max(len(str(handle.get_label())) for handle in handles)
    fitting = int(figure.get_figwidth() / (0.1 * longest + 0.8))
    figure.legend(handles=handles, loc="outside lower center", ncols=max(1, min(5, fitting)))
    return finish(figure, f"{study.title}. {in_words(study.metric)}: {'; '.join(alt)}.")


def _means(groups: Any) -> pd.DataFrame:
    """What a panel shows of a metric, grouped by setting: means over seeds, t intervals."""
    ends = [t_interval(values) for _, values in groups]
    low, high = zip(*ends, strict=True)
    return pd.DataFrame(
        {"value": groups.mean().to_numpy(), "low": low, "high": high, "verdict": ""}
    )


def _differences(rows: pd.DataFrame, prefix: str = "difference_") -> pd.DataFrame:
    """What a panel shows of paired differences."""
    columns = rows[["difference", f"{prefix}low", f"{prefix}high", "verdict"]]
    return columns.set_axis(_NUMBERS, axis=1).dropna(subset="value")


def _draw_dots(axis: Axes, x, y, verdicts: pd.Series, color=COLORS["PA+SO"], marker="o", mew=1.0):
    """A dot for each number, hollow where no difference is shown."""
    hollow = (verdicts == _NOT_SHOWN).to_numpy()
    for rows, face in ((~hollow, color), (hollow, "white")):
        axis.plot(x[rows], y[rows], marker, mfc=face, mec=color, mew=mew, ms=8)


def _legend_of_dots() -> list[Line2D]:
    look = {"color": "#444444", "marker": "o", "ls": "", "ms": 8}
    return [
        Line2D([], [], label="shown, corrected", **look),
        Line2D([], [], label="not shown", mfc="white", **look),
    ]
