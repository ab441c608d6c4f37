"""Draw data/results/two_cones.png from committed tables: what moves proxies and images apart.

sobook study lambda_heads convergence_heads threshold_aviary scale_batches --out data/results
python data/studies/tilt_law.py
python data/studies/two_cones.py
"""

from pathlib import Path

import numpy as np
import pandas as pd

from sobook.figures.style import COLORS, INK, PALETTE, Figure, finish, new_figure, use_style

RESULTS = Path(__file__).parents[1] / "results"
# Name, study, the rows of it, the factor that varies, color, and the text at both ends of the path
# with its offset in points.
PATHS = [
    ("more SO", "lambda_heads", {}, "so_weight", COLORS["PA+SO"]),
    ("longer training", "convergence_heads", {"dim": 128, "so_weight": 0}, "epochs", PALETTE[2]),
    ("higher threshold", "threshold_aviary", {"margin": 0.1, "so_weight": 0}, "setting", "#D55E00"),
    ("larger scale", "scale_batches", {"images_per_class": 0, "epochs": 240}, "scale", "#882255"),
]
ENDS = {
    "more SO": [("", (0, 0)), ("λ = 1,000", (10, -4))],
    "longer training": [("60 epochs", (2, 10)), ("240 epochs", (-66, -22))],
    "higher threshold": [("λ = 0, b = 0", (-96, -4)), ("b learned", (12, -2))],
    "larger scale": [("α = 4", (8, -14)), ("α = 64", (-46, -18))],
}


def path(name: str, where: dict, factor: str) -> pd.DataFrame:
    """a and e of every value of a factor, means over seeds, in the order of the table."""
    table = pd.read_csv(RESULTS / f"{name}.csv", dtype={"config": str})
    rows = (
        table[np.logical_and.reduce([table[k] == v for k, v in where.items()])] if where else table
    )
    cones = rows.assign(a=rows["mean_proxy_length"] ** 2, e=rows["embedding_mean_length"] ** 2)
    means = cones.groupby(factor, sort=False)[["a", "e"]].mean()
    means = means.reset_index(names="value").assign(study=name)
    return means[means["value"] != 20] if factor == "epochs" else means  # τ has not settled there


def rows() -> pd.DataFrame:
    parts = [path(*settings).assign(path=name) for name, *settings, _ in PATHS]
    return pd.concat(parts)[["path", "study", "value", "a", "e"]].reset_index(drop=True)


@use_style()
def picture(cones: pd.DataFrame) -> Figure:
    """Paths on the plane of the two cones, and those that the loss predicts, dashed."""
    figure, alt = new_figure(9.5, 7), []
    axis = figure.subplots()
    tau = np.linspace(0.02, 0.75, 200)
    for level in (0.1, 0.2, 0.3, 0.4):
        axis.plot(tau, level**2 / tau, color="#E4E4E4", lw=1, zorder=0)
        axis.text(0.497, level**2 / 0.5 + 0.006, f"τ = {level:g}", color="#6E6E6E", ha="right")
    axis.plot([0, 1], [0, 1], color="#C4C4C4", lw=1, zorder=0)
    for name, *_, color in PATHS:
        part = cones[cones["path"] == name]
        axis.plot(part["a"], part["e"], "-o", color=color, label=name, ms=5)
        for (_, row), (text, offset) in zip(part.iloc[[0, -1]].iterrows(), ENDS[name], strict=True):
            place = {"xytext": offset, "textcoords": "offset points"}
            axis.annotate(text, (row["a"], row["e"]), color=color, fontsize=12, **place)
            alt.append(f"{name}, {row['value']}: a {row['a']:.2f}, e {row['e']:.2f}")
    for predicted in predictions():
        axis.plot(*predicted.T, "--", color=INK, lw=1.4)
    axis.plot([], [], "--", color=INK, lw=1.4, label="predicted from the loss")
    axis.set(xlim=(-0.01, 0.5), ylim=(-0.01, 0.75))
    axis.set_xlabel("a: squared length of the mean proxy")
    axis.set_ylabel("e: squared length of the mean embedding")
    axis.legend(loc="upper right")
    return finish(figure, "Two cones, one opposite the other, measured by a and e: ", alt)


def predictions() -> list[np.ndarray]:
    """(n, 2) a and e along SO, the threshold and the scale, from one run per scale."""
    table = pd.read_csv(RESULTS / "tilt_law_predicted.csv").query("head_bias")
    columns = ["proxy_cone_predicted", "image_cone_predicted"]
    plain, at_32 = "threshold == 0 and so_weight == 0", "scale == 32"
    paths = (
        f"{at_32} and threshold == 0",
        f"{at_32} and so_weight == 0",
        f"{plain} and scale >= 4",
    )
    return [table.query(rows)[columns].to_numpy() for rows in paths]


if __name__ == "__main__":
    cones = rows()
    cones.round(6).to_csv(RESULTS / "two_cones.csv", index=False)
    picture(cones).savefig(RESULTS / "two_cones.png", dpi=110)
