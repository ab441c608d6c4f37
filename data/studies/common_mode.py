"""Write data/results/common_mode.md and its figure from the committed tables of two studies.

sobook study common_mode_aviary common_mode_cub --out data/results
python data/studies/common_mode.py
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from sobook import files
from sobook.figures.style import CHANCE_LINE, COLORS, Figure, new_figure, use_style
from sobook.statistics import Comparison, compare_seeds, t_interval, verdict

RESULTS = Path(__file__).parents[1] / "results"
TABLES = {"aviary": "common_mode_aviary", "CUB-58/42": "common_mode_cub"}
FACTORS = ["so_weight", "center", "margin"]
PLAIN = (0, False, 0.1)  # Proxy Anchor as it is
CENTERED = (0, True, 0.1)
STRONG = (100, False, 0.1)  # λ is the package's default
COLUMNS = (
    "trained by",
    "RMS cosine",
    "mean cosine",
    "RMS, mean proxy subtracted",
    "cosine of mean proxy and mean embedding",
    "Recall@1",
    "difference from PA",
    "difference when the mean proxy's direction is removed from the embeddings",
)
PANELS = ("RMS proxy cosine", "cosine of mean proxy\nand mean embedding", "Recall@1")
INTRODUCTION = """\
What is the correlation of proxies that soft orthogonality (SO) removes? Heads and proxies trained \
on frozen features (not fine-tuned); intervals are 95 % t intervals of differences paired by seed. \
Written by `python data/studies/common_mode.py` from the tables beside it."""
WHY = """\
Our reading, not a proof. The images of one class pull a proxy, those of all other classes push \
it. What all images have in common, their mean embedding, is pushed by C − 1 classes and pulled by \
one, so every proxy turns away from it by about the same amount. That is what a cosine near −1 \
between mean proxy and mean embedding says. How strong this shared mean direction is depends on \
the margin δ, see the rows with other margins. For retrieval a direction shared by all says \
little: it adds nearly the same number to every cosine of a query."""


def arm(so_weight: float, center: bool, margin: float) -> str:
    """The name of a way of training, e.g. "PA+SO, λ = 10"."""
    if center:
        return "PA, centered proxies"
    method = "PA" if so_weight == 0 else f"PA+SO, λ = {so_weight:g}"
    return method if margin == 0.1 else f"{method}, δ = {margin:g}"


def by_arm(table: pd.DataFrame) -> dict[tuple, pd.DataFrame]:
    """The ways of training, (λ, centered?, δ), with their runs by seed."""
    groups = table.groupby(FACTORS, sort=False)
    return {key: runs.set_index("seed").sort_index() for key, runs in groups}


def from_plain(arms: dict[tuple, pd.DataFrame], key: tuple) -> Comparison:
    """Recall@1 of a way of training, compared with plain Proxy Anchor."""
    return compare_seeds(arms[PLAIN]["recall_at_1"], arms[key]["recall_at_1"])


def without_common_mode(runs: pd.DataFrame) -> Comparison:
    """Recall@1 when the mean proxy's direction is removed, compared with Recall@1 as it is."""
    return compare_seeds(runs["recall_at_1"], runs["recall_without_common"])


def interval(compared: Comparison) -> str:
    return f"{compared.difference:+.3f} [{compared.low:+.3f}, {compared.high:+.3f}]"


def table_row(arms: dict[tuple, pd.DataFrame], key: tuple) -> str:
    """What a way of training does to proxies and to Recall@1."""
    runs = arms[key]
    mean = runs.mean(numeric_only=True)
    cells = [
        arm(*key),
        f"{mean['rms_cosine']:.3f}",
        f"{mean['mean_cosine']:+.3f}",
        f"{mean['rms_cosine_centred']:.3f}",
        f"{mean['cosine_of_mean_proxy_and_mean_embedding']:+.2f}",
        f"{mean['recall_at_1']:.3f}",
        "–" if key == PLAIN else interval(from_plain(arms, key)),
        interval(without_common_mode(runs)),
    ]
    return "| " + " | ".join(cells) + " |"


def findings(name: str, arms: dict[tuple, pd.DataFrame]) -> str:
    """The questions of the study, answered from one table."""
    plain, strong = (arms[key].mean(numeric_only=True) for key in (PLAIN, STRONG))
    more = "more" if strong["rms_cosine"] < plain["rms_cosine_centred"] else "no more"
    removed, centered, with_so = (
        f"{verdict(compared)}, {interval(compared)}"
        for compared in (
            without_common_mode(arms[PLAIN]),
            from_plain(arms, CENTERED),
            from_plain(arms, STRONG),
        )
    )
    return (
        f"**{name}** ({plain['train_classes']:.0f} classes, {len(arms[PLAIN])} seeds). "
        f"PA's proxies have an RMS cosine of {plain['rms_cosine']:.3f}; their mean cosine is "
        f"{plain['mean_cosine']:+.3f}. Subtracting the mean proxy removes "
        f"{plain['common_share']:.0%} of the mean squared cosine and leaves an RMS of "
        f"{plain['rms_cosine_centred']:.3f}. SO at λ = {STRONG[0]} leaves "
        f"{strong['rms_cosine']:.3f}, so it removes {more} than the common mode. The mean proxy "
        f"has a cosine of {plain['cosine_of_mean_proxy_and_mean_embedding']:+.2f} to the mean "
        "embedding. "
        f"Recall@1 compared with PA, not corrected for several looks: with the mean proxy's "
        f"direction removed from the embeddings afterwards, {removed}; trained with centered "
        f"proxies, {centered}; trained with SO, {with_so}."
    )


def page(tables: dict[str, pd.DataFrame]) -> str:
    """The page, in Markdown."""
    arms = {name: by_arm(table) for name, table in tables.items()}
    lines = [
        "# The common mode of proxies",
        INTRODUCTION,
        "![Common mode](common_mode.png)",
        "## What was found",
        *(findings(name, its_arms) for name, its_arms in arms.items()),
        "## Why",
        WHY,
    ]
    for name, its_arms in arms.items():
        head = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"
        lines += [f"## {name}", "\n".join([head, *(table_row(its_arms, key) for key in its_arms)])]
    return "\n\n".join(lines) + "\n"


@use_style()
def picture(tables: dict[str, pd.DataFrame]) -> Figure:
    """One row of panels per data set: proxies, their mean, and Recall@1."""
    figure = new_figure(12, 1.4 + 3.6 * len(tables))
    axes = figure.subplots(len(tables), 3, squeeze=False, sharey="row")
    for line, (name, table) in zip(axes, tables.items(), strict=True):
        groups = table.groupby(FACTORS, sort=False)
        at = np.arange(len(groups))[::-1]
        marks = [
            (line[0], "rms_cosine", COLORS["PA"], "o"),
            (line[0], "rms_cosine_centred", COLORS["PA+SO"], "D"),
            (line[1], "cosine_of_mean_proxy_and_mean_embedding", COLORS["chance"], "o"),
            (line[2], "recall_at_1", COLORS["PA"], "o"),
            (line[2], "recall_without_common", COLORS["PA+SO"], "D"),
        ]
        for axis, column, shade, mark in marks:
            half = [np.ptp(t_interval(values)) / 2 for _, values in groups[column]]
            shift = -0.12 if mark == "D" else 0.12
            means = groups[column].mean()
            axis.errorbar(means, at + shift, xerr=half, fmt=mark, color=shade, markersize=7)
        line[0].set_yticks(at, [arm(*key) for key, _ in groups])
        line[0].set_title(name, loc="left")
        line[1].set_xlim(-1.05, 1.05)
        line[1].axvline(0, zorder=0, **CHANCE_LINE)
        for axis, text in zip(line, PANELS, strict=True):
            axis.set_xlabel(text)
            axis.grid(axis="y", alpha=0.25)
    looks = {"as trained": ("o", "PA"), "mean proxy removed": ("D", "PA+SO")}
    handles = [
        Line2D([], [], marker=mark, linestyle="", color=COLORS[method], label=text)
        for text, (mark, method) in looks.items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


def main() -> None:
    tables = {name: pd.read_csv(RESULTS / f"{study}.csv") for name, study in TABLES.items()}
    files.write_text(RESULTS / "common_mode.md", page(tables))
    picture(tables).savefig(RESULTS / "common_mode.png", dpi=80)


if __name__ == "__main__":
    main()
