"""One training run on one device or on many: what torch.distributed leaves to us.

A run over k processes computes the loss of the joint batch. Every process embeds its local slice of
the batch, the embeddings are gathered, and each process computes the same loss from all of them;
gradients then reach each encoder through its own slice alone.
Notation: B images in the joint batch, b in the local slice of one process, k processes.
"""

import atexit
import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sobook.data.image_sets import ImageSet
from sobook.embedding import embed
from sobook.encoder import Encoder
from sobook.errors import SobookError, first_line


@dataclass(frozen=True)
class Processes:
    """The processes that train one run together, seen from one of them; made by `join`.

    Attributes:
        device: where this process computes.
        count: k.
        rank: of this process, 0..k−1; the main process, which alone writes, has 0.
    """

    device: torch.device
    count: int = 1
    rank: int = 0

    def wait(self) -> None:
        """Return once every process has reached this call."""
        if self.count > 1:
            dist.barrier()

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
        own, joint = self.local_slice(size), []
        for rows in (embeddings.detach(), labels):  # every process adds its rows to zeros
            joint.append(rows.new_zeros(size, *rows.shape[1:]))
            joint[-1][own] = rows
            dist.all_reduce(joint[-1])
        # The same value, and k times the gradient.
        joint[0][own] = embeddings + (self.count - 1) * (embeddings - embeddings.detach())
        return joint[0], joint[1]

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Average gradients that every process has computed from the joint batch.

        They are equal up to rounding already; this keeps the rounding from ever adding up.
        """
        for parameter in parameters if self.count > 1 else ():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= self.count

    def embed(
        self, encoder: Encoder, images: ImageSet, *, cache: bool, progress: bool = False
    ) -> np.ndarray:
        """(N, D): every process embeds its slice of the images and gets all N rows."""
        if self.count == 1:
            return embed(encoder, images, cache=cache, progress=progress)
        rows = self.local_slice(len(images))
        parts: list[np.ndarray] = [np.empty(0)] * self.count
        local = embed(encoder, images, cache=False, progress=progress, rows=rows)  # (n, D)
        dist.all_gather_object(parts, local)
        return np.concatenate(parts)


def launched() -> tuple[int, int]:
    """Rank and number of the processes that torchrun started together; (0, 1) without it.

    A rank or size alone says nothing: schedulers leave them behind for every command.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def join(device: str | None = None) -> Processes:
    """Meet the other processes of a run, if torchrun started several.

    Args:
        device: as for `choose_device`.

    Raises:
        SobookError: a device that is not there, e.g. for more processes than GPUs.
    """
    chosen, (rank, count) = choose_device(device), launched()
    if count == 1:
        return Processes(chosen)
    if chosen.type == "cuda":
        chosen = choose_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(chosen)
    elif chosen.type == "mps":  # gloo knows the CPU only
        chosen = torch.device("cpu")
    if not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)  # with Python: another run may follow
    return Processes(chosen, count, rank)


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
