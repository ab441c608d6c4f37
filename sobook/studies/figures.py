"""The figure of a study: every setting's difference from the baseline, or its mean."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from sobook.figures.curves import interval_plot
from sobook.figures.style import Figure, alt_text, finish, use_style
from sobook.studies.study import LABELS, Study


@use_style()
def differences(study: Study, summary: pd.DataFrame) -> Figure:
    """One row per setting of a study: its mean, or its difference from the baseline.

    Args:
        study: what was run.
        summary: its `sobook.studies.report.summary`.
    """
    columns, xlabel = ["mean", "low", "high"], study.metric.replace("recall_at_", "Recall@")
    paired = "difference" in summary
    if paired:
        columns = ["difference", "difference_low", "difference_high"]
        summary = summary.dropna(subset=["difference"])
        xlabel = f"{xlabel}, difference from {_setting(study.baseline)}"
    labels = labels_of(summary, study.factors[:-1])
    values = summary[columns].itertuples(index=False)
    rows = [(label, *value, "PA+SO") for label, value in zip(labels, values, strict=True)]
    figure = interval_plot(rows, xlabel, reference=0 if paired else None)
    seeds = " to ".join(f"{n:g}" for n in sorted({summary["seeds"].min(), summary["seeds"].max()}))
    figure.axes[0].set_title(f"{study.title}\nover {seeds} seeds", loc="left")
    return finish(figure, f"{study.title}: {alt_text(figure)}")


def labels_of(rows: pd.DataFrame, factors: Sequence[str]) -> list[str]:
    """A label for each setting, from the factors in which the settings differ.

    Where cases have names, the other factors only say what a name stands for.
    """
    varied = [name for name in factors if rows[name].nunique(dropna=False) > 1] or list(factors)
    if any(name in LABELS for name in varied):
        varied = [name for name in varied if name in (*LABELS, "so_weight")]
    return [_setting(row.dropna().to_dict()) for _, row in rows[varied].iterrows()]


def _setting(values: dict[str, Any]) -> str:
    """The values of factors in words, e.g. "PA, λ = 10"."""
    parts = []
    for name, value in values.items():
        shown = f"{value:g}" if isinstance(value, int | float) else str(value)
        symbol = "λ" if name == "so_weight" else name.rpartition(".")[2]
        parts.append(shown if name in LABELS else f"{symbol} = {shown}")
    return ", ".join(parts)
