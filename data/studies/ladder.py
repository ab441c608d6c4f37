"""Draw data/results/ladder.png from committed tables: what moves Recall@1 on the aviary.

sobook study finetune_aviary ladder_finetune convergence_heads scale_batches threshold_aviary \
    --out data/results
python data/studies/ladder.py
"""

from pathlib import Path

import numpy as np
import pandas as pd

from sobook.course.studies import report, study
from sobook.figures.style import CHANCE_LINE, COLORS, Figure, finish, new_figure, use_style
from sobook.statistics import compare_seeds, t_interval

RESULTS = Path(__file__).parents[1] / "results"
COLUMNS = ["panel", "label", "difference", "low", "high", "seeds", "verdict"]
TUNED, HEADS = "fine-tuned, PA for 16 epochs", "heads on frozen features, PA for 120 epochs"

# Heads: label, study, the setting, the one it is compared with.
_PLAIN = {"dim": 128, "so_weight": 0, "epochs": 120}
_RANDOM = {"scale": 32, "images_per_class": 0, "epochs": 120}
_B0 = {"setting": "b = 0", "margin": 0.1, "so_weight": 0}
STEPS = [
    ("60 epochs", "convergence_heads", {"epochs": 60}, _PLAIN),
    ("240 epochs", "convergence_heads", {"epochs": 240}, _PLAIN),
    ("D = 64", "convergence_heads", {"dim": 64}, _PLAIN),
    ("D = 512", "convergence_heads", {"dim": 512}, _PLAIN),
    ("SO, λ = 30", "convergence_heads", {"so_weight": 30}, _PLAIN),
    ("SO, λ = 100", "convergence_heads", {"so_weight": 100}, _PLAIN),
    ("α = 4", "scale_batches", {"scale": 4}, _RANDOM),
    ("α = 8", "scale_batches", {"scale": 8}, _RANDOM),
    ("α = 64", "scale_batches", {"scale": 64}, _RANDOM),
    ("4 images per class in a batch", "scale_batches", {"images_per_class": 4}, _RANDOM),
    ("δ = .3", "threshold_aviary", {"margin": 0.3}, _B0),
    ("b learned", "threshold_aviary", {"setting": "b learned"}, _B0),
]


def table(name: str) -> pd.DataFrame:
    return pd.read_csv(RESULTS / f"{name}.csv", dtype={"config": str})


def rungs() -> pd.DataFrame:
    """One row per change, largest first in each panel. A verdict is that of the study's family."""
    rows = pd.DataFrame([*fine_tuned(), *heads()], columns=COLUMNS)
    order = rows["difference"].abs().sort_values(ascending=False).index
    return rows.loc[order].sort_values("panel", kind="stable").reset_index(drop=True)


def fine_tuned() -> list[tuple]:
    one, runs = study.load("ladder_finetune"), table("ladder_finetune")
    rows = []
    for _, row in report.summary(one, runs).dropna(subset=["difference"]).iterrows():
        ends = row["difference_low"], row["difference_high"]
        step = row["setting"], row["difference"], *ends, row["seeds"], row["verdict"]
        if not row["setting"].startswith("all classes"):
            rows.append((TUNED, *step))
    by_setting = runs.pivot(index="seed", columns="setting", values="recall_at_1")
    peeked = (by_setting["all classes, peeking"] - by_setting["all classes"]).dropna()
    plain = runs[runs["setting"] == "PA"]
    gain = plain["recall_at_1"] - plain["frozen_recall_at_1"]
    for label, change in [
        ("choosing the epoch on test classes", peeked),
        ("fine-tuning at all", gain),
    ]:
        rows.append((TUNED, label, change.mean(), *t_interval(change), len(change), ""))
    frozen = table("frozen_encoders").set_index(["dataset", "encoder"])["recall_at_1"]
    micro = frozen["aviary", "micro DeiT"]
    for label, encoder in [
        ("frozen: random weights instead of micro DeiT's", "micro DeiT, random"),
        ("frozen: DeiT-Tiny instead of micro DeiT", "DeiT-Tiny, 128 px"),
    ]:
        rows.append((TUNED, label, frozen["aviary", encoder] - micro, np.nan, np.nan, 0, ""))
    return rows


def heads() -> list[tuple]:
    """Each change against the plain setting of its own study, paired by seed."""
    rows = []
    for label, name, change, plain in STEPS:
        one, runs = study.load(name), table(name)
        result = report.summary(one, runs)
        wanted = plain | change
        row = result[np.logical_and.reduce([result[key] == wanted[key] for key in wanted])].iloc[0]
        pair = [_by_seed(runs, setting) for setting in (plain, wanted)]
        step = compare_seeds(*pair)
        verdict = row["verdict"] if isinstance(row["verdict"], str) else ""
        if "so_weight" not in change and name == "convergence_heads":
            verdict = ""  # its family compares SO with none, not one number of epochs with another
        rows.append((HEADS, label, step.difference, step.low, step.high, step.n, verdict))
    return rows


def _by_seed(runs: pd.DataFrame, setting: dict) -> pd.Series:
    rows = np.logical_and.reduce([runs[key] == value for key, value in setting.items()])
    return runs[rows].set_index("seed")["recall_at_1"].sort_index()


def seed_noise(panel: str) -> float:
    """Standard deviation of Recall@1 over seeds of the plain setting of a panel."""
    if panel == TUNED:
        runs = table("finetune_aviary")
        return runs[(runs["method"] == "PA") & (runs["epochs"] == 16)]["recall_at_1"].std()
    return _by_seed(table("convergence_heads"), _PLAIN).std()


@use_style()
def picture(rows: pd.DataFrame) -> Figure:
    """The ladder: changes from the largest to the smallest, beside the luck of a seed."""
    panels = [(TUNED, COLORS["PA+SO"]), (HEADS, COLORS["PA"])]
    sizes = [(rows["panel"] == panel).sum() for panel, _ in panels]
    figure = new_figure(11, 0.4 * sum(sizes) + 3)
    axes = figure.subplots(2, 1, sharex=True, height_ratios=sizes)
    alt = []
    for axis, (panel, color) in zip(axes, panels, strict=True):
        part = rows[rows["panel"] == panel].reset_index(drop=True)
        noise = 2 * seed_noise(panel)
        axis.axvspan(-noise, noise, color="#E4E4E4", zorder=0)
        axis.axvline(0, **CHANCE_LINE)
        for y, row in part.iterrows():
            marker = "o" if row["verdict"] else "D"
            face = "white" if row["verdict"].startswith("no ") else color
            axis.hlines(y, row["low"], row["high"], color=color, lw=2.4)
            axis.plot(row["difference"], y, marker, color=color, mfc=face, mew=1.8, ms=8)
            number = f"{row['difference']:+.3f}".replace("-", "−")
            place = axis.get_yaxis_transform()
            axis.text(1.01, y, number, va="center", fontsize=11, transform=place)
            alt.append(f"{row['label']} {row['difference']:+.3f}")
        axis.set_xscale("symlog", linthresh=0.02, linscale=1.5)
        ticks = [-0.3, -0.1, -0.02, -0.01, 0, 0.01, 0.02, 0.1, 0.3]
        axis.set_xticks(ticks, [f"{tick:+g}".replace("-", "−") if tick else "0" for tick in ticks])
        axis.minorticks_off()
        axis.set_yticks(range(len(part)), part["label"])
        axis.set(ylim=(len(part) - 0.4, -0.6), xlim=(-0.5, 0.5))
        axis.set_title(panel, loc="left")
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x", color="#E4E4E4", lw=0.8)
    axes[-1].set_xlabel(
        "difference in Recall@1, unseen species\n(linear within ±.02, then logarithmic; "
        "gray: ±2 standard deviations of a seed;\nhollow: not shown after correction; "
        "diamond: in no family, so without a verdict)"
    )
    return finish(figure, f"Changes of Recall@1, one at a time: {'; '.join(alt)}.")


if __name__ == "__main__":
    ladder = rungs()
    ladder.round(6).to_csv(RESULTS / "ladder.csv", index=False)
    picture(ladder).savefig(RESULTS / "ladder.png", dpi=110)
