"""One training run on one device or on many: the little that torch and Accelerate leave to us.

A run over k processes computes the loss of the joint batch. Every process embeds its local slice of
the batch, the embeddings are gathered, and each process computes the same loss from all of them;
gradients then reach each encoder through its own slice alone.
Notation: B images in the joint batch, b in the local slice of one process, k processes.
"""

import atexit
import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState, utils
from torch import Tensor, nn

from sobook.data.image_sets import ImageSet
from sobook.embedding import embed
from sobook.encoder import Encoder
from sobook.errors import SobookError, TrainingError, first_line
from sobook.training.config import TrainConfig


@dataclass(frozen=True)
class Processes:
    """The processes that train one run together, seen from one of them; made by `join`.

    One process alone leaves the state alone that Accelerate keeps for the life of Python, so a
    notebook may train in one precision or on one device after another.

    Attributes:
        device: where this process computes.
        count: k.
        rank: of this process, 0..k−1; the main process has 0.
    """

    device: torch.device
    count: int = 1
    rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Return once every process has come here."""
        if self.count > 1:
            PartialState().wait_for_everyone()

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model, whose gradients are averaged across processes during backward."""
        if self.count == 1:
            return model
        return nn.parallel.DistributedDataParallel(
            model,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            find_unused_parameters=True,  # the gradients of a frozen backbone never come
        )

    def local_slice(self, size: int) -> slice:
        """Which of `size` rows belong to this process: as even as can be, in order."""
        ends = np.linspace(0, size, self.count + 1).round().astype(int).tolist()
        return slice(ends[self.rank], ends[self.rank + 1])

    def gather(self, embeddings: Tensor, labels: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """From the local slices to the joint batch: (b, D), (b,) → (B, D), (B,).

        Only the rows of this process carry gradients, multiplied by k: the average across
        processes, which is how encoders exchange gradients, then gives that of the joint loss.
        """
        if self.count == 1:
            return embeddings, labels
        joint = self._gather_rows(embeddings.detach(), size)
        own = embeddings + (self.count - 1) * (embeddings - embeddings.detach())  # same value
        joint[self.local_slice(size)] = own
        return joint, self._gather_rows(labels, size)

    def _gather_rows(self, rows: Tensor, size: int) -> Tensor:
        """(b, …) → (B, …): every process adds its rows to zeros."""
        joint = rows.new_zeros(size, *rows.shape[1:])
        joint[self.local_slice(size)] = rows
        torch.distributed.all_reduce(joint)
        return joint

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Average gradients that every process has computed from the joint batch.

        They are equal up to rounding already; this keeps the rounding from ever adding up.
        """
        for parameter in parameters if self.count > 1 else ():
            if parameter.grad is not None:
                parameter.grad = utils.reduce(parameter.grad, "mean")

    def embed(
        self, encoder: Encoder, images: ImageSet, *, cache: bool, progress: bool = False
    ) -> np.ndarray:
        """(N, D): every process embeds its slice of the images and gets all N rows."""
        if self.count == 1:
            return embed(encoder, images, cache=cache, progress=progress)
        rows = self.local_slice(len(images))
        local = embed(encoder, images, cache=False, progress=progress, rows=rows)  # (n, D)
        return np.concatenate(utils.gather_object([local]))

    def leave(self) -> None:
        """End what connects the processes with Python, not before: another run may follow."""
        if self.count > 1:
            atexit.register(PartialState().destroy_process_group)


def join(config: TrainConfig) -> Processes:
    """Meet the other processes of a run, if it was started by ``accelerate launch`` or torchrun.

    Raises:
        SobookError: a device that is not there, a precision it cannot compute in, more processes
            than images in a batch or than GPUs, or processes that do not meet.
    """
    is_launched = "TORCHELASTIC_RUN_ID" in os.environ or "FORK_LAUNCHED" in os.environ
    rank = int(os.environ.get("RANK", 0)) if is_launched else 0
    count = int(os.environ.get("WORLD_SIZE", 1)) if is_launched else 1
    if count > config.batch_size:  # before they meet: one that gives up would cut off others
        raise SobookError(
            f"batch_size is {config.batch_size}, but there are {count} processes: "
            "each needs at least one image of a batch."
        )
    joined = Processes(choose_device(config.device))
    if count > 1:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", count))
        if joined.device.type == "cuda" and here > torch.cuda.device_count():
            raise SobookError(
                f"{here} processes were started here, where {torch.cuda.device_count()} GPU(s) "
                "are: start one for each, or set device to cpu."
            )
        try:
            state = PartialState(cpu=joined.device.type in ("cpu", "mps"))
        except (RuntimeError, ValueError) as error:  # torch raises either
            raise SobookError(
                f"process {rank} of {count} could not meet the others ({first_line(error)}): "
                "start all of them together, by `accelerate launch` or torchrun."
            ) from None
        if state.num_processes != count:  # e.g. an Accelerator made before
            raise SobookError(
                f"a launcher started {count} processes, but Accelerate sees "
                f"{state.num_processes}: make no Accelerator or PartialState before."
            )
        joined = Processes(state.device, state.num_processes, state.process_index)
    elif os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        warnings.warn(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but no launcher started this process: it "
            "trains alone. For several use `accelerate launch` or torchrun.",
            stacklevel=2,
        )
    if config.precision == "float16" and joined.device.type != "cuda":
        raise SobookError("precision float16 needs a GPU: choose bfloat16 or float32.")
    return joined


def choose_device(name: str | None = None) -> torch.device:
    """The device of that name, or for None a GPU where there is one.

    Raises:
        SobookError: this machine has no such device.
    """
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # torch raises either
        raise SobookError(
            f"device is {name!r}, but cannot be used here ({first_line(error)}): leave device out, "
            "or start the run where that device is."
        ) from None
    return torch.device(name)


@contextlib.contextmanager
def plain_errors(folder: Path) -> Iterator[None]:
    """One sentence instead of a stack of internals where numbers, memory or a process give out."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, TrainingError):
            reason = str(error)
        elif isinstance(error, torch.cuda.OutOfMemoryError) or "allocate memory" in str(error):
            reason = "there is too little memory: set chunk_size or gradient_checkpointing."
        elif type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            reason = f"the encoder could not be compiled ({first_line(error)}): leave compile out."
        elif torch.distributed.is_initialized() and _is_lost_peer(str(error)):
            reason = "another process of this run has died or stopped answering: see its output."
        else:
            raise
        raise TrainingError(
            f"{reason} The last checkpoint is {folder / 'resume.safetensors'}; the same command "
            "resumes from it."
        ) from None


def _is_lost_peer(text: str) -> bool:
    signs = ("closed by peer", "reset by peer", "gloo", "nccl", "timed out", "broken pipe")
    return any(sign in text.lower() for sign in signs)
