"""A training step taken apart: where its time goes, and what chunks cost.

    python -m tests.benchmarks.step

Whatever is compared takes turns. Needs two idle cores and some minutes.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from pytorch_metric_learning.losses import ProxyAnchorLoss
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from sobook.encoder import Encoder
from sobook.losses import ProxyAnchor, SoftOrthogonalProxyAnchor, soft_orthogonality
from sobook.training.config import TrainConfig
from sobook.training.processes import Processes
from sobook.training.trainer import Trainer

CPU = torch.device("cpu")
MICRO = {"encoder": "deit_micro_patch8_64", "image_size": 64}
TINY = {"encoder": "deit_tiny_patch16_224", "image_size": 128}
# What an operation of torch belongs to, by a part of its name; the first that fits.
KINDS = {
    "products of matrices": ("addmm", "::mm", "bmm", "convolution", "mkldnn"),
    "attention": ("scaled_dot_product", "flash_attention", "softmax"),
    "LayerNorm": ("layer_norm",),
    "GELU": ("gelu",),
    "optimizer, clipping": ("adamw", "foreach", "Optimizer", "norm", "clip"),
}


def trainer(steps: int, **settings) -> tuple[Trainer, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    config = TrainConfig(weights=None, so_weight=100.0, proxy_lr=1e-6, device="cpu", **settings)
    encoder = Encoder.create(config.encoder, dim=config.dim, **config.encoder_options)
    if config.compile:
        encoder.backbone.compile()
    loss = SoftOrthogonalProxyAnchor(100, encoder.dim, **config.loss_settings)
    made = Trainer(encoder, loss, [(encoder, 1e-6)], config, steps=steps, processes=Processes(CPU))
    shape = (config.batch_size, 3, encoder.image_size, encoder.image_size)
    pixels = torch.randint(256, shape, dtype=torch.uint8)
    return made, pixels, torch.arange(config.batch_size) % 100


def stepper(**settings) -> Callable[[], object]:
    made, pixels, labels = trainer(1000, **settings)
    return lambda: made.step(0, pixels, labels)


def take_turns(calls: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, in turn, after one call to warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def spread(values: list[float], digits: int = 3) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), digits),
        "least": round(min(values), digits),
        "most": round(max(values), digits),
    }


def parts_of_a_step(batch: int = 40) -> dict:
    """Shares of the time of all operations, and the products' rate beside the peak."""
    made, pixels, labels = trainer(1000, batch_size=batch, **MICRO)
    for _ in range(3):
        made.step(0, pixels, labels)
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(10):
            made.step(0, pixels, labels)
    shares: dict[str, float] = dict.fromkeys([*KINDS, "everything else"], 0.0)
    for event in recorded.key_averages():
        fits = (kind for kind, words in KINDS.items() if any(word in event.key for word in words))
        shares[next(fits, "everything else")] += event.self_cpu_time_total / 1e6 / 10
    total = sum(shares.values())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        made.model(pixels)
    operations = 3 * counter.get_total_flops()  # backward costs two forward passes
    seconds = statistics.median(take_turns({"": lambda: made.step(0, pixels, labels)}, 10)[""])
    matrix = torch.ones(1024, 1024)
    peak = 2 * 1024**3 / min(take_turns({"": lambda: matrix @ matrix}, 10)[""])
    return {
        "batch": batch,
        "shares": {name: round(took / total, 3) for name, took in shares.items()},
        "images per second": round(batch / seconds, 1),
        "of the peak of matrix products": round(operations / seconds / peak, 3),
        "in products alone, of the peak": round(
            operations / shares["products of matrices"] / peak, 3
        ),
        "peak, GFLOP/s": round(peak / 1e9, 1),
    }


def variants(rounds: int = 7) -> dict:
    """Images per second of what might be faster, as ratios to the plain step in the same round."""
    made: dict[str, Callable] = {
        "plain": stepper(batch_size=40, **MICRO),
        "compiled": stepper(batch_size=40, compile=True, **MICRO),
        "bfloat16": stepper(batch_size=40, precision="bfloat16", **MICRO),
        "channels_last": in_channels_last(40),
        "batches of 20": stepper(batch_size=20, **MICRO),
        "batches of 80": stepper(batch_size=80, **MICRO),
        "batches of 180": stepper(batch_size=180, **MICRO),
    }
    images = {name: int(name.rpartition(" ")[2]) if "of " in name else 40 for name in made}
    times = take_turns(made, rounds)
    speeds = {name: [images[name] / took for took in times[name]] for name in made}
    return {
        name: spread([a / b for a, b in zip(speeds[name], speeds["plain"], strict=True)])
        for name in made
    }


def in_channels_last(batch: int) -> Callable[[], object]:
    made, pixels, labels = trainer(1000, batch_size=batch, **MICRO)
    made.model.to(memory_format=torch.channels_last)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    return lambda: made.step(0, pixels, labels)


def chunks(rounds: int = 5) -> dict:
    """Gradient caching: time of a step in chunks over that of the plain step, and its exactness."""
    found = {}
    for name, sizes, settings in [
        ("micro DeiT, 64 pixels, B 180", (90, 30), {**MICRO, "batch_size": 180}),
        ("DeiT-Tiny, 128 pixels, B 60", (30, 10), {**TINY, "batch_size": 60}),
    ]:
        made = {"plain": stepper(**settings)}
        made |= {f"chunks of {size}": stepper(chunk_size=size, **settings) for size in sizes}
        times = take_turns(made, rounds)
        found[name] = {
            chunk: spread([a / b for a, b in zip(times[chunk], times["plain"], strict=True)])
            for chunk in made
            if chunk != "plain"
        }
        plain = gradients(**settings)
        for size in sizes:
            apart = (gradients(chunk_size=size, **settings) - plain).norm() / plain.norm()
            found[name][f"chunks of {size}"]["relative change of the gradient"] = float(apart)
    return found


def gradients(**settings) -> torch.Tensor:
    """All gradients of the first step, as one vector."""
    made, pixels, labels = trainer(1, **{**settings, "clip_norm": 1e9})
    made.step(0, pixels, labels)
    return torch.cat([p.grad.flatten() for p in made.parameters if p.grad is not None])


def losses(rounds: int = 9) -> dict:
    """Both terms, forward and backward, over the products of matrices that they cannot do without.

    Proxy Anchor also beside pytorch-metric-learning's.
    """
    found = {}
    for classes, dim in [(11_318, 384), (11_318, 512), (100_000, 512)]:
        torch.manual_seed(0)
        ours, usual = ProxyAnchor(classes, dim), ProxyAnchorLoss(classes, dim)
        usual.proxies.data.copy_(ours.proxies.data)
        x, labels = torch.randn(180, dim, requires_grad=True), torch.randint(classes, (180,))
        made = {
            "PA": loss_step(partial(ours, x, labels), x, ours.proxies),
            "pytorch-metric-learning": loss_step(partial(usual, x, labels), x, usual.proxies),
            "products of PA": products(180, classes, dim),
            "SO": loss_step(partial(soft_orthogonality, ours.proxies), ours.proxies),
            "products of SO": products(dim, classes, dim),
        }
        times = take_turns(made, rounds)
        ratios = {
            "Proxy Anchor / its products": ("PA", "products of PA"),
            "pytorch-metric-learning / Proxy Anchor": ("pytorch-metric-learning", "PA"),
            "SO / its products": ("SO", "products of SO"),
        }
        found[f"C {classes:,}, D {dim}, B 180"] = {
            name: spread([a / b for a, b in zip(times[one], times[other], strict=True)])
            for name, (one, other) in ratios.items()
        }
    return found


def loss_step(loss: Callable[[], torch.Tensor], *inputs: torch.Tensor) -> Callable[[], object]:
    def step():
        for tensor in inputs:
            tensor.grad = None
        loss().backward()

    return step


def products(rows: int, classes: int, dim: int) -> Callable[[], object]:
    """Rows times proxies, and the two products of its gradient."""
    x, proxies = torch.randn(rows, dim), torch.randn(classes, dim)
    gradient = torch.randn(rows, classes)
    return lambda: (x @ proxies.T, gradient @ proxies, gradient.T @ x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/results"))
    given = parser.parse_args()
    torch.set_num_threads(2)
    found: dict = {"machine": f"{os.cpu_count()} CPU cores, {platform.machine()}, 2 threads"}
    with TemporaryDirectory() as temporary:
        os.environ["SOBOOK_DATA"] = temporary
        for part in (parts_of_a_step, variants, losses, chunks):
            found[part.__name__] = part()
            print(json.dumps(found[part.__name__], indent=1), flush=True)
    text = json.dumps(found, indent=1, ensure_ascii=False)
    (given.out / "step.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
