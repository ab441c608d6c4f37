"""A training step taken apart: where its time goes, and what chunks cost.

    python -m tests.benchmarks.step

Needs two idle cores and some minutes. Notation: B batch, C classes, D embedding dimension.
"""

from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from pytorch_metric_learning.losses import ProxyAnchorLoss
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from sobook.encoder import Encoder
from sobook.losses import ProxyAnchor, SoftOrthogonalProxyAnchor, soft_orthogonality
from sobook.training.config import TrainConfig
from sobook.training.processes import Processes
from sobook.training.trainer import Trainer
from tests.benchmarks import timing

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
LOSSES = [(11_318, 384), (11_318, 512), (100_000, 512)]  # C, D; B is 180
CHUNKS = {
    "micro DeiT, 64 pixels, B 180": ((90, 30), {**MICRO, "batch_size": 180}),
    "DeiT-Tiny, 128 pixels, B 60": ((30, 10), {**TINY, "batch_size": 60}),
}


# --- Steps that other benchmarks time as well ----------------------------------------------------


def forward_and_backward(loss: Callable[[], Tensor], *inputs: Tensor) -> Callable[[], float]:
    """A call that computes a loss and its gradients by the inputs, and returns its value."""

    def step() -> float:
        for tensor in inputs:
            tensor.grad = None
        value = loss()
        value.backward()
        return value.item()

    return step


def anchor_step(classes: int, dim: int, batch: int = 180, make=ProxyAnchor) -> Callable[[], float]:
    torch.manual_seed(0)
    loss, x = make(classes, dim), torch.randn(batch, dim, requires_grad=True)
    labels = torch.randint(classes, (batch,))
    return forward_and_backward(partial(loss, x, labels), x, loss.proxies)


def orthogonality_step(classes: int, dim: int, make=soft_orthogonality) -> Callable[[], float]:
    torch.manual_seed(0)
    proxies = torch.randn(classes, dim, requires_grad=True)
    return forward_and_backward(partial(make, proxies), proxies)


def trainer(steps: int = 1000, **settings) -> tuple[Trainer, Callable[[], object]]:
    """A trainer, and its step on random pictures of 100 classes."""
    torch.manual_seed(0)
    config = TrainConfig(weights=None, proxy_lr=1e-6, so_weight=100.0, device="cpu", **settings)
    encoder = Encoder.create(config.encoder, dim=config.dim, **config.encoder_options)
    if config.compile:
        encoder.backbone.compile()
    loss = SoftOrthogonalProxyAnchor(100, encoder.dim, **config.loss_settings)
    alone = Processes(torch.device("cpu"))
    made = Trainer(encoder, loss, [(encoder, 1e-6)], config, steps=steps, processes=alone)
    shape = (config.batch_size, 3, encoder.image_size, encoder.image_size)
    pixels = torch.randint(256, shape, dtype=torch.uint8)
    return made, partial(made.step, 0, pixels, torch.arange(config.batch_size) % 100)


# --- The parts of the page -----------------------------------------------------------------------


def parts_of_a_step(rounds: int, batch: int = 40) -> dict:
    """Shares of the time of all operations, and the products' rate beside the peak."""
    made, step = trainer(batch_size=batch, **MICRO)
    matrix = torch.ones(1024, 1024)
    times = timing.take_turns({"step": step, "product": lambda: matrix @ matrix}, rounds)
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(rounds):
            step()
    shares = dict.fromkeys([*KINDS, "everything else"], 0.0)
    for event in recorded.key_averages():
        fits = (kind for kind, words in KINDS.items() if any(word in event.key for word in words))
        shares[next(fits, "everything else")] += event.self_cpu_time_total / 1e6 / rounds
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        made.model(torch.zeros(batch, 3, 64, 64, dtype=torch.uint8))
    operations = 3 * counter.get_total_flops()  # backward costs two forward passes
    seconds, peak = median(times["step"]), 2 * 1024**3 / min(times["product"])
    in_products = operations / shares["products of matrices"] / peak
    return {
        "batch": batch,
        "shares": {name: round(took / sum(shares.values()), 3) for name, took in shares.items()},
        "images per second": round(batch / seconds, 1),
        "of the peak of matrix products": round(operations / seconds / peak, 3),
        "in products alone, of the peak": round(in_products, 3),
        "peak, GFLOP/s": round(peak / 1e9, 1),
    }


def in_channels_last(batch: int) -> Callable[[], object]:
    made, step = trainer(batch_size=batch, **MICRO)
    made.model.to(memory_format=torch.channels_last)
    epoch, pixels, labels = step.args
    return partial(made.step, epoch, pixels.contiguous(memory_format=torch.channels_last), labels)


def variants(rounds: int) -> dict:
    """Images per second of what might be faster, as ratios to the plain step in the same round."""
    sizes = {f"batches of {size}": size for size in (20, 80, 180)}
    steps = {
        "plain": trainer(batch_size=40, **MICRO)[1],
        "compiled": trainer(batch_size=40, compile=True, **MICRO)[1],
        "bfloat16": trainer(batch_size=40, precision="bfloat16", **MICRO)[1],
        "channels_last": in_channels_last(40),
        **{name: trainer(batch_size=size, **MICRO)[1] for name, size in sizes.items()},
    }
    found = {}
    times = timing.take_turns(steps, rounds)
    for name in steps:
        slower = timing.ratios(times["plain"], times[name])
        found[name] = timing.spread([sizes.get(name, 40) / 40 * ratio for ratio in slower])
    return found


def losses(rounds: int) -> dict:
    """Both terms, forward and backward, over the products of matrices that they cannot do without.

    Proxy Anchor also beside pytorch-metric-learning's.
    """
    compared = {
        "Proxy Anchor / its products": ("PA", "products of PA"),
        "pytorch-metric-learning / Proxy Anchor": ("pytorch-metric-learning", "PA"),
        "SO / its products": ("SO", "products of SO"),
    }
    found = {}
    for classes, dim in LOSSES:
        steps = {
            "PA": anchor_step(classes, dim),
            "pytorch-metric-learning": anchor_step(classes, dim, make=ProxyAnchorLoss),
            "products of PA": products(180, classes, dim),
            "SO": orthogonality_step(classes, dim),
            "products of SO": products(dim, classes, dim),
        }
        times = timing.take_turns(steps, rounds)
        found[f"C {classes:,}, D {dim}, B 180"] = {
            name: timing.spread(timing.ratios(times[first], times[second]))
            for name, (first, second) in compared.items()
        }
    return found


def products(rows: int, classes: int, dim: int) -> Callable[[], object]:
    """Rows times proxies, and the two products of its gradient."""
    x, proxies = torch.randn(rows, dim), torch.randn(classes, dim)
    gradient = torch.randn(rows, classes)
    return lambda: (x @ proxies.T, gradient @ proxies, gradient.T @ x)


def chunks(rounds: int) -> dict:
    """Gradient caching: time of a step in chunks over that of the plain step, and its exactness."""
    found: dict = {}
    for name, (sizes, settings) in CHUNKS.items():
        steps = {size: trainer(chunk_size=size, **settings)[1] for size in (None, *sizes)}
        times, plain, found[name] = timing.take_turns(steps, rounds), gradients(**settings), {}
        for size in sizes:
            row = timing.spread(timing.ratios(times[size], times[None]))
            apart = (gradients(chunk_size=size, **settings) - plain).norm() / plain.norm()
            found[name][f"chunks of {size}"] = {
                **row,
                "relative change of the gradient": float(apart),
            }
    return found


def gradients(**settings) -> Tensor:
    """All gradients of the first step, as one vector."""
    made, step = trainer(1, clip_norm=1e9, **settings)
    step()
    return torch.cat([p.grad.flatten() for p in made.parameters if p.grad is not None])


def main() -> None:
    parser = timing.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(2)
    found: dict = {"machine": timing.machine("2 threads")}
    for part in (parts_of_a_step, variants, losses, chunks):
        found[part.__name__] = part(given.rounds)
        print(part.__name__, found[part.__name__], flush=True)
    timing.write(given.out / "step.json", found)


if __name__ == "__main__":
    main()
