"""Draw data/results/ladder.png from committed tables: what moves Recall@1 on the aviary.

sobook study finetune_aviary ladder_finetune --out data/results
python data/studies/ladder.py
"""

from pathlib import Path

import numpy as np
import pandas as pd

from sobook.figures.style import CHANCE_LINE, COLORS, Figure, finish, new_figure, use_style
from sobook.statistics import t_interval
from sobook.studies import report, study

RESULTS = Path(__file__).parents[1] / "results"


def table(name: str) -> pd.DataFrame:
    return pd.read_csv(RESULTS / f"{name}.csv", dtype={"config": str})


def rungs() -> pd.DataFrame:
    """One row per change: label, kind, difference in Recall@1, its 95 % interval, verdict."""
    found = []
    one, runs = study.load("ladder_finetune"), table("ladder_finetune")
    for _, row in report.summary(one, runs).dropna(subset=["difference"]).iterrows():
        ends = row["difference_low"], row["difference_high"]
        found.append((row["setting"], "setting", row["difference"], *ends, row["verdict"]))
    peeking = one_peek(runs)
    found.append(("choosing the epoch on test classes", "peeking", *peeking))
    plain = runs[runs["setting"] == "PA"]
    gain = plain["recall_at_1"] - plain["frozen_recall_at_1"]
    found.append(("fine-tuning at all", "encoder", gain.mean(), *t_interval(gain), ""))
    frozen = table("frozen_encoders").set_index(["dataset", "encoder"])["recall_at_1"]
    micro = frozen["aviary", "micro DeiT"]
    for label, encoder in [
        ("frozen: random instead of micro DeiT", "micro DeiT, random"),
        ("frozen: DeiT-Tiny instead of micro DeiT", "DeiT-Tiny, 128 px"),
    ]:
        found.append((label, "encoder", frozen["aviary", encoder] - micro, np.nan, np.nan, ""))
    columns = ["label", "kind", "difference", "low", "high", "verdict"]
    rows = pd.DataFrame(found, columns=columns)
    rows = rows[~rows["label"].str.startswith("all classes")]
    order = rows["difference"].abs().sort_values(ascending=False).index
    return rows.loc[order].reset_index(drop=True)


def one_peek(runs: pd.DataFrame) -> tuple:
    """Peeking compared with the same training that keeps its last epoch."""
    by_setting = runs.pivot(index="seed", columns="setting", values="recall_at_1")
    change = (by_setting["all classes, peeking"] - by_setting["all classes"]).dropna()
    return (change.mean(), *t_interval(change), "")


def seed_noise() -> float:
    """Standard deviation of Recall@1 over seeds, PA, 16 epochs."""
    runs = table("finetune_aviary")
    return runs[(runs["method"] == "PA") & (runs["epochs"] == 16)]["recall_at_1"].std()


@use_style()
def picture(rows: pd.DataFrame, noise: float) -> Figure:
    """The ladder: changes from the largest to the smallest, beside the luck of a seed."""
    figure = new_figure(10.5, 0.45 * len(rows) + 1.9)
    axis = figure.subplots()
    axis.axvspan(-2 * noise, 2 * noise, color="#E4E4E4", zorder=0)
    axis.axvline(0, **CHANCE_LINE)
    colors = {"setting": COLORS["PA+SO"], "encoder": COLORS["frozen"], "peeking": COLORS["bound"]}
    for y, row in rows.iterrows():
        color, face = colors[row["kind"]], "white" if "no" in row["verdict"] else None
        axis.hlines(y, row["low"], row["high"], color=color, lw=2.4)
        axis.plot(row["difference"], y, "o", color=color, mfc=face or color, mew=1.8, ms=9)
        axis.text(1.01, y, f"{row['difference']:+.3f}", va="center", fontsize=11,
                  transform=axis.get_yaxis_transform())  # fmt: skip
    axis.set_yticks(range(len(rows)), rows["label"])
    axis.set(ylim=(len(rows) - 0.4, -0.6), xlabel="difference in Recall@1, unseen species")
    axis.set_title(
        "What moves Recall@1? One change at a time\n"
        "gray: ±2 standard deviations of a seed; hollow: not shown after correction",
        loc="left",
    )
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", color="#E4E4E4", lw=0.8)
    told = "; ".join(f"{row.label} {row.difference:+.3f}" for row in rows.itertuples())
    return finish(figure, f"Changes of Recall@1, largest first: {told}. A seed: ±{2 * noise:.3f}.")


if __name__ == "__main__":
    ladder = rungs()
    ladder.round(6).to_csv(RESULTS / "ladder.csv", index=False)
    picture(ladder, seed_noise()).savefig(RESULTS / "ladder.png", dpi=110)
