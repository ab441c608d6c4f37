"""Train what the results tables need and gather it: one row a run, with where it comes from.

    python data/make_results.py aviary                   # PA and PA + SO, five seeds each
    python data/make_results.py gather RUN [RUN ...] --out data/results/cub_58_42.csv
    python data/make_results.py hero                     # the picture at the top of the README

Runs that are finished are read, not repeated, so an interrupted table goes on where it stopped.
"""

import argparse
import io
import os
import sys
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from sobook import figures, geometry
from sobook.data import image_sets
from sobook.data.pixels import read_image
from sobook.encoder import Encoder, embed
from sobook.files import replacing
from sobook.losses import SO_WEIGHT
from sobook.retrieval import evaluate
from sobook.training.loop import TrainConfig, fit
from sobook.training.run import Run

RESULTS = Path(__file__).parent / "results"


def row(run: Run, frozen: float, command: str) -> dict:
    """What the table says of one run."""
    config, state, measured = run.config, run.state, run.retrieval
    shape = geometry.describe(run.proxies())
    versions = " ".join(f"{name} {version}" for name, version in state["versions"].items())
    return {
        "dataset": config.dataset,
        "encoder": config.encoder,
        "dim": run.proxies().shape[1],
        "so_weight": config.so_weight,
        "seed": config.seed,
        **{f"recall_at_{k}": value for k, value in measured["recall"].items()},
        "map_at_r": measured["map_at_r"],
        "r_precision": measured["r_precision"],
        "rms_cosine": round(shape.rms_cosine, 6),
        "mean_cosine": round(shape.mean_cosine, 6),
        "coherence": round(shape.coherence, 6),
        "effective_rank": round(shape.effective_rank, 3),
        "train_classes": shape.num_classes,
        "selection": config.selection,
        "selected_epoch": state["selected_epoch"],
        "epochs": config.epochs,
        "image_size": state["encoder"]["image_size"],
        "frozen_recall_at_1": round(frozen, 6),
        "config": run.path.name.rsplit("-", 1)[-1] if config.run_dir is None else run.path.name,
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} CPU cores" if state["device"] == "cpu" else state["device"],
        "versions": versions,
        "notes": "; ".join(measured["notes"]),
        "command": command,
    }


def frozen_recall(config: TrainConfig, known: dict) -> float:
    """Recall@1 on the test classes of the encoder before any training, computed once."""
    key = (config.dataset, config.encoder, config.image_size, str(config.options), config.root)
    if key not in known:
        test = image_sets.load(
            config.dataset,
            "test",
            config.root,
            allow_partial=config.allow_partial,
            **config.options,
        )
        encoder = Encoder.create(
            config.encoder, weights=config.weights, image_size=config.image_size, token=config.token
        )
        known[key] = evaluate(embed(encoder, test), test.labels, ks=(1,)).recall[1]
    return known[key]


def write(runs: list[Run], file: Path, command: str) -> None:
    known: dict = {}
    table = pd.DataFrame([row(run, frozen_recall(run.config, known), command) for run in runs])
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as partial:
        table.to_csv(partial, index=False)
    print(
        table.groupby("so_weight")[["recall_at_1", "rms_cosine", "coherence"]].agg(["mean", "std"])
    )
    print(file)


def aviary(seeds: int, so_weights: list[float], out: Path) -> None:
    runs = []
    for seed in range(seeds):
        for so_weight in so_weights:
            run = fit(TrainConfig(seed=seed, so_weight=so_weight), progress=False)
            print(f"{run.path.name}: Recall@1 {run.retrieval['recall']['1']:.4f}", flush=True)
            runs.append(run)
    write(runs, out, f"python data/make_results.py {' '.join(sys.argv[1:])}")


def hero(out: Path) -> None:
    """The birds, and the cosines of the proxies that two runs learned on them."""
    pa, so = (fit(TrainConfig(so_weight=so_weight)) for so_weight in (0.0, SO_WEIGHT))
    train = image_sets.load("aviary", "train")
    birds = [np.asarray(read_image(train.paths[i])) for i in range(3, 2000, 160)]
    names = [name.split(".")[1].rsplit("_", 1)[-1] for name in pa.state["class_names"]]
    drawn = [
        figures.contact_sheet(birds, columns=len(birds)),
        figures.proxy_heatmaps({"PA": pa.proxies(), "PA+SO": so.proxies()}, groups=names),
    ]
    parts = []
    for figure in drawn:
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=110, format="png")
        parts.append(Image.open(buffer).convert("RGB"))
    width = max(part.width for part in parts)
    parts = [part.resize((width, part.height * width // part.width)) for part in parts]
    page = Image.new("RGB", (width, sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        page.paste(part, (0, top))
        top += part.height
    page.save(out, optimize=True)
    print(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("aviary", help="train PA and PA + SO on the aviary, and gather")
    first.add_argument("--seeds", type=int, default=5)
    first.add_argument("--so-weights", type=float, nargs="+", default=[0.0, SO_WEIGHT])
    first.add_argument("--out", type=Path, default=RESULTS / "aviary.csv")
    second = commands.add_parser("gather", help="gather finished runs")
    second.add_argument("runs", nargs="+")
    second.add_argument("--out", type=Path, required=True)
    third = commands.add_parser("hero", help="draw the picture at the top of the README")
    third.add_argument("--out", type=Path, default=RESULTS / "hero.png")
    args = parser.parse_args()
    if args.command == "hero":
        hero(args.out)
    elif args.command == "aviary":
        aviary(args.seeds, args.so_weights, args.out)
    else:
        names = " ".join(Path(run).name for run in args.runs)
        command = f"python data/make_results.py gather {names}"
        write([Run.load(run) for run in args.runs], args.out, command)


if __name__ == "__main__":
    main()
