"""How far do embeddings move when one thing in a picture changes? Frozen, PA, PA+SO, by epoch.

OMP_NUM_THREADS=1 python data/studies/microscope.py

Trains the quick recipe (fine-tuned, 8 epochs) with three seeds each, looks at the test species
through `sobook.course.aviary.microscope` after every epoch, and writes microscope.csv, .json,
.md, .png and microscope_epochs.csv, .png. The same command resumes what was stopped.
"""

import sys
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd

import sobook
from sobook import files
from sobook.course.aviary import microscope, species
from sobook.figures.curves import movement_plot
from sobook.figures.style import COLORS, Figure, finish, line_looks, new_figure, use_style
from sobook.statistics import t_interval
from sobook.training.config import TrainConfig
from sobook.training.loop import fit

RESULTS = Path(__file__).parents[1] / "results"
METHODS = {"PA": 0, "PA+SO": 100}  # λ
SEEDS = (0, 1, 2)
INSTANCES = 2
MEANS = ("one mark", "one nuisance", "all marks", "mark / nuisance")
DIFFERENCE = "PA+SO − PA"
TITLE = "# The aviary under the microscope"
INTRODUCTION = """\
Every test species of the aviary (50, never trained on) is drawn again with one mark changed and \
all else fixed, or with one nuisance drawn anew and all marks fixed; two pictures of each. The \
numbers are distances between the embeddings of the two pictures, in units of the mean distance \
between two ordinary pictures of a species in the same encoder: at 1, a change moves the embedding \
as far as another picture of the bird does. Means over {seeds} seeds after the last epoch; \
intervals are 95 % t intervals over birds, and say nothing of other seeds; the birds of a genus \
resemble each other, so they are rather too narrow. "All marks" are those in which two relatives \
differ, two to four at once. Frozen is the encoder before training, without a head. Written by \
`python data/studies/microscope.py`."""
COMMAND = "OMP_NUM_THREADS=1 python data/studies/microscope.py"


def _file(folder: Path, epoch: int) -> Path:
    return folder / f"microscope_{epoch:02d}.csv"


def watched_run(config: TrainConfig, pictures: dict[str, np.ndarray]) -> sobook.Run:
    """Train, or resume, and look at the birds after every epoch."""

    def after_epoch(epoch: int, encoder: sobook.Encoder) -> None:
        moved = microscope.by_bird(encoder, pictures)
        files.write_text(_file(config.folder(), epoch), moved.to_csv(index=False))

    return fit(config, after_epoch=after_epoch)


def look() -> tuple[pd.DataFrame, dict]:
    """One row per bird of every encoder: method, seed, epoch, bird, and a column per change."""
    frames, recall, seconds = [], {}, 0.0
    birds = species.species(100)[50:]
    pictures = microscope.slides(birds, instances=INSTANCES)

    def noted(moved: pd.DataFrame, *labels: object) -> None:
        moved.index = pd.Index([one.name for one in birds], name="bird")
        frames.append(pd.concat({labels: moved}, names=["method", "seed", "epoch"]))

    frozen = sobook.Encoder.create("deit_micro_patch8_64")
    noted(microscope.by_bird(frozen, pictures), "frozen", 0, 0)
    for seed in SEEDS:
        for method, so_weight in METHODS.items():
            folder = files.data_root() / "runs" / f"microscope-{method}-seed{seed}"
            config = TrainConfig(so_weight=so_weight, seed=seed, run_dir=str(folder))
            run = watched_run(config, pictures)
            recall.setdefault(method, []).append(run.retrieval["recall"]["1"])
            seconds += sum(line["seconds"] for line in run.epochs)
            for epoch in range(1, config.epochs + 1):
                noted(pd.read_csv(_file(run.path, epoch)), method, seed, epoch)
    about = {
        "command": COMMAND,
        "recipe": "quick: sobook.TrainConfig(), fine-tuned; so_weight and seed vary",
        "so_weight": METHODS,
        "seeds": list(SEEDS),
        "pictures_of_each_species": INSTANCES,
        "recall_at_1_of_the_selected_epoch": recall,
        "versions": f"python {sys.version.split()[0]}, sobook {sobook.__version__}",
        "date": date.today().isoformat(),
        "seconds_of_all_epochs": round(seconds),
    }
    return pd.concat(frames), about


def with_means(table: pd.DataFrame) -> pd.DataFrame:
    """The table, and for each bird the means over its single marks and over its nuisances."""
    marks, nuisances = (
        table[list(names)].mean(axis=1) for names in (microscope.MARKS, microscope.NUISANCES)
    )
    means = {"one mark": marks, "one nuisance": nuisances, "mark / nuisance": marks / nuisances}
    return table.assign(**means)


def over_epochs(table: pd.DataFrame) -> pd.DataFrame:
    """One row per encoder, means over birds."""
    return table.groupby(["method", "seed", "epoch"], sort=False).mean()


def at_end(table: pd.DataFrame) -> pd.DataFrame:
    """Every change after the last epoch, as `microscope.summarize` has it: means over seeds first.

    The last rows, of method "PA+SO − PA", are paired differences by bird.
    """
    epoch = table.index.get_level_values("epoch")
    rows = table[(epoch == epoch.max()) | (epoch == 0)]  # 0: frozen
    means = rows.groupby(["method", "bird"], sort=False).mean()
    moved = {method: means.xs(method) for method in means.index.unique("method")}
    moved[DIFFERENCE] = moved["PA+SO"] - moved["PA"]
    summaries = {}
    for method, its in moved.items():
        changes = microscope.summarize(its[list(microscope.KINDS)])
        averages = [
            (name, "mean", its[name].mean(), *t_interval(its[name]), len(its))
            for name in MEANS
            if name not in microscope.KINDS
        ]
        summaries[method] = pd.concat([pd.DataFrame(averages, columns=changes.columns), changes])
    return pd.concat(summaries, names=["method", "row"]).reset_index("method")


def page(ends: pd.DataFrame, seeds: int) -> str:
    """The page, in Markdown, from the table of `at_end`."""
    methods = list(ends["method"].unique())
    rows = [f"| change | birds | {' | '.join(methods)} |", "|---" * (len(methods) + 2) + "|"]
    for change, its in ends.groupby("change", sort=False):
        cells = [f"{r.moved:.2f} [{r.low:.2f}, {r.high:.2f}]" for r in its.itertuples()]
        rows.append(f"| {change.replace('_', ' ')} | {its['n'].iloc[0]} | {' | '.join(cells)} |")
    figures = "![Distances moved](microscope.png)\n\n![Over epochs](microscope_epochs.png)"
    introduction = INTRODUCTION.format(seeds=seeds)
    return "\n\n".join([TITLE, introduction, figures, "\n".join(rows)]) + "\n"


def picture(ends: pd.DataFrame) -> Figure:
    """The figure of every mark and nuisance, from the table of `at_end`."""
    shown = ends[(ends["kind"] != "mean") & (ends["method"] != DIFFERENCE)]
    return movement_plot(dict(tuple(shown.groupby("method", sort=False))))


@use_style()
def picture_over_epochs(means: pd.DataFrame) -> Figure:
    """The means over epochs, from the table of `over_epochs`: a thin line for each seed."""
    figure, alt = new_figure(12, 3.8), []
    for axis, name in zip(figure.subplots(1, 4, sharey=True), MEANS, strict=True):
        axis.axhline(
            means.xs("frozen")[name].item(), color=COLORS["frozen"], ls=":", label="frozen"
        )
        for method, look in line_looks(METHODS).items():
            by_seed = means.xs(method)[name].unstack("seed")  # (epochs, seeds)
            axis.plot(by_seed, **{**look, "lw": 0.8, "alpha": 0.6})
            curve = by_seed.mean(axis=1)
            axis.plot(curve, label=method, **look)
            alt.append(f"{name}, {method} {curve.iloc[0]:.2f} to {curve.iloc[-1]:.2f}")
        axis.set(title=name, xlabel="epoch")
    figure.axes[0].set_ylim(0, None)  # of all of them, and so only now
    figure.axes[0].set_ylabel("distance moved\n(1: another picture)")
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=3)
    return finish(figure, f"Distance moved over epochs: {'; '.join(alt)}.")


def main() -> None:
    table, about = look()
    table = with_means(table)
    ends, means = at_end(table).round(4), over_epochs(table).round(4)
    files.write_text(RESULTS / "microscope.csv", ends.to_csv(index=False))
    files.write_text(RESULTS / "microscope_epochs.csv", means.to_csv())
    files.write_json(RESULTS / "microscope.json", about)
    files.write_text(RESULTS / "microscope.md", page(ends, len(SEEDS)))
    picture(ends).savefig(RESULTS / "microscope.png", dpi=80)
    picture_over_epochs(means).savefig(RESULTS / "microscope_epochs.png", dpi=80)


if __name__ == "__main__":
    main()
