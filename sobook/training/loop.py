"""The training loop: one config in, one run folder out, on one device or on many.

Read `fit` first, then `_Trainer.epoch` and `_Trainer._step`, which are the loop itself. A run that
was stopped, at any moment and by whatever, goes on and ends with the same weights as one that was
never stopped: batches depend on (seed, epoch, batch) alone, the random numbers and rates of a step
on the step alone, and `resume.safetensors` holds the rest.
"""

import contextlib
import math
import platform
import time
from collections.abc import Iterator

import accelerate
import torch
import torchvision
from torch import Tensor
from tqdm.auto import tqdm

from sobook import __version__, files, geometry
from sobook.data import image_sets, loader, pixels
from sobook.encoder import Encoder
from sobook.errors import SobookError
from sobook.losses import SoftOrthogonalProxyAnchor
from sobook.retrieval import Retrieval, evaluate
from sobook.training import distributed
from sobook.training import run as runs
from sobook.training.config import TrainConfig
from sobook.training.distributed import TrainingError
from sobook.training.run import Run, RunError

__all__ = ["Run", "RunError", "TrainConfig", "TrainingError", "evaluate_run", "fit"]

# Training pictures are kept at this multiple of the crop, so that a crop of a fifth of the area
# is not enlarged much.
_TRAIN_SHORT_SIDE = 1.5


def fit(config: TrainConfig, *, progress: bool = True) -> Run:
    """Train, or go on training, or, when the run is finished already, just open it.

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
    if (run := runs.find(config)) and run.finished:
        return run
    with distributed.plain_errors(config.folder()):
        return _fit(config, progress)


def _fit(config: TrainConfig, progress: bool) -> Run:
    accelerator = distributed.accelerator(config)
    trainer = _Trainer(config, accelerator)
    if accelerator.is_main_process:
        runs.create(config)  # only now: settings that cannot work leave no folder
    trainer.run = run = Run(config.folder(), config)
    with runs.held(run.path) if accelerator.is_main_process else contextlib.nullcontext():
        accelerator.wait_for_everyone()
        if not run.finished:  # else another process has trained it meanwhile
            _train(trainer, progress and accelerator.is_local_main_process)
    return run


def _train(trainer: "_Trainer", show: bool) -> None:
    """All epochs that are still to come, then the evaluation on the test classes."""
    config, accelerator, run = trainer.config, trainer.accelerator, trainer.run
    if config.tracker:
        simple = {k: v for k, v in config.to_dict().items() if isinstance(v, (int, float, str))}
        accelerator.init_trackers("sobook", simple)  # what TensorBoard accepts
    epoch, batch = trainer.resume()
    accelerator.wait_for_everyone()  # nobody writes before everybody has read
    with tqdm(
        total=config.epochs * trainer.steps_per_epoch,
        initial=(epoch - 1) * trainer.steps_per_epoch + batch,
        desc=run.path.name[:40],
        unit="step",
        disable=None if show else True,
    ) as bar:
        for number in range(epoch, config.epochs + 1):
            trainer.epoch(number, batch if number == epoch else 0, bar)
    accelerator.wait_for_everyone()
    encoder = run.encoder().to(accelerator.device)
    retrieval = evaluate_run(config, encoder, accelerator=accelerator, progress=show)
    if accelerator.is_main_process:
        report = _report(config, retrieval)
        if trainer.pixels.as_jpeg:
            report["notes"].append("trained on pixels kept as JPEG of quality 95, for their size")
        files.write_json(run.path / "retrieval.json", report)
        (run.path / "resume.safetensors").unlink(missing_ok=True)
    accelerator.end_training()


def evaluate_run(
    config: TrainConfig, encoder: Encoder, *, accelerator=None, progress: bool = False
) -> Retrieval:
    """Evaluate an encoder on the test classes of a config's data set.

    Args:
        config: which data.
        encoder: on its device.
        accelerator: shares the embedding among its processes.
        progress: show bars.
    """
    ks = {"sop": (1, 10, 100, 1000), "inshop": (1, 10, 20, 30)}.get(config.dataset, (1, 2, 4, 8))

    def embedded(image_set):
        return distributed.embed_together(encoder, image_set, accelerator, progress=progress)

    if config.dataset == "inshop":  # labels are numbered alike in query and gallery
        query, gallery = _load(config, "query"), _load(config, "gallery")
        found = {"gallery": embedded(gallery), "gallery_labels": gallery.labels}
        return evaluate(embedded(query), query.labels, **found, ks=ks)
    test = _load(config, "test")
    return evaluate(embedded(test), test.labels, ks=ks)


def learning_rate_factor(step: int, total: int, schedule: str) -> float:
    """What the learning rates are multiplied with at a step (0 … total − 1).

    >>> [round(learning_rate_factor(step, 4, "cosine"), 2) for step in range(4)]
    [1.0, 0.85, 0.5, 0.15]
    """
    return 1.0 if schedule == "constant" else 0.5 * (1 + math.cos(math.pi * step / total))


class _Trainer:
    """What a run needs while it trains: model, loss, optimizer, data."""

    run: Run

    def __init__(self, config: TrainConfig, accelerator: accelerate.Accelerator):
        torch.manual_seed(config.seed)  # the same start on every process
        self.config, self.accelerator, self.device = config, accelerator, accelerator.device
        self.encoder = _make_encoder(config).to(self.device)
        with accelerator.main_process_first():  # the others find data and pixels ready
            self.train, self.validation = _training_sets(config)
            side = round(self.encoder.image_size * _TRAIN_SHORT_SIDE)
            self.pixels = pixels.decode(
                self.train, side, enlarge=False, budget=pixels.RAW_BUDGET, progress=False
            )
        self.loss = SoftOrthogonalProxyAnchor(
            self.train.num_classes,
            self.encoder.dim,
            margin=config.margin,
            scale=config.scale,
            so_weight=config.so_weight,
            so_reduction=config.so_reduction,
        ).to(self.device)
        optimizer = torch.optim.AdamW(
            self._groups(),
            weight_decay=config.weight_decay,
            fused=self.device.type == "cpu" or None,  # a third of the time there
        )
        # The loss is not prepared: every process computes it from the joint batch.
        self.model, self.optimizer = accelerator.prepare(self.encoder, optimizer)
        self.steps_per_epoch = len(self._batches(1))
        self.best = {"epoch": None, "recall": -1.0}
        self.saved = time.monotonic()

    def _groups(self) -> list[dict]:
        """Parameter groups, each with its own rate: backbone, head, proxies."""
        config, encoder = self.config, self.encoder
        groups = [
            {"params": list(encoder.backbone.parameters()), "rate": config.lr},
            {"params": list(encoder.head.parameters()), "rate": config.head_lr},
            {"params": [self.loss.proxies], "rate": config.proxy_lr},
        ]
        return [{**group, "lr": group["rate"]} for group in groups if group["params"]]

    def _batches(self, epoch: int) -> loader.TrainingBatches:
        config = self.config
        return loader.TrainingBatches(
            self.pixels,
            self.train.labels,
            image_size=self.encoder.image_size,
            batch_size=config.batch_size,
            images_per_class=config.images_per_class,
            crop_scale=config.crop_scale,
            seed=config.seed,
            epoch=epoch,
            local_slice=distributed.share(config.batch_size, self.accelerator),
        )

    # --- the loop ------------------------------------------------------------------------------

    def epoch(self, epoch: int, start: int, bar) -> None:
        """One pass over the data from batch `start`, then look at the result and write it down."""
        self.encoder.train()
        # Warming up, only head and proxies learn.
        self.encoder.backbone.requires_grad_(epoch > self.config.warmup_epochs)
        batches = loader.training_loader(
            self._batches(epoch), workers=self.config.workers, start=start
        )
        began, before = time.perf_counter(), start
        for batch, (pictures, labels) in enumerate(batches, start=start):
            step = (epoch - 1) * self.steps_per_epoch + batch
            line = {"kind": "step", "epoch": epoch, "step": step}
            line |= self._step(step, pictures, labels)
            seconds = time.perf_counter() - began
            speed = (batch + 1 - before) * self.config.batch_size / seconds
            self._note(line, speed, bar)
            if time.monotonic() - self.saved >= 60 * self.config.checkpoint_minutes:
                self._save(epoch, batch + 1)
        self._finish_epoch(epoch, time.perf_counter() - began, self.steps_per_epoch - before)

    def _step(self, step: int, pictures: Tensor, labels: Tensor) -> dict[str, float]:
        """Forward, joint loss, backward, update; returns what to write down."""
        config, accelerator = self.config, self.accelerator
        self._set_rates(step)
        # Dropout and the like depend on the step, not on what was drawn before it.
        torch.manual_seed(loader.mix_seeds(config.seed, step, accelerator.process_index))
        embeddings = self.model(pictures.to(self.device, non_blocking=True))  # (b, D), the share
        labels = labels.to(self.device, non_blocking=True)
        joint = distributed.gather(embeddings, labels, config.batch_size, accelerator)
        parts = self._finite_parts(step, *joint)
        self.optimizer.zero_grad(set_to_none=True)
        accelerator.backward(parts["loss"])
        distributed.agree(self.loss.proxies, accelerator)
        norm = float(accelerator.clip_grad_norm_(list(self._parameters()), config.clip_norm))
        if not math.isfinite(norm) and accelerator.scaler is None:  # a scaler skips such steps
            raise self._not_finite("the gradient", norm, step)
        self.optimizer.step()
        values = {name: float(value.detach()) for name, value in parts.items()}
        return {**values, "gradient_norm": norm}

    def _finite_parts(self, step: int, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The parts of the loss, once it is known that they are numbers."""
        if not torch.isfinite(embeddings.detach()).all():
            raise self._not_finite("an embedding", math.nan, step)
        parts = self.loss.parts(embeddings, labels)
        for name, value in parts.items():
            if not math.isfinite(value.detach()):
                raise self._not_finite(name, float(value.detach()), step)
        return parts

    def _not_finite(self, what: str, value: float, step: int) -> TrainingError:
        return TrainingError(
            f"{what} became {value} at step {step}: lower the learning rates (lr, head_lr, "
            f"proxy_lr), or look at the images of that batch; the last good checkpoint is "
            f"{self.run.path / 'resume.safetensors'} ({runs.where_resume_stands(self.run.path)})."
        )

    def _parameters(self) -> Iterator[Tensor]:
        return (p for group in self.optimizer.param_groups for p in group["params"])

    def _set_rates(self, step: int) -> None:
        total = self.config.epochs * self.steps_per_epoch
        factor = learning_rate_factor(step, total, self.config.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * factor

    # --- looking at it and writing it down -----------------------------------------------------

    def _note(self, line: dict, images_per_second: float, bar) -> None:
        if not self.accelerator.is_main_process:
            return
        runs.append_metrics(self.run.path, [line])
        if self.config.tracker:
            values = {key: value for key, value in line.items() if key not in ("kind", "step")}
            self.accelerator.log(values, step=line["step"])
        bar.set_postfix_str(self._postfix(line, images_per_second), refresh=False)
        bar.update()

    def _postfix(self, line: dict, images_per_second: float) -> str:
        orthogonality, classes = line["soft_orthogonality"], len(self.loss.proxies)
        if self.config.so_reduction == "sum":
            orthogonality /= classes * (classes - 1)
        recall = f" R@1 {self.best['recall']:.3f}" if self.best["recall"] >= 0 else ""
        return (
            f"PA {line['proxy_anchor']:.2f} SO {line['soft_orthogonality']:.4f} "
            f"RMS cos {math.sqrt(orthogonality):.3f}{recall} {images_per_second:.0f} img/s"
        )

    def _finish_epoch(self, epoch: int, seconds: float, steps: int) -> None:
        recall = self._selection_recall()
        better = self.config.selection == "last" or recall > self.best["recall"]
        if better:
            self.best = {"epoch": epoch, "recall": -1.0 if recall is None else recall}
        if self.accelerator.is_main_process:
            if better:
                self._write_checkpoint()
            self._write_summary(epoch, recall, seconds, steps)
            runs.write_proxies(self.run.path, epoch, self.loss.proxies)
        self._save(epoch + 1, 0)

    def _selection_recall(self) -> float | None:
        """Recall@1 that chooses the epoch; None where the last epoch is kept anyway."""
        if self.config.selection == "last":
            return None
        if self.config.selection == "test":
            return evaluate_run(self.config, self.encoder, accelerator=self.accelerator).recall[1]
        found = distributed.embed_together(
            self.encoder, self.validation, self.accelerator, cache=False, progress=False
        )
        recall = None
        if self.accelerator.is_main_process:
            recall = evaluate(found, self.validation.labels, ks=(1,)).recall[1]
        return distributed.share_value(recall, self.accelerator)

    def _write_summary(self, epoch: int, recall: float | None, seconds: float, steps: int) -> None:
        """The line of an epoch: means over its steps, speed, recall, and the proxies' geometry."""
        lines = [
            m for m in self.run.metrics if m["kind"] == "step" and m["epoch"] == epoch
        ]  # those before an interruption included
        summary = {"kind": "epoch", "epoch": epoch, "seconds": round(seconds, 3)}
        if lines:
            speed = steps * self.config.batch_size / seconds if seconds else 0.0
            summary["images_per_second"] = round(speed, 1)
            for part in ("proxy_anchor", "soft_orthogonality", "loss", "gradient_norm"):
                summary[part] = sum(line[part] for line in lines) / len(lines)
            norms = [line["gradient_norm"] for line in lines]
            summary["gradient_norm_largest"] = max(norms)
            clipped = sum(norm > self.config.clip_norm for norm in norms)
            summary["gradients_clipped"] = clipped / len(norms)
        if recall is not None:
            summary["recall_at_1"] = recall
        shape = geometry.describe(self.loss.proxies)
        summary |= {"rms_cosine": shape.rms_cosine, "coherence": shape.coherence}
        runs.append_metrics(self.run.path, [summary])
        if self.config.tracker:
            values = {f"epoch/{key}": value for key, value in summary.items() if key != "kind"}
            self.accelerator.log(values, step=epoch * self.steps_per_epoch)

    def _write_checkpoint(self) -> None:
        """The weights to keep, and what to know of them."""
        weights = {f"encoder.{key}": value for key, value in self.encoder.state_dict().items()}
        weights["proxies"] = self.loss.proxies
        runs.write_tensors(self.run.path / "checkpoint.safetensors", weights)
        state = {
            "selected_epoch": self.best["epoch"],
            "selection": self.config.selection,
            "selection_recall_at_1": None if self.best["recall"] < 0 else self.best["recall"],
            "encoder": self.encoder.settings(),
            "class_names": list(self.train.class_names),
            "train_images": len(self.train),
            "notes": list(self.train.notes),
            "versions": _versions(),
            "device": str(self.device),
            "processes": self.accelerator.num_processes,
        }
        files.write_json(self.run.path / "state.json", state)

    # --- stopping and going on -----------------------------------------------------------------

    def _save(self, epoch: int, batch: int) -> None:
        """All that going on at this batch of this epoch needs."""
        self.saved = time.monotonic()
        if not self.accelerator.is_main_process:
            return
        tensors = {f"encoder.{key}": value for key, value in self.encoder.state_dict().items()}
        tensors["proxies"] = self.loss.proxies
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{key}": value for key, value in state.items()}
        scaler = self.accelerator.scaler
        runs.write_tensors(
            self.run.path / "resume.safetensors",
            tensors,
            epoch=epoch,
            batch=batch,
            best=self.best,
            scaler=scaler.state_dict() if scaler else {},
        )

    def resume(self) -> tuple[int, int]:
        """Take up what an earlier process left; returns the epoch and batch to go on with."""
        file = self.run.path / "resume.safetensors"
        if not file.exists():
            if self.accelerator.is_main_process:
                runs.forget_metrics(self.run.path, epoch=0, step=0)
            self._finish_epoch(0, 0.0, 0)
            return 1, 0
        tensors, metadata = runs.read_tensors(file)
        weights = {k.removeprefix("encoder."): v for k, v in tensors.items() if k.startswith("enc")}
        self.encoder.load_state_dict(weights)
        self.loss.load_state_dict({"proxies": tensors["proxies"]})
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, number, name = key.split(".")
                state.setdefault(int(number), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(metadata["scaler"])
        self.best, epoch, batch = metadata["best"], metadata["epoch"], metadata["batch"]
        if self.accelerator.is_main_process:
            step = (epoch - 1) * self.steps_per_epoch + batch
            runs.forget_metrics(self.run.path, epoch=epoch, step=step)
        return epoch, batch


def _make_encoder(config: TrainConfig) -> Encoder:
    encoder = Encoder.create(
        config.encoder,
        dim=config.dim,
        weights=config.weights,
        image_size=config.image_size,
        token=config.token,
    )
    if config.gradient_checkpointing:
        if not hasattr(encoder.backbone, "set_grad_checkpointing"):
            raise SobookError(f"{config.encoder} has no gradient checkpointing: leave it out.")
        encoder.backbone.set_grad_checkpointing()
    if config.compile:
        encoder.backbone.compile()  # in place: names of the weights stay
    return encoder


def _training_sets(config: TrainConfig):
    """Training images, and the held-out training classes where they choose the epoch."""
    train = _load(config, "train")
    if config.selection != "validation":
        return train, None
    return image_sets.hold_out(train, config.validation_fraction, config.seed, at_least=2)


def _load(config: TrainConfig, split: str) -> image_sets.ImageSet:
    return image_sets.load(
        config.dataset,
        split,
        config.root,
        allow_partial=config.allow_partial,
        **config.options,
    )


def _report(config: TrainConfig, retrieval: Retrieval) -> dict:
    notes = image_sets.notes(
        config.dataset, config.root, allow_partial=config.allow_partial, **config.options
    )
    if config.selection == "test":
        notes = (*notes, "peeking: the epoch was chosen on the test classes")
    return {**retrieval.summary(), "notes": list(notes)}


def _versions() -> dict[str, str]:
    return {
        "sobook": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
    }
