"""Predict the tilt of every cell of tilt_law from one run per scale and bias.

    python data/studies/tilt_law.py

The run has the threshold 0, no SO, 240 epochs, and a seed that is in no study. Of it the residual
cosines of images and proxies are used, their means and spreads; its tilt is not. Writes
data/results/tilt_law_predicted.csv, which is committed before the studies run.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from sobook import tilt
from sobook.course.studies import study
from sobook.data import image_sets
from sobook.data.loader import batch_plan
from sobook.training.heads import HeadConfig, fit_head

RESULTS = Path(__file__).parents[1] / "results"
SEED = 299  # in no study
NAMES = list(tilt.Tilt.__dataclass_fields__)


def batches_of(config: HeadConfig) -> tuple[np.ndarray, int]:
    """(M, B) classes in the batches of an epoch, and C."""
    images = image_sets.load(config.dataset, "train", **config.load_options)
    train, _ = image_sets.hold_out(images, config.validation_fraction, config.seed, at_least=2)
    rows = batch_plan(np.random.default_rng(0), train.labels, config.batch_size)
    return train.labels[rows], train.num_classes


def main() -> None:
    grid, seen, rows = study.load("tilt_law"), {}, []
    for _, varied in grid.plan():
        if varied["seed"]:
            continue
        config = grid.config(varied)
        labels, num_classes = batches_of(config)
        measured = (varied["scale"], varied["head_bias"])
        if measured not in seen:
            run = fit_head(config.replace(seed=SEED, threshold=0.0, so_weight=0.0))
            seen[measured] = tilt.Tilt(**{name: run[name] for name in NAMES})
        loss = tilt.Loss(config.scale, config.margin, config.threshold, config.so_weight)
        a, e, _ = tilt.predict(seen[measured], labels, num_classes, loss)
        cell = {name: varied[name] for name in grid.factors if name != "seed"}
        predicted = {"tau_predicted": (a * e) ** 0.5, "proxy_cone_predicted": a}
        predicted |= {"image_cone_predicted": e, "tau_of_the_run": seen[measured].tau}
        predicted["mean_cosine_predicted"] = a - (1 - a) / (num_classes - 1)
        rows.append({**cell, **{name: round(value, 4) for name, value in predicted.items()}})
    pd.DataFrame(rows).to_csv(RESULTS / "tilt_law_predicted.csv", index=False)


if __name__ == "__main__":
    main()
