"""The training loop: a config in, a run folder out, on one device or on many.

Read `fit`, `FineTuning.train`, `FineTuning.epoch`, `Trainer.step`. A run that was stopped, at any
moment, resumes and ends with the weights of one that never was: batches depend on (seed, epoch,
batch) alone, random numbers and rates on the step alone; `resume.safetensors` holds the rest.
"""

import contextlib
import math
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from tqdm.auto import tqdm

from sobook import geometry
from sobook.data import image_sets, loader, pixels
from sobook.encoder import Encoder
from sobook.errors import SobookError, TrainingError
from sobook.losses import SoftOrthogonalProxyAnchor
from sobook.retrieval import Retrieval, evaluate
from sobook.training import processes as distributed, run as run_folder
from sobook.training.config import BaseConfig, TrainConfig
from sobook.training.mirror import Mirror
from sobook.training.plan import check_retrievable, make_plan, training_side, wanted_ks
from sobook.training.processes import Processes
from sobook.training.run import Run
from sobook.training.tracker import Tracker


def fit(config: TrainConfig, *, progress: bool = True) -> Run:
    """Train, or resume training, or, when the run is finished already, just open it.

    On several devices start it by ``accelerate launch -m sobook train …``, or from a notebook by
    ``accelerate.notebook_launcher(fit, (config,))``; every process needs to see the run folder.

    Args:
        config: the settings.
        progress: show a bar.

    Returns:
        The finished `Run`: the epoch kept by `config.selection` evaluated on the test classes.

    Raises:
        SobookError: settings or data that make no sense together.
        RunError: the folder belongs to a run with other settings, or cannot be written.
        TrainingError: the loss became NaN or infinite, memory ran out, a process died.
    """
    if not isinstance(config, TrainConfig):
        raise SobookError(f"fit takes a TrainConfig, not {type(config).__name__}.")
    run = run_folder.find(config) or Run(config.folder(), config)
    if run.finished:
        Mirror(run).keep()  # where the last copy failed
        return run
    with distributed.plain_errors(run.path):
        processes = distributed.join(config)
        # What cannot work fails here, before there is a folder.
        training = FineTuning(run, processes)
        with run_folder.held(run.path) if processes.is_main else contextlib.nullcontext():
            if processes.is_main:
                training.copies.restore()
                run_folder.create(config)
            processes.wait()
            if not run.finished:  # else another program has trained it meanwhile
                training.train(progress and processes.is_main)
            processes.wait()  # nobody reads, or leaves, before the main process has written
        processes.leave()
    return run


class FineTuning:
    """A run while it trains: its data, the trainer, and what it writes down."""

    def __init__(self, run: Run, processes: Processes):
        config = run.config
        self.run, self.config, self.processes = run, config, processes
        self.copies = Mirror(run)
        torch.manual_seed(config.seed)  # the same start on every process
        plan = make_plan(config, processes.device)
        self.encoder, self.steps_per_epoch = plan.encoder, plan.data.batches
        self.train_set, self.validation_set = plan.data.train, plan.data.validation
        self.loss = SoftOrthogonalProxyAnchor(
            self.train_set.num_classes, self.encoder.dim, **config.loss_settings
        )
        self.trainer = Trainer(
            self.encoder,
            self.loss,
            [
                (self.encoder.backbone.parameters(), config.lr),
                (self.encoder.head.parameters(), config.head_lr),
                *loss_rates(self.loss, config),
            ],
            config,
            steps=config.epochs * self.steps_per_epoch,
            processes=processes,
        )
        self.best: dict[str, Any] = {"epoch": None, "recall": None}
        self.saved = time.monotonic()
        self.tracker: Tracker | None = None
        self.bar = tqdm(disable=True)

    def _batches(self, epoch: int) -> loader.TrainingBatches:
        config = self.config
        return loader.TrainingBatches(
            self.pixels,
            self.train_set.labels,
            image_size=self.encoder.image_size,
            batch_size=config.batch_size,
            images_per_class=config.images_per_class,
            crop_scale=config.crop_scale,
            seed=config.seed,
            epoch=epoch,
            local_slice=self.processes.local_slice(config.batch_size),
        )

    def train(self, progress: bool) -> None:
        """All epochs that are still to come, then the evaluation on the test classes."""
        config, run, processes = self.config, self.run, self.processes
        side = training_side(self.encoder)
        self.pixels = pixels.decode(
            self.train_set, side, enlarge=False, budget=pixels.RAW_BUDGET, progress=False
        )
        if config.tracker and processes.is_main:
            self.tracker = Tracker(config, run.path)
        first, start = self._resume()
        processes.wait()  # nobody writes before everybody has read
        with tqdm(
            total=config.epochs * self.steps_per_epoch * config.batch_size,
            initial=((first - 1) * self.steps_per_epoch + start) * config.batch_size,
            desc=run.path.name[:40],
            unit="img",
            disable=None if progress else True,
        ) as self.bar:
            for epoch in range(first, config.epochs + 1):
                self.epoch(epoch, start if epoch == first else 0)
        processes.wait()
        encoder = run.encoder().to(processes.device)  # the epoch that was kept
        retrieval = evaluate_run(config, encoder, processes, progress=progress)
        if processes.is_main:
            parts = image_sets.load_splits(config.dataset, **config.load_options)
            notes = list(dict.fromkeys(note for part in parts.values() for note in part.notes))
            if left_out := set(wanted_ks(config.dataset)) - set(retrieval.ks):
                fewer = ", ".join(map(str, sorted(left_out)))
                notes.append(f"no Recall@K for K = {fewer}: a query can find fewer images")
            if config.selection == "test":
                notes.append("peeking: the epoch was chosen on the test classes")
            if self.pixels.as_jpeg:
                notes.append("trained on pixels kept as JPEG of quality 95, for their size")
            run_folder.write_retrieval(run.path, retrieval, notes)
            self.copies.keep()
        if self.tracker:
            self.tracker.close()

    def epoch(self, epoch: int, start: int = 0) -> None:
        """One pass over the images from batch `start`, then validate and write down."""
        config = self.config
        self.encoder.train()
        # Warming up, only head and proxies learn.
        self.encoder.backbone.requires_grad_(epoch > config.warmup_epochs)
        batches = loader.training_loader(self._batches(epoch), workers=config.workers, start=start)
        began = time.perf_counter()
        for batch, (images, labels) in enumerate(batches, start=start):
            step = (epoch - 1) * self.steps_per_epoch + batch
            # Dropout and the like depend on the step, not on what was drawn before it.
            torch.manual_seed(loader.mix_seeds(config.seed, step, self.processes.rank))
            parts = self.trainer.step(step, images, labels)
            if self.processes.is_main:
                self._log({"kind": "step", "epoch": epoch, "step": step, **parts}, step)
                self._advance_bar(parts)
            if time.monotonic() - self.saved >= 60 * config.checkpoint_minutes:
                self._save(epoch, batch + 1)
        self._finish_epoch(epoch, time.perf_counter() - began, self.steps_per_epoch - start)

    def _finish_epoch(self, epoch: int, seconds: float, steps: int) -> None:
        recall, best = self._selection_recall(), self.best["recall"]
        if better := recall is None or best is None or recall > best:
            self.best = {"epoch": epoch, "recall": recall}
        if self.processes.is_main:
            if better:
                self._write_checkpoint()
            line: dict[str, Any] = {"kind": "epoch", "epoch": epoch, "seconds": round(seconds, 3)}
            if epoch > 0:
                line["images_per_second"] = round(
                    steps * self.config.batch_size / max(seconds, 1e-3), 1
                )
                line |= run_folder.epoch_means(self.run, epoch)
            if recall is not None:
                line["recall_at_1"] = recall
            shape = geometry.describe(self.loss.proxies)
            line |= {"rms_cosine": shape.rms_cosine, "coherence": shape.coherence}
            line["threshold"] = torch.as_tensor(self.loss.threshold).item()
            self._log(line, epoch * self.steps_per_epoch)
            run_folder.write_proxies(self.run.path, epoch, self.loss.proxies)
        self._save(epoch + 1, 0)

    def _selection_recall(self) -> float | None:
        """Recall@1 that selects the epoch, in float32 as at the end; None: keep the last epoch."""
        if self.config.selection == "test":
            return evaluate_run(self.config, self.encoder, self.processes, cache=False).recall[1]
        if self.validation_set is None:
            return None
        embeddings = self.processes.embed(self.encoder, self.validation_set, cache=False)
        return evaluate(embeddings, self.validation_set.labels, ks=(1,)).recall[1]

    def _log(self, line: dict[str, Any], step: int) -> None:
        run_folder.append_metrics(self.run.path, line)
        if self.tracker:
            values = {f"{line['kind']}/{name}": line[name] for name in line if name != "kind"}
            self.tracker.log(values, step)

    def _advance_bar(self, parts: dict[str, float]) -> None:
        text = f"PA {parts['proxy_anchor']:.2f} SO {parts['soft_orthogonality']:.4f}"
        if self.best["recall"] is not None:
            text += f" R@1 {self.best['recall']:.3f}"
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(self.config.batch_size)

    def _write_checkpoint(self) -> None:
        state = {
            "selected_epoch": self.best["epoch"],
            "selection_recall_at_1": self.best["recall"],
            "encoder": self.encoder.settings(),
            "class_names": list(self.train_set.class_names),
            "train_images": len(self.train_set),
            "notes": list(self.train_set.notes),
            "device": str(self.processes.device),
            "processes": self.processes.count,
        }
        run_folder.write_checkpoint(self.run.path, self.encoder, self.loss.proxies, state)

    def _save(self, epoch: int, batch: int) -> None:
        """All that resuming at this batch of this epoch needs."""
        self.saved = time.monotonic()
        if self.processes.is_main:
            at = {"epoch": epoch, "batch": batch, "best": self.best}
            run_folder.write_resume(self.run.path, self.trainer.state(), at)
            self.copies.keep()

    def _resume(self) -> tuple[int, int]:
        """Load what an earlier process left; returns the epoch and batch to resume with."""
        epoch = batch = step = 0
        if found := run_folder.read_resume(self.run.path):
            state, at = found
            self.trainer.load(state)
            self.best, epoch, batch = at["best"], at["epoch"], at["batch"]
            step = (epoch - 1) * self.steps_per_epoch + batch
        if self.processes.is_main:
            run_folder.forget_metrics(self.run.path, epoch=epoch, step=step)
        if not found:
            self._finish_epoch(0, 0.0, 0)  # the state before training
        return max(epoch, 1), batch


class Trainer:
    """What learns, and how it takes a step: the same for images and for frozen features.

    Args:
        model: maps a batch of inputs to (b, D) embeddings of unit length.
        loss: of embeddings (B, D) and labels (B,); its parameters, the proxies, learn as well.
        rates: pairs of parameters and their learning rate.
        config: batch size, weight decay, schedule, largest gradient norm, the model's precision.
        steps: how many there will be, for the schedule.
        processes: those that share a batch of B images, b each, and the device.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        rates: Iterable[tuple[Iterable[nn.Parameter], float]],
        config: BaseConfig,
        *,
        steps: int,
        processes: Processes,
    ):
        self.config, self.steps, self.processes = config, steps, processes
        precision, self.chunk_size = "float32", None
        if isinstance(config, TrainConfig):
            precision, self.chunk_size = config.precision, config.chunk_size
        self.device, self.precision = processes.device, getattr(torch, precision)
        self.bare_model, self.loss = model.to(self.device), loss.to(self.device)
        self.parameters = [*model.parameters(), *loss.parameters()]
        self.optimizer = torch.optim.AdamW(
            parameter_groups(rates, config.weight_decay),
            fused=self.device.type == "cpu" or None,  # a third of the time there
        )
        # The loss is not wrapped: every process computes it from the joint batch.
        self.model = processes.wrap(self.bare_model)
        self.autocast: contextlib.AbstractContextManager = contextlib.nullcontext()
        if precision != "float32":
            self.autocast = torch.autocast(self.device.type, self.precision)
        # float16 gradients would vanish without a scale; a disabled scaler passes all through.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "float16")

    def step(self, step: int, inputs: Tensor, labels: Tensor) -> dict[str, float]:
        """Forward, joint loss, backward, update.

        Args:
            step: 0 … steps − 1, which sets the learning rates.
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

        inputs = inputs.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        with self.autocast:
            embeddings = self._embed(inputs)  # (b, D)
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

        self.optimizer.zero_grad()
        self.scaler.scale(parts["loss"]).backward()
        self.processes.average_gradients(self.loss.parameters())
        self.scaler.unscale_(self.optimizer)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm))
        if not self.scaler.is_enabled():  # a scaler skips such steps
            _check_finite("the gradient", norm, step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return {**values, "gradient_norm": norm}

    def _embed(self, inputs: Tensor) -> Tensor:
        """(b, D) embeddings. In chunks, only the inputs are kept, and backward embeds them again.

        The loss compares every image with every proxy of the batch, so batches cannot be split and
        their gradients added; activations can. Source: Gao et al., arXiv 2101.06983 (GradCache).
        """
        size = self.chunk_size
        if size is None or len(inputs) <= size:
            return self.model(inputs)
        parts = [checkpoint(self.model, part, use_reentrant=False) for part in inputs.split(size)]
        return torch.cat(parts)

    def state(self) -> dict[str, Any]:
        """All that resuming needs."""
        return {
            "model": self.bare_model.state_dict(),
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict()["state"],
            "scaler": self.scaler.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Load what `state` returned."""
        self.bare_model.load_state_dict(state["model"])
        self.loss.load_state_dict(state["loss"])
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state["optimizer"]})
        self.scaler.load_state_dict(state["scaler"])


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


def loss_rates(loss: nn.Module, config: BaseConfig) -> list[tuple[list[nn.Parameter], float]]:
    """What a loss learns, with its rates: the proxies, and a threshold, the only scalar."""
    proxies = [parameter for parameter in loss.parameters() if parameter.ndim]
    threshold = [parameter for parameter in loss.parameters() if not parameter.ndim]
    return [(proxies, config.proxy_lr), (threshold, config.threshold_lr)]


def parameter_groups(
    rates: Iterable[tuple[Iterable[nn.Parameter], float]], weight_decay: float
) -> list[dict[str, Any]]:
    """Groups for the optimizer, each at its rate: matrices, and the rest without weight decay.

    Proxies do decay. Their length changes neither the loss nor a cosine, but the shorter a proxy,
    the further a step turns it: there the decay acts on the effective rate.
    """
    groups = []
    for parameters, rate in rates:
        parameters = list(parameters)
        matrices = [p for p in parameters if p.ndim >= 2]
        others = [p for p in parameters if p.ndim < 2]  # norms, biases, a threshold
        both = {"lr": rate, "initial_lr": rate}
        groups.append({"params": matrices, "weight_decay": weight_decay, **both})
        groups.append({"params": others, "weight_decay": 0.0, **both})
    return groups


def evaluate_run(
    config: TrainConfig,
    encoder: Encoder,
    processes: Processes | None = None,
    *,
    cache: bool = True,
    progress: bool = False,
) -> Retrieval:
    """Evaluate an encoder on the test classes of a config's data set.

    Of the Ks that the literature reports there, those that fit are reported.

    Args:
        config: which data.
        encoder: on its device.
        processes: those that share the embedding; None: this one alone.
        cache, progress: as for `sobook.embed`.
    """
    processes = processes or Processes(encoder.mean.device)

    parts = image_sets.test_splits(config.dataset)
    sets = [image_sets.load(config.dataset, part, **config.load_options) for part in parts]
    ks = check_retrievable(*sets, ks=wanted_ks(config.dataset))  # before they are embedded
    queries, *gallery = (
        processes.embed(encoder, images, cache=cache, progress=progress) for images in sets
    )
    if not gallery:
        return evaluate(queries, sets[0].labels, ks=ks)
    # Labels of query and gallery are numbered alike.
    labels, gallery_labels = (images.labels for images in sets)
    return evaluate(queries, labels, gallery=gallery[0], gallery_labels=gallery_labels, ks=ks)
