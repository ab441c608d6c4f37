"""One step of training, the same for images and for frozen features.

`Trainer.step` is the loop that the course explains: forward, loss, backward, update. It knows
nothing of data sets, epochs, and files; those are in `loop` for fine-tuning, and in
`sobook.studies.frozen` for heads on frozen features.

Notation: B images in a batch, b of them in the local slice of one process, D embedding dimension.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sobook.data.loader import mix_seeds
from sobook.encoder import Encoder
from sobook.errors import SobookError, TrainingError
from sobook.losses import SoftOrthogonalProxyAnchor
from sobook.training.config import BaseConfig, TrainConfig
from sobook.training.distributed import Processes


class Trainer:
    """What learns, and how it takes a step: the same for images and for frozen features.

    Args:
        model: maps a batch of inputs to (b, D) embeddings of unit length.
        loss: of embeddings (B, D) and labels (B,); its parameters, the proxies, learn as well.
        rates: pairs of a module and its learning rate.
        config: batch size, weight decay, schedule, largest gradient norm, seed.
        steps: how many there will be, for the schedule.
        processes: those that share a batch, and the device.
        precision: of the model; the loss is computed in float32.
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
        precision: str = "float32",
    ):
        self.config, self.steps, self.processes = config, steps, processes
        self.device, self.precision = processes.device, getattr(torch, precision)
        self.bare_model, self.loss = model.to(self.device), loss.to(self.device)
        self.parameters = [*model.parameters(), *loss.parameters()]
        self.optimizer = torch.optim.AdamW(
            parameter_groups(rates, config.weight_decay),
            fused=self.device.type == "cpu" or None,  # a third of the time there
        )
        # The loss is not wrapped: every process computes it from the joint batch.
        self.model = processes.wrap(self.bare_model)
        # float16 gradients would vanish without a scale; a disabled scaler passes all through.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "float16")

    def step(self, step: int, inputs: Tensor, labels: Tensor) -> dict[str, float]:
        """Forward, joint loss, backward, update.

        Args:
            step: 0 … steps − 1; rates and random numbers depend on it alone.
            inputs: (b, …), the local slice of the batch.
            labels: (b,) int64.

        Returns:
            The parts of the loss, and the norm of the gradient before clipping.

        Raises:
            TrainingError: an embedding, the loss or the gradient is NaN or infinite.
        """
        for group in self.optimizer.param_groups:
            factor = learning_rate_factor(step, self.steps, self.config.schedule)
            group["lr"] = group["initial_lr"] * factor
        # Dropout and the like depend on the step, not on what was drawn before it.
        seed = mix_seeds(self.config.seed, step, self.processes.rank)
        if self.device.type == "cpu":  # the other call seeds GPUs too: a tenth of a head's step
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

        inputs = inputs.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        with torch.autocast(
            self.device.type, self.precision, enabled=self.precision != torch.float32
        ):
            embeddings = self.model(inputs)  # (b, D)
        size = self.config.batch_size
        embeddings, labels = self.processes.gather(embeddings, labels, size)  # (B, D), (B,)
        _check_finite("an embedding", float(embeddings.detach().sum()), step)
        if isinstance(self.loss, SoftOrthogonalProxyAnchor):
            parts = self.loss.parts(embeddings, labels)
        else:
            parts = {"loss": self.loss(embeddings, labels)}
        values = {name: float(value.detach()) for name, value in parts.items()}
        for name, value in values.items():
            _check_finite(name, value, step)

        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(parts["loss"]).backward()
        self.processes.average_gradients(self.loss.parameters())
        self.scaler.unscale_(self.optimizer)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm))
        if not self.scaler.is_enabled():  # a scaler skips such steps
            _check_finite("the gradient", norm, step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return {**values, "gradient_norm": norm}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that resuming needs: tensors by name, and the state of the scaler."""
        tensors = {f"model.{key}": value for key, value in self.bare_model.state_dict().items()}
        tensors |= {f"loss.{key}": value for key, value in self.loss.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{key}": value for key, value in state.items()}
        return tensors, self.scaler.state_dict()

    def load(self, tensors: dict[str, Tensor], scaler: dict[str, Any]) -> None:
        """Load what `state` returned."""

        def part(name: str) -> dict[str, Tensor]:
            return {k.partition(".")[2]: v for k, v in tensors.items() if k.startswith(f"{name}.")}

        self.bare_model.load_state_dict(part("model"))
        self.loss.load_state_dict(part("loss"))
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in part("optimizer").items():
            number, _, name = key.partition(".")
            state.setdefault(int(number), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        self.scaler.load_state_dict(scaler)


def _check_finite(what: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise TrainingError(
            f"{what} became {value} at step {step}: lower the learning rates (lr, head_lr, "
            "proxy_lr), or look at the images of that batch."
        )


def learning_rate_factor(step: int, total: int, schedule: str) -> float:
    """What the learning rates are multiplied with at a step (0 … total − 1).

    >>> [round(learning_rate_factor(step, 4, "cosine"), 2) for step in range(4)]
    [1.0, 0.85, 0.5, 0.15]
    """
    return 1.0 if schedule == "constant" else 0.5 * (1 + math.cos(math.pi * step / total))


def parameter_groups(
    rates: Iterable[tuple[nn.Module, float]], weight_decay: float
) -> list[dict[str, Any]]:
    """Groups for the optimizer: each module at its own rate, norms and biases without decay.

    Proxies do decay. Their length changes neither the loss nor a cosine, but the shorter a proxy,
    the further a step turns it: there the decay acts on the effective rate.

    Args:
        rates: pairs of a module and its learning rate.
        weight_decay: of parameters with two dimensions or more.
    """
    groups = []
    for module, rate in rates:
        for decays in (True, False):
            params = [p for p in module.parameters() if (p.ndim >= 2) == decays]
            decay = weight_decay if decays else 0.0
            if params:
                group = {"params": params, "lr": rate, "initial_lr": rate, "weight_decay": decay}
                groups.append(group)
    return groups


def make_encoder(config: TrainConfig) -> Encoder:
    """The encoder of a run, before training."""
    encoder = Encoder.create(
        config.encoder,
        dim=config.dim,
        weights=config.weights,
        image_size=config.image_size,
        token=config.token,
    )
    if config.gradient_checkpointing:
        enable = getattr(encoder.backbone, "set_grad_checkpointing", None)
        if enable is None:
            raise SobookError(f"{config.encoder} has no gradient checkpointing: leave it out.")
        enable()
    if config.compile:
        encoder.backbone.compile()  # in place: names of the weights stay
    return encoder


def make_loss(config: BaseConfig, num_classes: int, dim: int) -> SoftOrthogonalProxyAnchor:
    """The loss of a run, with C = `num_classes` proxies in D = `dim` dimensions."""
    return SoftOrthogonalProxyAnchor(
        num_classes,
        dim,
        margin=config.margin,
        scale=config.scale,
        so_weight=config.so_weight,
        so_reduction=config.so_reduction,
    )
