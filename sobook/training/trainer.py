"""One step of training, the same for images and for frozen features. Read `Trainer.step`.

Notation: B images in the joint batch, b in the local slice of one process, D embedding dimension.
"""

import contextlib
import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sobook.errors import TrainingError
from sobook.losses import SoftOrthogonalProxyAnchor
from sobook.training.config import BaseConfig
from sobook.training.processes import Processes


class Trainer:
    """Model, loss and optimizer, and one step of them: for images and frozen features alike.

    Args:
        model: maps a batch of inputs to (b, D) embeddings of unit length.
        loss: of embeddings (B, D) and labels (B,); its parameters, the proxies, learn as well.
        rates: parts of the model, and their learning rates; those of the loss are in the config.
        config: batch size, weight decay, schedule, largest gradient norm, the model's precision.
        steps: how many there will be, for the schedule.
        processes: those that share a batch of B images, b each, and the device.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        rates: Iterable[tuple[nn.Module, float]],
        config: BaseConfig,
        *,
        steps: int,
        processes: Processes,
    ):
        self.config, self.steps, self.processes = config, steps, processes
        self.device = processes.device
        self.model: Any = model.to(self.device)
        self.loss: Any = loss.to(self.device)
        self.parameters = [*model.parameters(), *loss.parameters()]
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(rates, loss, config),
            fused=self.device.type == "cpu" or None,  # a third of the time there
        )
        # The loss is not wrapped: every process computes it from the joint batch.
        self._wrapped = processes.wrap(self.model)
        precision = getattr(config, "precision", "float32")
        self._autocast: contextlib.AbstractContextManager = contextlib.nullcontext()
        if precision != "float32":
            self._autocast = torch.autocast(self.device.type, getattr(torch, precision))
        # float16 gradients would vanish without a scale; a disabled scaler passes all through.
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "float16")

    def step(self, step: int, inputs: Tensor, labels: Tensor) -> dict[str, float]:
        """Forward, joint loss, backward, update.

        Args:
            step: 0 … steps − 1, which sets the learning rates.
            inputs: (b, …), the local slice of the batch.
            labels: (b,) int64.

        Returns:
            The parts of the loss, and the norm of the gradient before clipping.

        Raises:
            TrainingError: the loss or the gradient is NaN or infinite.
        """
        for group in self.optimizer.param_groups:
            factor = learning_rate_factor(step, self.steps, self.config.schedule)
            group["lr"] = group["initial_lr"] * factor
        inputs = inputs.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        with self._autocast:
            embeddings = self._embed(inputs)  # (b, D)
        size = self.config.batch_size
        embeddings, labels = self.processes.gather(embeddings, labels, size)  # (B, D), (B,)
        if isinstance(self.loss, SoftOrthogonalProxyAnchor):
            parts = self.loss.parts(embeddings, labels)
        else:
            parts = {"loss": self.loss(embeddings, labels)}
        values = {name: float(value.detach()) for name, value in parts.items()}
        for name, value in values.items():
            _check_finite(name, value, step)

        self.optimizer.zero_grad()
        self._scaler.scale(parts["loss"]).backward()
        self.processes.average_gradients(self.loss.parameters())
        self._scaler.unscale_(self.optimizer)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm))
        if not self._scaler.is_enabled():  # a scaler skips such steps
            _check_finite("the gradient", norm, step)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        return {**values, "gradient_norm": norm}

    def _embed(self, inputs: Tensor) -> Tensor:
        """(b, D) embeddings. In chunks, only the inputs are kept, and backward embeds them again.

        The loss compares every image with every proxy of the batch, so batches cannot be split and
        their gradients added; activations can. Source: Gao et al., arXiv 2101.06983 (GradCache).
        """
        size = getattr(self.config, "chunk_size", None)
        if size is None or len(inputs) <= size:
            return self._wrapped(inputs)
        chunks = inputs.split(size)
        return torch.cat([checkpoint(self._wrapped, part, use_reentrant=False) for part in chunks])

    def state(self) -> dict[str, Tensor]:
        """Everything that resuming needs, flat."""
        parts = {"model": self.model.state_dict(), "loss": self.loss.state_dict()}
        parts["scaler"] = {k: torch.tensor(v) for k, v in self._scaler.state_dict().items()}
        parts |= {str(n): values for n, values in self.optimizer.state_dict()["state"].items()}
        return {f"{part}.{name}": v for part, values in parts.items() for name, v in values.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Load what `state` returned."""
        parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, tensor in tensors.items():
            part, _, name = key.partition(".")
            parts[part][name] = tensor
        self.model.load_state_dict(parts.pop("model"))
        self.loss.load_state_dict(parts.pop("loss"))
        self._scaler.load_state_dict({k: v.item() for k, v in parts.pop("scaler", {}).items()})
        moments = {int(number): values for number, values in parts.items()}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})


def _check_finite(what: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise TrainingError(
            f"{what} became {value} at step {step}: lower the learning rates (lr, head_lr, "
            "proxy_lr), or look at the images of that batch."
        )


def learning_rate_factor(step: int, total: int, schedule: str) -> float:
    """Factor of all learning rates at a step (0 … total − 1).

    >>> [round(learning_rate_factor(step, 4, "cosine"), 2) for step in range(4)]
    [1.0, 0.85, 0.5, 0.15]
    """
    return 1.0 if schedule == "constant" else 0.5 * (1 + math.cos(math.pi * step / total))


def _parameter_groups(
    rates: Iterable[tuple[nn.Module, float]], loss: nn.Module, config: BaseConfig
) -> list[dict[str, Any]]:
    """Groups for the optimizer, each at its rate: matrices, and the rest without weight decay.

    Proxies do decay. Their length changes neither the loss nor a cosine, but the shorter a proxy,
    the further a step turns it: there the decay acts on the effective rate.
    """
    parts = [([*module.parameters()], rate) for module, rate in rates]
    parts.append(([p for p in loss.parameters() if p.ndim], config.proxy_lr))
    parts.append(([p for p in loss.parameters() if not p.ndim], config.threshold_lr))
    groups = []
    for parameters, rate in parts:
        matrices = [p for p in parameters if p.ndim >= 2]
        others = [p for p in parameters if p.ndim < 2]  # norms, biases, a threshold
        for chosen, decay in ((matrices, config.weight_decay), (others, 0.0)):
            group = {"params": chosen, "weight_decay": decay, "lr": rate, "initial_lr": rate}
            groups.append(group)
    return groups
