"""What a training run will do and need, said before it starts: `dry_run`, `estimate`."""

import dataclasses
import time
from dataclasses import dataclass

import torch

from sobook.errors import SobookError
from sobook.losses import SoftOrthogonalProxyAnchor
from sobook.training import run_folder
from sobook.training.config import TrainConfig
from sobook.training.distributed import Processes, choose_device, join
from sobook.training.loop import Trainer
from sobook.training.plan import make_encoder, make_plan

_FEW = 8 * 224 * 224  # pixels in a batch that is timed without a GPU


@dataclass(frozen=True)
class Estimate:
    """What a training run will need.

    >>> print(Estimate(batch_size=180, chunk_size=90, minutes=42.4, peak_bytes=None))
    batches of 180, 90 images at a time: about 42 minutes of training
    """

    batch_size: int
    chunk_size: int | None  # that fits into memory; None: the batch does
    minutes: float
    peak_bytes: float | None  # None on the CPU

    def __str__(self) -> str:
        text = f"batches of {self.batch_size}"
        if self.chunk_size is not None:
            text += f", {self.chunk_size} images at a time"
        text += f": about {self.minutes:.0f} minutes of training"
        if self.peak_bytes is not None:
            text += f", {self.peak_bytes / 1e9:.1f} GB of GPU memory at the peak"
        return text


def estimate(config: TrainConfig, images: int, *, steps: int = 3) -> Estimate:
    """Take a few training steps on random pixels, and say what the whole run will need.

    What is embedded at a time (`chunk_size`) is halved until it fits into memory; the batch stays.
    Reading pictures and evaluating are not counted.

    Args:
        config: of the run to come.
        images: how many there are to train on.
        steps: to be timed, after one to warm up.
    """
    at_once = min(config.batch_size, config.chunk_size or config.batch_size)
    try:
        seconds, peak = _measure(config, steps)
    except torch.cuda.OutOfMemoryError:
        if at_once < 2:
            raise
    else:
        minutes = config.epochs * (images // config.batch_size) * seconds / 60
        return Estimate(config.batch_size, config.chunk_size, minutes, peak)
    torch.cuda.empty_cache()  # here, where the error holds no tensors any more
    return estimate(config.replace(chunk_size=at_once // 2), images, steps=steps)


def dry_run(config: TrainConfig) -> str:
    """Check what a run checks, take a few of its steps, and say what it will do; writes nothing.

    Raises:
        SobookError: what would stop the run, or a batch that does not fit into memory.
    """
    run = run_folder.find(config)
    if run is not None and run.finished:
        return f"{run.path} is finished: it will be opened, not trained."
    device = join(config).device
    plan = make_plan(config, device)
    # Without a GPU time grows with the batch, and a few images tell it soon enough.
    few = config.batch_size
    if device.type != "cuda":
        few = min(few, max(2, _FEW // plan.encoder.image_size**2))
    found = estimate(config.replace(batch_size=few), len(plan.data.train), steps=1)
    if found.chunk_size != config.chunk_size:
        raise SobookError(
            f"batches of {few} do not fit into the memory of {device}: set chunk_size to "
            f"{found.chunk_size}, which keeps the batch, or try gradient_checkpointing."
        )
    resumes = "" if run is None else "; resumes what is there"
    found = dataclasses.replace(found, batch_size=config.batch_size)
    return f"{plan}\nrun folder: {config.folder()}{resumes}\non {device}, in {found}"


def _measure(config: TrainConfig, steps: int) -> tuple[float, float | None]:
    """Seconds of a training step, and the most GPU memory it takes in bytes."""
    device = choose_device(config.device)
    encoder = make_encoder(config.replace(weights=None))
    loss = SoftOrthogonalProxyAnchor(100, encoder.dim, **config.loss_settings)
    # Random weights would not stand a larger rate.
    rates = [(encoder.parameters(), 1e-6), (loss.parameters(), 1e-6)]
    trainer = Trainer(encoder, loss, rates, config, steps=steps + 1, processes=Processes(device))
    shape = (config.batch_size, 3, encoder.image_size, encoder.image_size)
    pixels = torch.randint(256, shape, dtype=torch.uint8, device=device)
    labels = torch.arange(config.batch_size, device=device) % 100
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer.step(0, pixels, labels)
    began = time.perf_counter()
    for step in range(1, steps + 1):
        trainer.step(step, pixels, labels)  # reads the loss, and so waits for a GPU
    seconds = (time.perf_counter() - began) / steps
    return seconds, float(torch.cuda.max_memory_allocated()) if device.type == "cuda" else None
