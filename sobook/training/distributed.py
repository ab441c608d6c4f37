"""One training run on one device or on many: the little that Accelerate leaves to us.

A run over k processes computes the loss of the joint batch. Every process embeds its share, the
embeddings are gathered, and each process computes the same loss from all of them; gradients then
reach each encoder through its own share alone.

Notation: B images in the joint batch, b in the share of one process, k processes.
"""

import contextlib
import os
from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from torch import Tensor

from sobook.data.image_sets import ImageSet
from sobook.encoder import Encoder, embed
from sobook.errors import SobookError, TrainingError
from sobook.training.config import TrainConfig

_PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


def accelerator(config: TrainConfig) -> Accelerator:
    """The `Accelerator` of a run: device, processes, mixed precision, trackers.

    Raises:
        SobookError: a device that is not there, a precision it cannot compute in, or more processes
            than images in a batch.
    """
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if processes > config.batch_size:  # before they meet: one that gives up would cut off others
        raise SobookError(
            f"batch_size is {config.batch_size}, but there are {processes} processes: "
            "each needs at least one image of a batch."
        )
    alone = processes == 1
    # Accelerate keeps its state for the whole life of Python; the next run may want another one.
    AcceleratorState._reset_state(reset_partial_state=alone)
    on_cpu = config.device == "cpu"
    if config.precision == "float16" and (on_cpu or not torch.cuda.is_available()):
        raise SobookError("precision float16 needs a GPU: choose bfloat16 or float32.")
    made = Accelerator(
        cpu=on_cpu,
        mixed_precision=_PRECISIONS[config.precision],
        log_with=config.tracker,
        project_dir=config.folder() if config.tracker else None,
        # the backbone stands still while warming up: its gradients are not to be waited for then
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if config.device is not None and made.device.type != torch.device(config.device).type:
        raise SobookError(
            f"device is {config.device!r}, but training would run on {made.device.type!r}: leave "
            "device out, or start the run where that device is (CUDA_VISIBLE_DEVICES chooses)."
        )
    return made


def share(size: int, accelerator: Accelerator) -> slice:
    """Which of `size` rows belong to this process: as even as can be, in order."""
    ends = np.linspace(0, size, accelerator.num_processes + 1).round().astype(int)
    return slice(ends[accelerator.process_index], ends[accelerator.process_index + 1])


def gather(
    embeddings: Tensor, labels: Tensor, size: int, accelerator: Accelerator
) -> tuple[Tensor, Tensor]:
    """From every process' share to the joint batch: (b, D), (b,) → (B, D), (B,).

    Only the rows of this process carry gradients, multiplied with the number of processes: the
    average over processes, which is how encoders exchange gradients, then gives the gradient of
    the joint loss.
    """
    processes = accelerator.num_processes
    if processes == 1:
        return embeddings, labels
    rows = share(size, accelerator)
    mine = embeddings + (processes - 1) * (embeddings - embeddings.detach())  # same value
    everyone = _gather_rows(embeddings.detach(), size, accelerator)
    joint = torch.cat([everyone[: rows.start], mine, everyone[rows.stop :]])
    return joint, _gather_rows(labels, size, accelerator)


def _gather_rows(rows: Tensor, size: int, accelerator: Accelerator) -> Tensor:
    """Shares may differ by one row, so they are padded to travel and cut again on arrival."""
    longest = -(-size // accelerator.num_processes)
    padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
    parts = accelerator.gather(padded).split(longest)
    ends = np.linspace(0, size, accelerator.num_processes + 1).round().astype(int)
    return torch.cat([part[:n] for part, n in zip(parts, np.diff(ends), strict=True)])


def agree(parameter: Tensor, accelerator: Accelerator) -> None:
    """Average a gradient that every process has computed from the joint batch.

    They are equal up to rounding already; this keeps the rounding from ever adding up.
    """
    if accelerator.num_processes > 1 and parameter.grad is not None:
        parameter.grad = accelerator.reduce(parameter.grad, "mean")


def embed_together(
    encoder: Encoder, image_set: ImageSet, accelerator: Accelerator | None, **options
) -> np.ndarray:
    """`sobook.encoder.embed`, each process a share of the images; every one gets all N rows."""
    if accelerator is None or accelerator.num_processes == 1:
        return embed(encoder, image_set, **options)
    rows = share(len(image_set), accelerator)
    found = embed(encoder, image_set, rows=rows, **{**options, "cache": False})
    return np.concatenate(gather_object([found]))


def share_value(value, accelerator: Accelerator):
    """What the main process has, on every process."""
    if accelerator.num_processes == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


@contextlib.contextmanager
def plain_errors(where) -> Iterator[None]:
    """One sentence instead of a stack of internals where a process or the memory gives out."""
    again = f"; what was trained is in {where}, and the same command goes on from there."
    try:
        yield
    except TrainingError:
        raise
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"the GPU has too little memory ({str(error).splitlines()[0][:120]}): choose a smaller "
            f"batch_size, or gradient_checkpointing{again}"
        ) from None
    except RuntimeError as error:
        text = str(error)
        if torch.distributed.is_initialized() and _is_lost_peer(text):
            raise TrainingError(
                f"another process of this run has died or stopped answering: look at its "
                f"output{again}"
            ) from None
        raise


def _is_lost_peer(text: str) -> bool:
    signs = ("closed by peer", "reset by peer", "gloo", "nccl", "timed out", "broken pipe")
    return any(sign in text.lower() for sign in signs)
