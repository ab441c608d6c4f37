"""The training loop: a config in, a run folder out, on one device or on many.

Read `fit`, then `FineTuning.train` and `FineTuning.epoch`; a step is in `trainer.Trainer.step`.
A run that was stopped, at any moment and by whatever, resumes and ends with the same weights as one
that was never stopped: batches depend on (seed, epoch, batch) alone, the random numbers and rates
of a step on the step alone, and `resume.safetensors` holds the rest.
"""

import contextlib
import math
import time
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from sobook import geometry
from sobook.data import image_sets, loader, pixels
from sobook.embedding import embed
from sobook.encoder import Encoder
from sobook.retrieval import Retrieval, evaluate
from sobook.training import distributed, run as runs
from sobook.training.config import TrainConfig
from sobook.training.distributed import Processes
from sobook.training.run import Run
from sobook.training.trainer import Trainer, make_encoder, make_loss

# Training pictures are kept at this multiple of the crop, so that a crop of a fifth of the area
# is not enlarged much.
_TRAIN_SHORT_SIDE = 1.5


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
    if (run := runs.find(config)) and run.finished:
        return run
    run = Run(config.folder(), config)
    with distributed.plain_errors(run.path):
        processes = distributed.join(config)
        training = FineTuning(run, processes)  # settings that cannot work fail here, ...
        if processes.is_main:
            runs.create(config)  # ... before there is a folder
        with runs.held(run.path) if processes.is_main else contextlib.nullcontext():
            processes.wait()
            if not run.finished:  # else another program has trained it meanwhile
                training.train(progress)
            processes.wait()  # nobody reads, or leaves, before the main process has written
        processes.leave()
    return run


class FineTuning:
    """A run while it trains: its data, the trainer, and what it writes down."""

    def __init__(self, run: Run, processes: Processes):
        config = run.config
        self.run, self.config, self.processes = run, config, processes
        torch.manual_seed(config.seed)  # the same start on every process
        self.encoder = make_encoder(config)
        with processes.main_first():  # the others find data and pixels ready
            self.train_set, self.validation_set = _training_sets(config)
            side = round(self.encoder.image_size * _TRAIN_SHORT_SIDE)
            self.pixels = pixels.decode(
                self.train_set, side, enlarge=False, budget=pixels.RAW_BUDGET, progress=False
            )
        self.steps_per_epoch = len(self._batches(1))
        self.loss = make_loss(config, self.train_set.num_classes, self.encoder.dim)
        self.trainer = Trainer(
            self.encoder,
            self.loss,
            [
                (self.encoder.backbone, config.lr),
                (self.encoder.head, config.head_lr),
                (self.loss, config.proxy_lr),
            ],
            config,
            steps=config.epochs * self.steps_per_epoch,
            processes=processes,
            precision=config.precision,
        )
        self.best: dict[str, Any] = {"epoch": None, "recall": -1.0}
        self.saved = time.monotonic()
        self.tracker: runs.Tracker | None = None
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
        show = progress and processes.local_rank == 0
        if config.tracker and processes.is_main:
            self.tracker = runs.Tracker(config, run.path)
        first, start = self._resume()
        processes.wait()  # nobody writes before everybody has read
        with tqdm(
            total=config.epochs * self.steps_per_epoch,
            initial=(first - 1) * self.steps_per_epoch + start,
            desc=run.path.name[:40],
            unit="step",
            disable=None if show else True,
        ) as self.bar:
            for epoch in range(first, config.epochs + 1):
                self.epoch(epoch, start if epoch == first else 0)
        processes.wait()
        encoder = run.encoder().to(processes.device)  # the epoch that was kept
        retrieval = evaluate_run(config, encoder, processes=processes, progress=show)
        if processes.is_main:
            runs.write_retrieval(run.path, retrieval, self._notes())
        if self.tracker:
            self.tracker.finish()

    def epoch(self, epoch: int, start: int = 0) -> None:
        """One pass over the images from batch `start`, then validate and write down."""
        self.encoder.train()
        # Warming up, only head and proxies learn.
        self.encoder.backbone.requires_grad_(epoch > self.config.warmup_epochs)
        batches = loader.training_loader(
            self._batches(epoch), workers=self.config.workers, start=start
        )
        began = time.perf_counter()
        for batch, (images, labels) in enumerate(batches, start=start):
            step = (epoch - 1) * self.steps_per_epoch + batch
            parts = self.trainer.step(step, images, labels)
            done = (batch + 1 - start) * self.config.batch_size
            speed = done / (time.perf_counter() - began)  # images per second
            self._log_step({"kind": "step", "epoch": epoch, "step": step, **parts}, speed)
            if time.monotonic() - self.saved >= 60 * self.config.checkpoint_minutes:
                self._save(epoch, batch + 1)
        self._finish_epoch(epoch, time.perf_counter() - began, self.steps_per_epoch - start)

    def _finish_epoch(self, epoch: int, seconds: float, steps: int) -> None:
        recall = self._selection_recall()
        better = recall is None or recall > self.best["recall"]
        if better:
            self.best = {"epoch": epoch, "recall": -1.0 if recall is None else recall}
        if self.processes.is_main:
            if better:
                self._write_checkpoint()
            self._log_epoch(epoch, recall, seconds, steps)
            runs.write_proxies(self.run.path, epoch, self.loss.proxies)
        self._save(epoch + 1, 0)

    def _selection_recall(self) -> float | None:
        """Recall@1 that selects the epoch; None where the last epoch is kept anyway.

        By the encoder itself and not the trainer's model: in float32, as the run is evaluated.
        """
        if self.config.selection == "test":
            return evaluate_run(self.config, self.encoder, processes=self.processes).recall[1]
        if self.validation_set is None:
            return None
        embeddings = _embed_together(
            self.encoder, self.validation_set, self.processes, cache=False, progress=False
        )
        recall = None
        if self.processes.is_main:
            recall = evaluate(embeddings, self.validation_set.labels, ks=(1,)).recall[1]
        return self.processes.from_main(recall)

    def _log_step(self, line: dict[str, Any], images_per_second: float) -> None:
        if not self.processes.is_main:
            return
        runs.append_metrics(self.run.path, [line])
        if self.tracker:
            self.tracker.log(line, line["step"])
        orthogonality, classes = line["soft_orthogonality"], self.train_set.num_classes
        if self.config.so_reduction == "sum":
            orthogonality /= classes * (classes - 1)
        recall = f" R@1 {self.best['recall']:.3f}" if self.best["recall"] >= 0 else ""
        self.bar.set_postfix_str(
            f"PA {line['proxy_anchor']:.2f} SO {line['soft_orthogonality']:.4f} "
            f"RMS cos {math.sqrt(orthogonality):.3f}{recall} {images_per_second:.0f} img/s",
            refresh=False,
        )
        self.bar.update()

    def _log_epoch(self, epoch: int, recall: float | None, seconds: float, steps: int) -> None:
        """The line of an epoch: means over its steps, speed, recall, and the proxies' geometry."""
        line: dict[str, Any] = {"kind": "epoch", "epoch": epoch, "seconds": round(seconds, 3)}
        if epoch > 0:
            speed = steps * self.config.batch_size / seconds if seconds else 0.0
            line["images_per_second"] = round(speed, 1)
            line |= runs.epoch_means(self.run, epoch)
        if recall is not None:
            line["recall_at_1"] = recall
        shape = geometry.describe(self.loss.proxies)
        line |= {"rms_cosine": shape.rms_cosine, "coherence": shape.coherence}
        runs.append_metrics(self.run.path, [line])
        if self.tracker:
            values = {f"epoch/{key}": value for key, value in line.items()}
            self.tracker.log(values, epoch * self.steps_per_epoch)

    def _write_checkpoint(self) -> None:
        """The weights to keep, and what to know of them."""
        state = {
            "selected_epoch": self.best["epoch"],
            "selection": self.config.selection,
            "selection_recall_at_1": None if self.best["recall"] < 0 else self.best["recall"],
            "encoder": self.encoder.settings(),
            "class_names": list(self.train_set.class_names),
            "train_images": len(self.train_set),
            "notes": list(self.train_set.notes),
            "device": str(self.processes.device),
            "processes": self.processes.count,
        }
        runs.write_checkpoint(self.run.path, self.encoder, self.loss.proxies, state)

    def _notes(self) -> list[str]:
        """What a report on this run has to say beside its numbers."""
        notes = list(image_sets.notes(self.config.dataset, **self.config.load_options))
        if self.config.selection == "test":
            notes.append("peeking: the epoch was chosen on the test classes")
        if self.pixels.as_jpeg:
            notes.append("trained on pixels kept as JPEG of quality 95, for their size")
        return notes

    def _save(self, epoch: int, batch: int) -> None:
        """All that resuming at this batch of this epoch needs."""
        self.saved = time.monotonic()
        if self.processes.is_main:
            tensors, scaler = self.trainer.state()
            at = {"epoch": epoch, "batch": batch, "best": self.best, "scaler": scaler}
            runs.write_tensors(self.run.path / "resume.safetensors", tensors, **at)

    def _resume(self) -> tuple[int, int]:
        """Load what an earlier process left; returns the epoch and batch to resume with."""
        file = self.run.path / "resume.safetensors"
        if not file.exists():
            if self.processes.is_main:
                runs.forget_metrics(self.run.path, epoch=0, step=0)
            self._finish_epoch(0, 0.0, 0)
            return 1, 0
        tensors, at = runs.read_tensors(file)
        self.trainer.load(tensors, at["scaler"])
        self.best, epoch, batch = at["best"], at["epoch"], at["batch"]
        if self.processes.is_main:
            step = (epoch - 1) * self.steps_per_epoch + batch
            runs.forget_metrics(self.run.path, epoch=epoch, step=step)
        return epoch, batch


def evaluate_run(
    config: TrainConfig,
    encoder: Encoder,
    *,
    processes: Processes | None = None,
    progress: bool = False,
) -> Retrieval:
    """Evaluate an encoder on the test classes of a config's data set.

    Args:
        config: which data.
        encoder: on its device.
        processes: those that share the embedding.
        progress: show bars.
    """
    ks = {"sop": (1, 10, 100, 1000), "inshop": (1, 10, 20, 30)}.get(config.dataset, (1, 2, 4, 8))
    # In-Shop's test images come as queries and gallery; their labels are numbered alike.
    parts = image_sets.test_splits(config.dataset)
    sets = [image_sets.load(config.dataset, part, **config.load_options) for part in parts]
    embeddings = [_embed_together(encoder, one, processes, progress=progress) for one in sets]
    if len(sets) == 1:
        return evaluate(embeddings[0], sets[0].labels, ks=ks)
    return evaluate(
        embeddings[0], sets[0].labels, gallery=embeddings[1], gallery_labels=sets[1].labels, ks=ks
    )


def _embed_together(
    encoder: Encoder,
    image_set: image_sets.ImageSet,
    processes: Processes | None,
    *,
    cache: bool = True,
    progress: bool,
) -> np.ndarray:
    """(N, D), each process embeds a slice of the images and gets all N rows."""
    if processes is None or processes.count == 1:
        return embed(encoder, image_set, cache=cache, progress=progress)
    rows = processes.local_slice(len(image_set))
    local = embed(encoder, image_set, cache=False, progress=progress, rows=rows)  # (n, D)
    return processes.concatenate(local)


def _training_sets(
    config: TrainConfig,
) -> tuple[image_sets.ImageSet, image_sets.ImageSet | None]:
    """Training images, and the held-out training classes where they select the epoch."""
    train = image_sets.load(config.dataset, "train", **config.load_options)
    if config.selection != "validation":
        return train, None
    return image_sets.hold_out(train, config.validation_fraction, config.seed, at_least=2)
