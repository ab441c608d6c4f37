"""What a training run will do and need, said before it starts: `dry_run`.

`estimate` measures a few steps where the run will be. `reckon` says, without the device, what a run
takes at least, from the operations and bytes it needs and those that the device can do.
"""

import contextlib
import copy
import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from sobook.encoder import Encoder
from sobook.errors import SobookError, check_choice
from sobook.losses import SoftOrthogonalProxyAnchor
from sobook.training import run as run_folder
from sobook.training.config import TrainConfig
from sobook.training.loop import Trainer
from sobook.training.plan import Plan, count_activations, make_encoder, make_plan, step_bytes
from sobook.training.processes import Processes, choose_device, join

_FEW = 8 * 224 * 224  # pixels in a batch that is timed without a GPU
_USABLE = 0.9  # of a GPU's memory; the rest is for its driver and for gaps (our choice)


@dataclass(frozen=True)
class Device:
    """What a device can do, by the sheet of its maker."""

    memory: float  # bytes
    bandwidth: float  # bytes per second
    half: float  # operations per second: matrix products in 16 bits, without sparsity
    single: float  # the same in float32, as torch computes it by default (no TF32)
    has_bfloat16: bool = True  # else half stands for float16


# The GPUs of Colab. Where a sheet gives a peak "with sparsity", half of it stands here.
DEVICES = {
    # https://www.nvidia.com/en-us/data-center/tesla-t4/ (256 bits of memory at 10 Gbit/s each)
    "T4": Device(memory=16e9, bandwidth=320e9, half=65e12, single=8.1e12, has_bfloat16=False),
    # https://www.nvidia.com/en-us/data-center/l4/
    "L4": Device(memory=24e9, bandwidth=300e9, half=121e12, single=30.3e12),
    # https://www.nvidia.com/en-us/data-center/a100/ (40 GB)
    "A100": Device(memory=40e9, bandwidth=1555e9, half=312e12, single=19.5e12),
}


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
    lines = [str(plan), f"run folder: {config.folder()}{resumes}", f"on {device}, in {found}"]
    if device.type == "cpu":
        with contextlib.suppress(RuntimeError):  # of models that cannot be counted without memory
            lines += reckon_elsewhere(plan)
            same = dataclasses.replace(plan, config=config.replace(batch_size=few))
            steps = config.epochs * (len(plan.data.train) // few)
            reckoned = steps * _step_seconds(same, Cost.count(plan.encoder), this_cpu()) / 60
            lines.append(
                "(reckoned at the peak of the device, which nothing reaches: here the same "
                f"reckoning gives {reckoned / found.minutes:.0%} of the time that was measured)"
            )
    return "\n".join(lines)


def reckon_elsewhere(plan: Plan) -> Iterator[str]:
    """One line for each of `DEVICES`."""
    for name, there in DEVICES.items():
        lacks = plan.config.precision == "bfloat16" and not there.has_bfloat16
        where = f"{name} (precision float16)" if lacks else name
        try:
            yield f"on a {where}, by reckoning: {reckon(plan, name)}"
        except SobookError as error:
            yield f"on a {name}: {error}"


@dataclass(frozen=True)
class Reckoning:
    """What a run takes on a device at least; made by `reckon`.

    >>> print(Reckoning(minutes=31.4, peak_bytes=6.4e9, chunk_size=None, disk_bytes=3e10))
    at least 31 minutes, 6.4 GB of memory, 30.0 GB of disk
    """

    minutes: float
    peak_bytes: float
    chunk_size: int | None  # that fits into memory; None: the batch does
    disk_bytes: int

    def __str__(self) -> str:
        text = f"at least {self.minutes:.0f} minutes, {self.peak_bytes / 1e9:.1f} GB of memory"
        if self.chunk_size is not None:
            text += f" with chunk_size {self.chunk_size}"
        return f"{text}, {self.disk_bytes / 1e9:.1f} GB of disk"


def reckon(plan: Plan, device: str) -> Reckoning:
    """What a run takes at least on a device that is not here.

    Time is operations of matrix products over the device's peak, plus bytes moved over its
    bandwidth. Assumed: backward costs two forward passes; a frozen backbone costs one; a chunk or
    gradient checkpointing adds one; every activation is written and read once in forward, and moved
    three times more in backward; a step moves every weight 13 times (gradient, clipping, AdamW);
    evaluation is in float32. Not counted: reading pictures, starting kernels, the search.

    Args:
        plan: of the run.
        device: one of `DEVICES`.

    Raises:
        SobookError: an unknown device, or one that cannot hold a single image.
    """
    check_choice("device", device, DEVICES)
    config, data, there = plan.config, plan.data, DEVICES[device]
    fixed, one = (step_bytes(config, plan.encoder, data.train.num_classes, n) for n in (0, 1))
    fits = int((_USABLE * there.memory - fixed) // (one - fixed))
    if fits < 1:
        raise SobookError(f"a training step of one image needs more memory than a {device} has.")
    at_once = min(config.batch_size, config.chunk_size or config.batch_size, fits)
    chunk_size = at_once if at_once < config.batch_size else None
    plan = dataclasses.replace(plan, config=config.replace(chunk_size=chunk_size))
    image = Cost.count(plan.encoder)
    frozen = min(config.warmup_epochs, config.epochs) * data.batches
    seconds = frozen * _step_seconds(plan, image, there, frozen=True)
    seconds += (config.epochs * data.batches - frozen) * _step_seconds(plan, image, there)
    embedded = sum(len(part) for part in data.test)
    if data.validation is not None:  # before training and after every epoch
        embedded += (config.epochs + 1) * len(data.validation)
    seconds += embedded * image.seconds(there, "float32")
    peak = fixed + at_once * (one - fixed)
    return Reckoning(seconds / 60, peak, chunk_size, sum(plan.disk.values()))


@dataclass(frozen=True)
class Cost:
    """What embedding one image takes."""

    operations: int  # of matrix products
    activations: int  # numbers that the layers make

    @classmethod
    def count(cls, encoder: Encoder) -> "Cost":
        """Count on a copy without any memory."""
        model, side = copy.deepcopy(encoder).to("meta").eval(), encoder.image_size
        images = torch.empty(1, 3, side, side, dtype=torch.uint8, device="meta")
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(images)
        return cls(counter.get_total_flops(), count_activations(encoder))

    def seconds(
        self, there: Device, precision: str, *, forward: int = 1, backward: int = 0
    ) -> float:
        """Of so many passes forward, and of 0 or 1 backward."""
        width, peak = (4, there.single) if precision == "float32" else (2, there.half)
        moved = width * self.activations * (2 * forward + 3 * backward)
        return self.operations * (forward + 2 * backward) / peak + moved / there.bandwidth


def _step_seconds(plan: Plan, image: Cost, there: Device, *, frozen: bool = False) -> float:
    config, encoder, classes = plan.config, plan.encoder, plan.data.train.num_classes
    forward, backward, weights = 1, 0, classes * encoder.dim
    if not frozen:
        recomputed = config.gradient_checkpointing or config.chunk_size is not None
        forward, backward = 1 + recomputed, 1
        weights += sum(weight.numel() for weight in encoder.parameters())
    images = image.seconds(there, config.precision, forward=forward, backward=backward)
    # Of the loss, forward and backward: cosines with all proxies, and their Gram matrix for SO.
    rows = config.batch_size + (encoder.dim if config.so_weight else 0)
    loss = 6 * rows * classes * encoder.dim / there.single
    return config.batch_size * images + 13 * 4 * weights / there.bandwidth + loss


def this_cpu() -> Device:
    """Peak of matrix products and bandwidth of this processor, measured in a second."""
    matrix, numbers = torch.ones(1024, 1024), torch.ones(2**24)
    short, into = matrix.bfloat16(), torch.empty_like(numbers)
    return Device(
        memory=0,
        bandwidth=2 * 4 * len(numbers) / _best_seconds(lambda: into.copy_(numbers)),  # both ways
        half=2 * len(short) ** 3 / _best_seconds(lambda: short @ short),
        single=2 * len(matrix) ** 3 / _best_seconds(lambda: matrix @ matrix),
    )


def _best_seconds(work: Callable[[], object], repeats: int = 5) -> float:
    def seconds() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return min(seconds() for _ in range(repeats))


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
