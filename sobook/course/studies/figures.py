"""The figure of a study: its settings one below the other, or curves over one of its factors.

Every figure shows the frozen encoder; a filled dot is a difference that the study's family shows
after correction, a hollow one is not shown.
"""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from sobook.course.studies.study import LABELS, Study
from sobook.figures.style import (
    CHANCE_LINE,
    COLORS,
    PALETTE,
    Figure,
    finish,
    new_figure,
    use_style,
)
from sobook.statistics import t_interval

_FROZEN: dict[str, Any] = {"color": COLORS["frozen"], "ls": (0, (4, 2)), "lw": 1.8}
_FEWEST = 3  # seeds for an interval in a figure: over two it is wider than the figure
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
    """A factor or a metric as a figure calls it.

    >>> in_words("so_weight"), in_words("recall_at_1"), in_words("options.species")
    ('λ', 'Recall@1', 'species')
    """
    name = name.rpartition(".")[2]
    return _WORDS.get(name) or name.replace("recall_at_", "Recall@").replace("_", " ")


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
    title = textwrap.fill(f"{study.title} ({_seeds(summary)})", int(figure.get_figwidth() / 0.105))
    figure.suptitle(title, x=0.01, ha="left", fontsize=15)
    return figure


def _settings(study: Study, summary: pd.DataFrame, family: pd.DataFrame) -> Figure:
    """One row per setting: its mean beside the frozen encoder, its difference from the baseline."""
    labels = labels_of(summary, study.factors[:-1])
    paired = "difference" in summary
    beside = [f"{second} − {first}" for first, second in study.family.columns]
    panels = 1 + paired + len(beside)
    width = 3.2 * panels + max(3, 0.11 * max(map(len, labels)))
    figure = new_figure(width, 0.42 * len(summary) + 2.2)
    axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    metric, told = in_words(study.metric), []
    for y, (label, (_, row)) in enumerate(zip(labels, summary.iterrows(), strict=True)):
        ends = (row["low"], row["high"]) if row["seeds"] >= _FEWEST else (np.nan, np.nan)
        _interval(axes[0], y, row["mean"], *ends, COLORS["PA+SO"])
        told.append(f"{label} {row['mean']:.3f}")
        if paired and pd.notna(row["difference"]):
            ends, shown = (row["difference_low"], row["difference_high"]), _is_shown(row)
            _interval(axes[1], y, row["difference"], *ends, COLORS["PA+SO"], filled=shown)
            told[-1] += f" ({row['difference']:+.3f}, {row['verdict']})"
    if "frozen" in summary:
        steps = np.repeat(summary["frozen"].to_numpy(float), 2)
        places = np.repeat(np.arange(len(summary)), 2) + np.tile([-0.5, 0.5], len(summary))
        axes[0].plot(steps, places, **_FROZEN)
        axes[0].legend(handles=[Line2D([], [], label="frozen encoder", **_FROZEN)], **_ABOVE)
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].set(ylim=(len(labels) - 0.5, -0.5), xlabel=metric)
    if paired:
        axes[1].axvline(0, **CHANCE_LINE)
        axes[1].set_xlabel(f"difference from {_setting(study.baseline)}")
        axes[1].legend(handles=_shown_handles(), **_ABOVE)
    for axis, name in zip(axes[1 + paired :], beside, strict=True):
        axis.axvline(0, **CHANCE_LINE)
        axis.set_xlabel("\n− ".join(map(in_words, name.split(" − "))))
        for row in family[family["metric"] == name].itertuples():
            ends, shown = (row.low, row.high), row.verdict != "no difference shown"
            _interval(axis, row.row, row.difference, *ends, COLORS["PA+SO"], filled=shown)
            told.append(f"{name} at {labels[row.row]} {row.difference:+.3f} ({row.verdict})")
    for axis in axes:
        axis.grid(axis="x", color="#E4E4E4", lw=0.8)
        axis.tick_params(axis="y", length=0)
        axis.locator_params(axis="x", nbins=5)
    return finish(figure, f"{study.title}, {metric} with 95% intervals: {'; '.join(told)}.")


def _curves(study: Study, table: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """Metrics over the factor `study.x`: a row of panels each, and one of the differences."""
    x, metrics = study.x, list(study.curves_of or (study.metric,))
    paired = "difference" in summary
    columns = summary[study.panels].drop_duplicates().tolist() if study.panels else [None]
    others = [name for name in study.factors[:-1] if name not in (x, study.panels)]
    if x in LABELS:  # a case's other factors only say what its name stands for
        others = [name for name in others if name in study.grid]
    rows = len(metrics) + paired
    figure = new_figure(4.6 * len(columns) + 2.6, 3.0 * rows + 0.8)
    axes = figure.subplots(rows, len(columns), sharex=True, sharey="row", squeeze=False)
    names = labels_of(summary, others) if others else [""] * len(summary)
    looks = {
        name: {"color": PALETTE[i % len(PALETTE)], "marker": _MARKERS[i % len(_MARKERS)]}
        for i, name in enumerate(dict.fromkeys(names))
    }
    values = summary[x].drop_duplicates()
    values = values.sort_values() if pd.api.types.is_numeric_dtype(values) else values
    places = {value: place for place, value in enumerate(values)}
    told = []
    for column, panel in enumerate(columns):
        here = (summary[study.panels] == panel) if study.panels else summary["mean"].notna()
        for index, (name, look) in enumerate(looks.items()):
            lines = summary[here & (np.array(names) == name)]
            lines = lines.sort_values(x, key=lambda column: column.map(places))
            shift = 0.05 * (index - (len(looks) - 1) / 2)  # intervals side by side
            at = lines[x].map(places).to_numpy() + shift
            for row, metric in enumerate(metrics):
                means, low, high = _means(study, table, lines, metric)
                axes[row, column].plot(at, means, label=name, **look)
                axes[row, column].vlines(at, low, high, color=look["color"], lw=1.5)
            ends = zip(lines[x], lines["mean"], strict=True)
            told += [f"{name}, {_setting({x: value})}: {mean:.3f}" for value, mean in ends]
            if paired and lines["difference"].notna().any():
                axis = axes[-1, column]
                axis.plot(at, lines["difference"], color=look["color"], lw=1.2)
                for place, (_, line) in zip(at, lines.iterrows(), strict=True):
                    ends = line["difference_low"], line["difference_high"]
                    axis.vlines(place, *ends, color=look["color"], lw=1.5)
                    axis.plot(
                        place,
                        line["difference"],
                        look["marker"],
                        ms=8,
                        mfc=look["color"] if _is_shown(line) else "white",
                        mec=look["color"],
                    )
        if paired and summary[here]["difference"].isna().all():
            style = {"ha": "center", "va": "center", "color": "#666666"}
            axes[-1, column].text(
                0.5, 0.6, "not in the family", transform=axes[-1, column].transAxes, **style
            )
        for row, metric in enumerate(metrics):
            if metric == study.metric and "frozen" in summary:
                axes[row, column].axhline(summary[here]["frozen"].mean(), **_FROZEN)
            if metric in ("mean_cosine", "embedding_mean_length"):
                axes[row, column].axhline(0, **CHANCE_LINE)
        if paired:
            axes[-1, column].axhline(0, **CHANCE_LINE)
        if study.panels:
            axes[0, column].set_title(_setting({study.panels: panel}))
        axes[-1, column].set_xlabel("" if x in LABELS else in_words(x))
        ticks = [value if x in LABELS else f"{value:g}" for value in places]
        axes[-1, column].set_xticks(list(places.values()), ticks)
    for row, metric in enumerate(metrics):
        axes[row, 0].set_ylabel(in_words(metric))
    handles = [Line2D([], [], label=name, **look) for name, look in looks.items() if name]
    handles.append(Line2D([], [], label="frozen encoder", **_FROZEN))
    if paired:
        reference = _setting(study.baseline)
        axes[-1, 0].set_ylabel(f"{in_words(study.metric)},\ndifference from\n{reference}")
        handles += _shown_handles()
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns_of_legend = int(figure.get_figwidth() / (0.1 * longest + 0.8))
    ncols = max(1, min(5, len(handles), columns_of_legend))
    figure.legend(handles=handles, loc="outside lower center", ncols=ncols)
    return finish(figure, f"{study.title}. {in_words(study.metric)}: {'; '.join(told)}.")


_ABOVE: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 2, "fontsize": 11}


def _means(study: Study, table: pd.DataFrame, settings: pd.DataFrame, metric: str) -> tuple:
    """Means and ends of the t intervals of a metric, one for each of the settings."""
    values = []
    for _, setting in settings.iterrows():
        same = np.ones(len(table), bool)
        for name in study.factors[:-1]:
            column = table[name]
            same &= column.isna() if pd.isna(setting[name]) else column == setting[name]
        values.append(table[same][metric])
    low, high = zip(*(t_interval(one) for one in values), strict=True)
    return [one.mean() for one in values], low, high


def _interval(axis, y: float, value: float, low: float, high: float, color: str, filled=True):
    axis.hlines(y, low, high, color=color, lw=2.2)
    axis.plot(value, y, "o", mfc=color if filled else "white", mec=color, mew=1.8, ms=8)


def _is_shown(row: pd.Series) -> bool:
    return row["verdict"] in ("higher", "lower")


def _shown_handles() -> list[Line2D]:
    look = {"color": "#444444", "marker": "o", "ls": "", "ms": 8}
    return [
        Line2D([], [], label="shown, corrected", **look),
        Line2D([], [], label="not shown", mfc="white", **look),
    ]


def _seeds(summary: pd.DataFrame) -> str:
    few, many = summary["seeds"].min(), summary["seeds"].max()
    return f"{few:g} seeds" if few == many else f"{few:g} to {many:g} seeds"


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
        shown = f"{value:g}" if isinstance(value, int | float) else str(value)
        part = shown if name in LABELS else f"{in_words(name)} = {shown}"
        if name == "images_per_class":
            part = f"{shown} images per class in a batch" if value else "random batches"
        if not any(part in said for said in parts):  # a case's name may say it already
            parts.append(part)
    return ", ".join(parts)
