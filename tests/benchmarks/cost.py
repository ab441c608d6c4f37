"""Cost against size: times of the parts that grow, and the exponents that describe them.

    python -m tests.benchmarks.cost

writes cost.json and cost.png. Images, classes, dimension and batch grow one at a time, everything
else stays at the size of a small Stanford Online Products. An exponent e means that ten times the
size takes 10ᵉ times as long; it is fitted to the upper half of the sizes, where the work outweighs
what each call costs.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from sobook import geometry
from sobook.data.loader import batch_plan
from sobook.encoder import Encoder
from sobook.figures.style import (
    PALETTE,
    Figure,
    alt_text,
    finish,
    new_figure,
    use_style,
)
from sobook.losses import ProxyAnchor, soft_orthogonality
from sobook.retrieval import evaluate

SIZES = {
    "images": [1_000, 3_000, 10_000, 30_000, 100_000],
    "classes": [100, 1_000, 10_000, 30_000, 100_000],
    "dimension": [64, 128, 256, 512, 1024],
    "batch": [30, 60, 120, 240, 480],
}
AT = {"images": 10_000, "classes": 10_000, "dimension": 128, "batch": 180}
MOST_CLASSES_DESCRIBED = 30_000  # all pairs of 100,000 would be 40 GB
SECONDS, FEWEST, MOST = 3, 2, 7  # rounds, after one to warm up: as many as these seconds hold


def training_step(size: dict[str, int], term: str) -> Callable[[], object]:
    """Forward and backward of one term of the loss."""
    loss = ProxyAnchor(size["classes"], size["dimension"])
    x = torch.randn(size["batch"], size["dimension"], requires_grad=True)
    labels = torch.randint(size["classes"], (size["batch"],))

    def step():
        x.grad = loss.proxies.grad = None
        value = loss(x, labels) if term == "PA" else soft_orthogonality(loss.proxies)
        value.backward()

    return step


def encoder_step(size: dict[str, int]) -> Callable[[], object]:
    encoder = Encoder.create("deit_micro_patch8_64", dim=size["dimension"]).train()
    pictures = torch.randn(size["batch"], 3, 64, 64)

    def step():
        encoder.zero_grad()
        encoder(pictures).square().sum().backward()

    return step


def evaluation(size: dict[str, int]) -> Callable[[], object]:
    labels = np.arange(size["images"]) // 10
    rows = np.random.default_rng(0).standard_normal((size["images"], size["dimension"]))
    rows = rows.astype(np.float32)
    return lambda: evaluate(rows, labels, ks=(1, 10))


def an_epoch_of_batches(size: dict[str, int]) -> Callable[[], object]:
    labels = np.arange(size["images"]) // 10
    return lambda: batch_plan(np.random.default_rng(0), labels, size["batch"], 2)


def description(size: dict[str, int]) -> Callable[[], object]:
    proxies = np.random.default_rng(0).standard_normal((size["classes"], size["dimension"]))
    return lambda: geometry.describe(proxies)


PA, SO, SEARCH = "Proxy Anchor, a step", "SO, a step", "evaluation by exact search"
DESCRIBE, BATCHES, ENCODER = "describe: all pairs", "an epoch's batches", "micro DeiT, a step"
MAKE = {
    PA: lambda size: training_step(size, "PA"),
    SO: lambda size: training_step(size, "SO"),
    SEARCH: evaluation,
    DESCRIBE: description,
    BATCHES: an_epoch_of_batches,
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


def measure(make: Callable, size: dict[str, int]) -> dict[str, float]:
    """Seconds: median of a few rounds with the least and most, after one to warm up."""
    torch.manual_seed(0)
    step, times = make(size), []
    step()
    while len(times) < FEWEST or (len(times) < MOST and sum(times) < SECONDS):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return {"median": float(np.median(times)), "least": min(times), "most": max(times)}


def exponent(sizes: list[int], seconds: list[float]) -> float:
    upper = slice(len(sizes) // 2, None)
    return float(np.polyfit(np.log(sizes[upper]), np.log(seconds[upper]), 1)[0])


def run() -> dict:
    found: dict = {"at": AT, "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}"}
    for what, parts in PARTS.items():
        found[what] = {}
        for name in parts:
            sizes = SIZES[what]
            if name == DESCRIBE and what == "classes":
                sizes = [size for size in sizes if size <= MOST_CLASSES_DESCRIBED]
            rows = [measure(MAKE[name], {**AT, what: size}) for size in sizes]
            grows = exponent(sizes, [row["median"] for row in rows])
            found[what][name] = {"sizes": sizes, "seconds": rows, "exponent": round(grows, 2)}
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/results"))
    parser.add_argument("--only-draw", action="store_true", help="from the cost.json that is there")
    given = parser.parse_args()
    file = given.out / "cost.json"
    if not given.only_draw:
        torch.set_num_threads(2)
        file.write_text(json.dumps(run(), indent=1) + "\n", encoding="utf-8")
    found = json.loads(file.read_text(encoding="utf-8"))
    figure = draw(found)
    figure.savefig(given.out / "cost.png", dpi=150)
    found["alt"] = alt_text(figure)
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
