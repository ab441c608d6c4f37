"""The training loop: one config in, one run folder out.

Read `fit` first, then `_Trainer.epoch`, which is the loop itself. A run that was stopped goes on
at the last whole epoch and ends with the same weights as one that was never stopped: batches
depend on (seed, epoch, batch) alone, rates on the step alone, and `resume.safetensors` holds the
rest.
"""

import math
import platform
import time
from collections.abc import Iterator

import torch
import torchvision
from torch import Tensor
from tqdm.auto import tqdm

from sobook import __version__, datasets, geometry, images, runs
from sobook.config import TrainConfig
from sobook.encoder import Encoder, embed
from sobook.losses import SoftOrthogonalProxyAnchor
from sobook.retrieval import Retrieval, evaluate
from sobook.runs import Run, RunError

__all__ = ["Run", "RunError", "TrainConfig", "TrainingError", "evaluate_run", "fit"]

# Training pictures are kept at this multiple of the crop, so that a crop of a fifth of the area
# is not enlarged much.
_TRAIN_SHORT_SIDE = 1.5


class TrainingError(RuntimeError):
    """Training that cannot go on: the loss is not finite."""


def fit(config: TrainConfig, *, progress: bool = True) -> Run:
    """Train, or go on training, or, when the run is finished already, just open it.

    Args:
        config: the settings.
        progress: show a bar.

    Returns:
        The finished `Run`: the epoch kept by `config.selection` evaluated on the test classes.

    Raises:
        ValueError: settings or data that make no sense together.
        RunError: the folder belongs to a run with other settings.
        TrainingError: the loss became NaN or infinite.
    """
    if (run := runs.find(config)) and run.finished:
        return run
    trainer = _Trainer(config)
    run = trainer.run = runs.create(config)  # only now: settings that cannot work leave no folder
    first = trainer.resume()
    total = config.epochs * trainer.steps_per_epoch
    with tqdm(
        total=total,
        initial=(first - 1) * trainer.steps_per_epoch,
        desc=run.path.name[:40],
        unit="step",
        disable=None if progress else True,
    ) as bar:
        for epoch in range(first, config.epochs + 1):
            trainer.epoch(epoch, bar)
    encoder = run.encoder().to(trainer.device)
    retrieval = evaluate_run(config, encoder, progress=progress)
    runs.write_json(run.path / "retrieval.json", _report(config, retrieval, trainer.train.notes))
    (run.path / "resume.safetensors").unlink(missing_ok=True)
    return run


def evaluate_run(config: TrainConfig, encoder: Encoder, *, progress: bool = False) -> Retrieval:
    """Evaluate an encoder on the test classes of a config's data set."""
    ks = {"sop": (1, 10, 100, 1000), "inshop": (1, 10, 20, 30)}.get(config.dataset, (1, 2, 4, 8))
    if config.dataset == "inshop":
        query, gallery = _load(config, "query"), _load(config, "gallery")
        return evaluate(
            embed(encoder, query, progress=progress),
            query.labels,  # numbered as in the gallery
            gallery=embed(encoder, gallery, progress=progress),
            gallery_labels=gallery.labels,
            ks=ks,
        )
    test = _load(config, "test")
    return evaluate(embed(encoder, test, progress=progress), test.labels, ks=ks)


def learning_rate_factor(step: int, total: int, schedule: str) -> float:
    """What the learning rates are multiplied with at a step (0 … total − 1).

    >>> [round(learning_rate_factor(step, 4, "cosine"), 2) for step in range(4)]
    [1.0, 0.85, 0.5, 0.15]
    """
    return 1.0 if schedule == "constant" else 0.5 * (1 + math.cos(math.pi * step / total))


class _Trainer:
    """What a run needs while it trains: model, loss, optimiser, data."""

    run: Run

    def __init__(self, config: TrainConfig):
        torch.manual_seed(config.seed)
        self.config = config
        self.device = _device(config)
        self.encoder = Encoder.create(
            config.encoder,
            dim=config.dim,
            weights=config.weights,
            image_size=config.image_size,
            token=config.token,
        ).to(self.device)
        self.train, self.validation = _training_sets(config)
        self.loss = SoftOrthogonalProxyAnchor(
            self.train.num_classes,
            self.encoder.dim,
            margin=config.margin,
            scale=config.scale,
            so_weight=config.so_weight,
            so_reduction=config.so_reduction,
        ).to(self.device)
        self.optimiser = torch.optim.AdamW(self._groups(), weight_decay=config.weight_decay)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "float16")
        side = round(self.encoder.image_size * _TRAIN_SHORT_SIDE)
        self.pixels = images.pixels(self.train, side, enlarge=False, progress=False)
        self.steps_per_epoch = len(self._batches(1))
        self.best = {"epoch": None, "recall": -1.0}

    def _groups(self) -> list[dict]:
        """Parameter groups, each with its own rate: backbone, head, proxies."""
        config, encoder = self.config, self.encoder
        groups = [
            {"params": list(encoder.backbone.parameters()), "rate": config.lr},
            {"params": list(encoder.head.parameters()), "rate": config.head_lr},
            {"params": [self.loss.proxies], "rate": config.proxy_lr},
        ]
        return [{**group, "lr": group["rate"]} for group in groups if group["params"]]

    def _batches(self, epoch: int) -> images.TrainingBatches:
        return images.TrainingBatches(
            self.pixels,
            self.train.labels,
            image_size=self.encoder.image_size,
            batch_size=self.config.batch_size,
            images_per_class=self.config.images_per_class,
            crop_scale=self.config.crop_scale,
            seed=self.config.seed,
            epoch=epoch,
        )

    def epoch(self, epoch: int, bar) -> None:
        """One pass over the data, then look at the result and write everything down."""
        config, started = self.config, time.perf_counter()
        torch.manual_seed(images.mix_seeds(config.seed, epoch))
        self.encoder.train()
        self.encoder.backbone.requires_grad_(epoch > config.warmup_epochs)
        lines: list[dict] = []
        first_step = (epoch - 1) * self.steps_per_epoch
        loader = images.training_loader(self._batches(epoch), workers=config.workers)
        for step, (batch, labels) in enumerate(loader, start=first_step):
            self._set_rates(step)
            parts = self._step(batch.to(self.device), labels.to(self.device))
            lines.append(
                {"kind": "step", "epoch": epoch, "step": step, **self._finite(parts, step)}
            )
            bar.set_postfix_str(_postfix(lines[-1], self.best), refresh=False)
            bar.update()
        seconds = time.perf_counter() - started
        self._finish_epoch(epoch, lines, seconds)

    def _step(self, batch: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Forward, loss, backward, update; returns the parts of the loss."""
        half = getattr(torch, self.config.precision)
        with torch.autocast(self.device.type, half, enabled=half != torch.float32):
            embeddings = self.encoder(batch)  # (B, D)
        parts = self.loss.parts(embeddings, labels)
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(parts["loss"]).backward()
        self.scaler.unscale_(self.optimiser)
        torch.nn.utils.clip_grad_norm_(self._parameters(), self.config.clip_norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return parts

    def _parameters(self) -> Iterator[Tensor]:
        return (p for group in self.optimiser.param_groups for p in group["params"])

    def _set_rates(self, step: int) -> None:
        total = self.config.epochs * self.steps_per_epoch
        factor = learning_rate_factor(step, total, self.config.schedule)
        for group in self.optimiser.param_groups:
            group["lr"] = group["rate"] * factor

    def _finite(self, parts: dict[str, Tensor], step: int) -> dict[str, float]:
        values = {name: float(value.detach()) for name, value in parts.items()}
        for name, value in values.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"{name} became {value} at step {step}: lower the learning rates (lr, head_lr, "
                    f"proxy_lr); the last good state is in {self.run.path}."
                )
        return values

    def _finish_epoch(self, epoch: int, lines: list[dict], seconds: float) -> None:
        recall = self._selection_recall()
        if self.config.selection == "last" or recall > self.best["recall"]:
            self.best = {"epoch": epoch, "recall": -1.0 if recall is None else recall}
            self._write_checkpoint()
        summary = {"kind": "epoch", "epoch": epoch, "seconds": round(seconds, 3)}
        if lines:
            summary["images_per_second"] = round(len(lines) * self.config.batch_size / seconds, 1)
            for part in ("proxy_anchor", "soft_orthogonality", "loss"):
                summary[part] = sum(line[part] for line in lines) / len(lines)
        if recall is not None:
            summary["recall_at_1"] = recall
        shape = geometry.describe(self.loss.proxies)
        summary |= {"rms_cosine": shape.rms_cosine, "coherence": shape.coherence}
        runs.write_metrics(self.run.path, epoch, [*lines, summary])
        runs.write_proxies(self.run.path, epoch, self.loss.proxies)
        self._write_resume(epoch)

    def _selection_recall(self) -> float | None:
        """Recall@1 that chooses the epoch; None where the last epoch is kept anyway."""
        if self.config.selection == "last":
            return None
        if self.config.selection == "test":
            return evaluate_run(self.config, self.encoder).recall[1]
        found = embed(self.encoder, self.validation, cache=False, progress=False)
        return evaluate(found, self.validation.labels, ks=(1,)).recall[1]

    def _write_checkpoint(self) -> None:
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
        }
        runs.write_json(self.run.path / "state.json", state)

    def _write_resume(self, epoch: int) -> None:
        tensors = {f"encoder.{key}": value for key, value in self.encoder.state_dict().items()}
        tensors["proxies"] = self.loss.proxies
        for number, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{key}": value for key, value in state.items()}
        runs.write_tensors(
            self.run.path / "resume.safetensors",
            tensors,
            epoch=epoch,
            best=self.best,
            scaler=self.scaler.state_dict(),
        )

    def resume(self) -> int:
        """Take up what an earlier process left; returns the epoch to go on with."""
        file = self.run.path / "resume.safetensors"
        if not file.exists():
            self._finish_epoch(0, [], 0.0)
            return 1
        tensors, metadata = runs.read_tensors(file)
        weights = {k.removeprefix("encoder."): v for k, v in tensors.items() if k.startswith("enc")}
        self.encoder.load_state_dict(weights)
        self.loss.load_state_dict({"proxies": tensors["proxies"]})
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimiser."):
                _, number, name = key.split(".")
                state.setdefault(int(number), {})[name] = value
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": state})
        self.scaler.load_state_dict(metadata["scaler"])
        self.best = metadata["best"]
        return metadata["epoch"] + 1


def _device(config: TrainConfig) -> torch.device:
    return torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _training_sets(config: TrainConfig):
    """Training images, and the held-out training classes where they choose the epoch."""
    train = _load(config, "train")
    if config.selection != "validation":
        return train, None
    return datasets.hold_out(train, config.validation_share, seed=config.seed)


def _load(config: TrainConfig, split: str) -> datasets.ImageSet:
    return datasets.load(
        config.dataset,
        split,
        config.root,
        allow_partial=config.allow_partial,
        **config.options,
    )


def _report(config: TrainConfig, retrieval: Retrieval, notes: tuple[str, ...]) -> dict:
    if config.selection == "test":
        notes = (*notes, "peeking: the epoch was chosen on the test classes")
    return {**retrieval.summary(), "notes": list(notes)}


def _postfix(line: dict, best: dict) -> str:
    recall = f" R@1 {best['recall']:.3f}" if best["recall"] >= 0 else ""
    return f"PA {line['proxy_anchor']:.2f} SO {line['soft_orthogonality']:.4f}{recall}"


def _versions() -> dict[str, str]:
    return {
        "sobook": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
    }
