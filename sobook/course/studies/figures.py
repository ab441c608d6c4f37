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
from sobook.figures import style
from sobook.figures.style import COLORS, Figure, finish, use_style
from sobook.statistics import t_interval

_FROZEN: dict[str, Any] = {"label": "frozen encoder", "color": COLORS["frozen"]}
_FROZEN |= {"ls": (0, (4, 2)), "lw": 1.8}
_ABOVE: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 2, "fontsize": 11}
_MIN_SEEDS = 3  # for an interval in a figure: over two it is wider than the figure
_MARKERS = "osD^vPX*"
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
    """The figure of a study: curves where it asks for them by `x` and `panels`, else rows.

    Args:
        study: what was run.
        table: one row per run.
        summary: its `sobook.course.studies.report.summary`.
        family: its `sobook.course.studies.report.comparisons`.
    """
    panels, curves, baseline = {}, study.x and study.panels, _setting(study.baseline)
    by_setting = table.groupby(study.factors[:-1] or (lambda row: 0), dropna=False, sort=False)
    for metric in study.curves_of or (study.metric,):
        runs = by_setting[metric]
        ends = pd.DataFrame([t_interval(values) for _, values in runs], columns=["low", "high"])
        ends[summary["seeds"] < _MIN_SEEDS] = np.nan
        panels[in_words(metric)] = ends.assign(value=runs.mean().to_numpy(), verdict="")
    if "difference" in summary:
        name = f"difference from {baseline}"
        if curves:
            name = f"{in_words(study.metric)},\ndifference from\n{baseline}"
        panels[name] = _differences(summary, "difference_")
    for first, second in study.family.columns:
        pairs = family[family["metric"] == f"{second} − {first}"].set_index("row")
        panels[f"{in_words(second)}\n− {in_words(first)}"] = _differences(pairs, "")
    figure = (_curves if curves else _settings)(study, summary, panels)
    few, many = summary["seeds"].min(), summary["seeds"].max()
    seeds = f"{few:g} seeds" if few == many else f"{few:g} to {many:g} seeds"
    title = textwrap.fill(f"{study.title} ({seeds})", int(figure.get_figwidth() / 0.105))
    figure.suptitle(title, x=0.01, ha="left", fontsize=15)
    return figure


def _differences(rows: pd.DataFrame, prefix: str) -> pd.DataFrame:
    columns = {"difference": "value", f"{prefix}low": "low", f"{prefix}high": "high"}
    return rows[[*columns, "verdict"]].rename(columns=columns).dropna(subset="value")


def _settings(study: Study, summary: pd.DataFrame, panels: dict[str, pd.DataFrame]) -> Figure:
    """One row per setting: its mean beside the frozen encoder, its difference from the baseline."""
    labels, alt = labels_of(summary, study.factors[:-1]), []
    width = 3.2 * len(panels) + max(3, 0.11 * max(map(len, labels)))
    figure, axes = style.panels(width, 0.42 * len(summary) + 2.2, 1, len(panels), sharey=True)
    for axis, (name, rows) in zip(axes, panels.items(), strict=True):
        axis.hlines(rows.index, rows["low"], rows["high"], color=COLORS["PA+SO"], lw=2.2)
        _draw_dots(axis, rows["value"], rows.index, rows["verdict"], mew=1.8)
        numbers = [
            f"{labels[y]} {value:+.3f} ({verdict})" if verdict else f"{labels[y]} {value:.3f}"
            for y, value, verdict in rows[["value", "verdict"]].itertuples()
        ]
        alt.append(f"{name}: {', '.join(numbers)}".replace("\n", " "))
        axis.set_xlabel(name)
        axis.grid(axis="x", **style.GRID)
        axis.tick_params(axis="y", length=0)
        axis.locator_params(axis="x", nbins=5)
    for axis in axes[1:]:
        axis.axvline(0, **style.CHANCE_LINE)
    if "frozen" in summary:
        edges = np.arange(len(summary) + 1) - 0.5
        axes[0].stairs(summary["frozen"], edges, baseline=None, orientation="horizontal", **_FROZEN)
        axes[0].legend(handles=[Line2D([], [], **_FROZEN)], **_ABOVE)
    if "difference" in summary:
        axes[1].legend(handles=_legend_of_dots(), **_ABOVE)
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].set_ylim(len(labels) - 0.5, -0.5)
    return finish(figure, f"{study.title}, with 95% intervals. {'; '.join(alt)}.")


def _curves(study: Study, summary: pd.DataFrame, panels: dict[str, pd.DataFrame]) -> Figure:
    """Curves over the factor `study.x`: a column for each value of `study.panels`."""
    x, columns, alt = study.x, summary[study.panels], []
    others = [name for name in study.factors[:-1] if name not in (x, study.panels)]
    if x in LABELS:  # a case's other factors only say what its name stands for
        others = [name for name in others if name in study.grid]
    names = pd.Series(labels_of(summary, others), summary.index)
    looks = {
        name: {"color": color, "marker": marker}
        for name, color, marker in zip(names.unique(), style.PALETTE, _MARKERS, strict=False)
    }
    ticks = list(summary[x].unique())
    places = summary[x].map(ticks.index)
    figure = style.new_figure(4.6 * columns.nunique() + 2.6, 3.0 * len(panels) + 0.8)
    axes = figure.subplots(len(panels), columns.nunique(), sharex=True, sharey="row", squeeze=False)
    for column, panel in zip(axes.T, columns.unique(), strict=True):
        inside, title = summary[columns == panel], _setting({study.panels: panel})
        column[0].set_title(title)
        column[-1].set_xlabel("" if x in LABELS else in_words(x))
        column[-1].set_xticks(range(len(ticks)), [_setting({LABELS[0]: tick}) for tick in ticks])
        for axis, (label, numbers) in zip(column, panels.items(), strict=True):
            axis.set_ylabel(label if panel == columns[0] else "")
            if label == in_words(study.metric):
                axis.axhline(inside.get("frozen", pd.Series(dtype=float)).mean(), **_FROZEN)
            else:
                axis.axhline(0, **style.CHANCE_LINE)
            if numbers.index.intersection(inside.index).empty:
                style.write_inside(axis, "not in the family")
            for index, (name, look) in enumerate(looks.items()):
                rows = numbers.filter(inside.index[names[inside.index] == name], axis=0)
                at = places[rows.index] + 0.05 * (index - (len(looks) - 1) / 2)  # side by side
                axis.plot(at, rows["value"], color=look["color"], lw=1.8)
                axis.vlines(at, rows["low"], rows["high"], color=look["color"], lw=1.5)
                _draw_dots(axis, at, rows["value"], rows["verdict"], **look)
        for name in looks:
            means = inside.loc[names[inside.index] == name, [x, "mean"]]
            ends = [f"{_setting({x: at})}: {mean:.3f}" for _, at, mean in means.itertuples()]
            alt.append(f"{title}, {name}: {', '.join(ends)}")
    handles = [Line2D([], [], label=name, **look) for name, look in looks.items()]
    handles += [Line2D([], [], **_FROZEN)]
    handles += _legend_of_dots() if "difference" in summary else []
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return finish(figure, f"{study.title}. {in_words(study.metric)}: {'; '.join(alt)}.")


def _draw_dots(axis: Axes, x, y, verdicts: pd.Series, color=COLORS["PA+SO"], marker="o", mew=1.0):
    """A dot for each number, hollow where no difference is shown."""
    hollow = (verdicts == "no difference shown").to_numpy()
    for rows, face in ((~hollow, color), (hollow, "white")):
        axis.plot(x[rows], y[rows], marker, mfc=face, mec=color, mew=mew, ms=8)


def _legend_of_dots() -> list[Line2D]:
    look = {"color": "#444444", "marker": "o", "ls": "", "ms": 8}
    return [
        Line2D([], [], label="shown, corrected", **look),
        Line2D([], [], label="not shown", mfc="white", **look),
    ]
