"""Cost against size: times of the parts that grow, and the exponents that describe them.

    python -m tests.benchmarks.cost

writes cost.json and cost.png. Images, classes, dimension and batch grow one at a time, everything
else stays at the size of a small Stanford Online Products. An exponent e means that ten times the
size takes 10ᵉ times as long; it is fitted to the upper half of the sizes, where the work outweighs
what each call costs.
"""

import json
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from sobook.data.loader import batch_plan
from sobook.encoder import Encoder
from sobook.figures.style import PALETTE, Figure, alt_text, finish, new_figure, use_style
from sobook.geometry import describe
from sobook.retrieval import evaluate
from tests.benchmarks import timing
from tests.benchmarks.step import anchor_step, forward_and_backward, orthogonality_step

SIZES = {
    "images": [1_000, 3_000, 10_000, 30_000, 100_000],
    "classes": [100, 1_000, 10_000, 30_000, 100_000],
    "dimension": [64, 128, 256, 512, 1024],
    "batch": [30, 60, 120, 240, 480],
}
AT = {"images": 10_000, "classes": 10_000, "dimension": 128, "batch": 180}
MOST_CLASSES_DESCRIBED = 30_000  # all pairs of 100,000 would be 40 GB
ROUNDS = {"rounds": 2, "most": 7, "least_seconds": 3}


def rows(number: int, dim: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((number, dim)).astype(np.float32)


def encoder_step(images: int, classes: int, dimension: int, batch: int) -> Callable[[], float]:
    torch.manual_seed(0)
    encoder = Encoder.create("deit_micro_patch8_64", dim=dimension).train()
    pictures = torch.randn(batch, 3, 64, 64)
    return forward_and_backward(lambda: encoder(pictures).square().sum(), *encoder.parameters())


PA, SO, SEARCH = "Proxy Anchor, a step", "SO, a step", "evaluation by exact search"
DESCRIBE, BATCHES, ENCODER = "describe: all pairs", "an epoch's batches", "micro DeiT, a step"
# What makes the call that is timed, from the sizes in AT.
MAKE: dict[str, Callable[..., Callable]] = {
    PA: lambda images, classes, dimension, batch: anchor_step(classes, dimension, batch),
    SO: lambda images, classes, dimension, batch: orthogonality_step(classes, dimension),
    SEARCH: lambda images, classes, dimension, batch: partial(
        evaluate, rows(images, dimension), np.arange(images) // 10, ks=(1, 10)
    ),
    DESCRIBE: lambda images, classes, dimension, batch: partial(describe, rows(classes, dimension)),
    BATCHES: lambda images, classes, dimension, batch: partial(
        batch_plan, np.random.default_rng(0), np.arange(images) // 10, batch, 2
    ),
    ENCODER: encoder_step,
}
PARTS = {
    "images": (SEARCH, BATCHES),
    "classes": (DESCRIBE, PA, SO),
    "dimension": (DESCRIBE, SEARCH, PA, SO),
    "batch": (ENCODER, PA),
}
TITLES = {
    "images": "More images",
    "classes": "More classes",
    "dimension": "More dimensions",
    "batch": "Larger batches",
}


def exponent(sizes: list[int], seconds: list[float]) -> float:
    upper = slice(len(sizes) // 2, None)
    return float(np.polyfit(np.log(sizes[upper]), np.log(seconds[upper]), 1)[0])


def run() -> dict:
    found: dict = {"at": AT, "machine": timing.machine("2 threads")}
    for what, parts in PARTS.items():
        found[what] = {}
        for name in parts:
            sizes = SIZES[what]
            if name == DESCRIBE and what == "classes":
                sizes = [size for size in sizes if size <= MOST_CLASSES_DESCRIBED]
            seconds = []
            for size in sizes:
                call = MAKE[name](**{**AT, what: size})
                seconds.append(timing.spread(timing.take_turns({0: call}, **ROUNDS)[0], digits=7))
            grows = exponent(sizes, [each["median"] for each in seconds])
            found[what][name] = {"sizes": sizes, "seconds": seconds, "exponent": round(grows, 2)}
            print(f"{what}: {name}: {grows:.2f}", flush=True)
    return found


@use_style()
def draw(found: dict) -> Figure:
    """One panel for what grows; a part has its color and mark in all, seconds have one scale."""
    figure = new_figure(13.5, 10.5)
    axes = figure.subplots(2, 2, sharey=True).flat
    looks = {name: look for name, *look in zip(MAKE, PALETTE, "os^DvP", strict=False)}
    alt = []
    for axis, what in zip(axes, PARTS, strict=True):
        for name, part in found[what].items():
            seconds = [row["median"] for row in part["seconds"]]
            label = f"{name}: exponent {part['exponent']:.1f}"
            shade, mark = looks[name]
            axis.loglog(part["sizes"], seconds, color=shade, marker=mark, label=label)
            alt.append(f"{what}, {label}")
        axis.set_title(TITLES[what], loc="left")
        axis.set_xticks(SIZES[what], [f"{size:,}" for size in SIZES[what]])
        axis.set_xticks([], minor=True)
        rest = ", ".join(f"{key} {size:,}" for key, size in AT.items() if key != what)
        axis.set_xlabel(f"{what} ({rest})", fontsize=11)
        axis.legend(loc="upper left", fontsize=11)
        axis.grid(color="#E6E6E6")
    for axis in figure.axes[::2]:
        axis.set_ylabel("seconds")
    low, high = figure.axes[0].get_ylim()
    figure.axes[0].set_ylim(low, 30 * high)  # room for the legends
    return finish(figure, f"Seconds against size. {'; '.join(alt)}.")


def main() -> None:
    parser = timing.parser(__doc__)
    parser.add_argument("--only-draw", action="store_true", help="from the cost.json that is there")
    given = parser.parse_args()
    file = given.out / "cost.json"
    if given.only_draw:
        found = json.loads(file.read_text(encoding="utf-8"))
    else:
        torch.set_num_threads(2)
        found = run()
    figure = draw(found)
    figure.savefig(given.out / "cost.png", dpi=150)
    timing.write(file, {**found, "alt": alt_text(figure)})


if __name__ == "__main__":
    main()
