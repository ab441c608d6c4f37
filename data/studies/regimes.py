"""Draw data/results/regimes.png from the committed table of the study regimes_heads.

python data/studies/regimes.py
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from sobook.figures.style import CHANCE_LINE, COLORS, Figure, new_figure, use_style
from sobook.statistics import t_interval
from sobook.studies import study

RESULTS = Path(__file__).parents[1] / "results"
FLOOR_LINE = {"color": COLORS["bound"], "linestyle": "--"}


@use_style()
def picture(table: pd.DataFrame, dim: int) -> Figure:
    """RMS proxy cosine against λ, for few, as many and many more classes than D dimensions."""
    figure = new_figure(11, 4.4)
    parts = table.groupby("setting", sort=False)
    axes = figure.subplots(1, len(parts), sharey=True)
    for axis, (_, part) in zip(axes, parts, strict=True):
        cosines = part.groupby("so_weight")["rms_cosine"]
        at = np.arange(len(cosines))
        half = [np.ptp(t_interval(values)) / 2 for _, values in cosines]
        axis.errorbar(at, cosines.mean(), yerr=half, fmt="o-", color=COLORS["PA+SO"])
        axis.axhline(part["rms_floor"].iloc[0], **FLOOR_LINE)
        axis.axhline(1 / np.sqrt(dim), **CHANCE_LINE)
        axis.set_xticks(at, [f"{weight:g}" for weight in cosines.groups])
        axis.set(title=f"C = {part['train_classes'].iloc[0]:.0f}, D = {dim}", xlabel="λ")
    axes[0].set_ylim(bottom=0)  # only now: set for one panel, it would hold for all
    axes[0].set_ylabel("RMS proxy cosine")
    handles = [
        Line2D([], [], color=COLORS["PA+SO"], marker="o", label="trained"),
        Line2D([], [], label="floor", **FLOOR_LINE),
        Line2D([], [], label="random directions", **CHANCE_LINE),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


def main() -> None:
    dim = study.load("regimes_heads").fixed["dim"]
    figure = picture(pd.read_csv(RESULTS / "regimes_heads.csv"), dim)
    figure.savefig(RESULTS / "regimes.png", dpi=80)


if __name__ == "__main__":
    main()
