"""The training loop: a config in, a run folder out, on one device or on many.

Read `fit`, `_train`, `_train_epoch`, then `Trainer.step`. A run that was stopped at any moment
resumes and ends with the weights of one that was never stopped: batches depend on (seed, epoch,
batch) alone, random numbers and rates on the step alone; `resume.safetensors` holds the rest.
"""

import atexit
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm.auto import tqdm

from sobook import retrieval
from sobook.data import image_sets, loader, pixels
from sobook.data.image_sets import ImageSet
from sobook.encoder import Encoder, weights_digest
from sobook.errors import SobookError
from sobook.losses import SoftOrthogonalProxyAnchor
from sobook.retrieval import Retrieval, evaluate
from sobook.training.config import BaseConfig, TrainConfig, pictures_digest
from sobook.training.processes import Processes, choose_device, join
from sobook.training.run import Run
from sobook.training.trainer import Trainer, loss_rates

FEWEST_TO_SELECT = 5  # validation classes; of fewer, Recall@1 says too little to select an epoch
AfterEpoch = Callable[[int, Encoder], object]


def fit(
    config: TrainConfig, *, progress: bool = True, after_epoch: AfterEpoch | None = None
) -> Run:
    """Train, or resume training, or, when the run is finished already, just open it.

    On several devices start it by ``torchrun --nproc_per_node 2 -m sobook train …``; every process
    needs to see the run folder.

    Args:
        config: the settings.
        progress: print what the run is, and show a bar.
        after_epoch: called with the number of every epoch and the encoder.

    Returns:
        The finished `Run`: the epoch kept by `config.selection` evaluated on the test classes.

    Raises:
        SobookError: settings or data that make no sense together.
        RunError: the folder belongs to a run with other settings.
        TrainingError: the loss became NaN or infinite.
    """
    run = Run.open(config)
    if run.finished:
        run.mirror()  # in case the last copy failed
        return run
    processes = join(config.device)
    data, trainer = prepare(run, processes)
    made_of = {"pictures": pictures_digest(run.sets)}
    made_of["weights"] = weights_digest(trainer.model.backbone)
    progress = progress and processes.is_main
    if progress:
        print(data)
    with run.locked():
        processes.wait()
        run.check_made_of(made_of)
        if not run.finished:  # else it was trained meanwhile, or restored from its mirror
            run.resume(trainer)
            processes.wait()  # no process writes until all have read
            _train(run, data, trainer, {"made_of": made_of}, progress, after_epoch)
        processes.wait()  # nobody leaves before the main process has written
    return run


@dataclass(frozen=True)
class Data:
    """The image sets of a run, checked against its settings; made by `Data.check`.

    Attributes:
        train, validation: the training images, without and of the classes held out.
        test: the test images; for In-Shop query and gallery.
        ks: the Ks of Recall@K that will be reported on the test images.
        batch_size: B, that of the settings or, where there are fewer, all training images.
        batches: per epoch.
        notes: on all of them, and on what the settings come to with them.
    """

    train: ImageSet
    validation: ImageSet | None
    test: tuple[ImageSet, ...]
    ks: tuple[int, ...]
    batch_size: int
    batches: int
    notes: tuple[str, ...]

    @classmethod
    def check(cls, config: BaseConfig, sets: dict[str, ImageSet], *, hold_out: bool) -> "Data":
        """Check all parts of a data set against batches, Ks and, if asked for, a hold-out.

        Raises:
            SobookError: too few classes or images for these settings.
        """
        train, test = sets["train"], [sets[n] for n in image_sets.test_splits(config.dataset)]
        notes = dict.fromkeys(note for part in sets.values() for note in part.notes)
        validation, batch_size = None, config.batch_size
        if min(train.num_classes, test[0].num_classes) < 2:
            raise SobookError(
                f"{train.name} has {train.num_classes} training and {test[0].num_classes} test "
                "classes, but both need at least 2: add classes, or search the pictures with the "
                "encoder as it comes (`sobook search --folder`)."
            )
        if hold_out:
            train, validation = image_sets.hold_out(
                train, config.validation_fraction, config.seed, at_least=2
            )
            check_retrievable([validation], (1,))
        ks = check_retrievable(test, wanted_ks(config.dataset))
        if not config.images_per_class and len(train) < batch_size:
            batch_size = len(train)
            notes[f"batches of {batch_size}: there are no more training images"] = None
        if validation is not None and validation.num_classes < FEWEST_TO_SELECT:
            few = f"{validation.num_classes} validation classes are too few to select an epoch"
            notes[f"{few}: the last one is kept"] = None
        rng = np.random.default_rng(0)
        plan = loader.batch_plan(rng, train.labels, batch_size, config.images_per_class)
        return cls(train, validation, tuple(test), ks, batch_size, len(plan), tuple(notes))

    def __str__(self) -> str:
        parts = [part for part in (self.train, self.validation, *self.test) if part is not None]
        lines = [
            f"{part.split}: {len(part):,} images of {part.num_classes:,} classes, "
            f"{part.class_names[0]} … {part.class_names[-1]}"
            for part in parts
        ]
        ks = ", ".join(map(str, self.ks))
        lines.append(f"batches per epoch: {self.batches:,}, of {self.batch_size} images each")
        lines.append(f"Recall@K for K = {ks}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def wanted_ks(dataset: str) -> tuple[int, ...]:
    """The Ks that the literature reports on a data set; those that fit are reported."""
    return {"sop": (1, 10, 100, 1000), "inshop": (1, 10, 20, 30)}.get(dataset, retrieval.KS)


def check_retrievable(sets: Sequence[ImageSet], ks: tuple[int, ...]) -> tuple[int, ...]:
    """Those of the Ks that fit; `sets` are images that search each other, or query and gallery.

    Raises:
        SobookError: fewer than two classes, or no two images of one.
    """
    available = len(sets[-1]) - (len(sets) == 1)
    try:
        labels = [part.labels for part in sets]
        return retrieval.check_labels(*labels, ks=retrieval.feasible_ks(ks, available))[0]
    except SobookError as error:
        raise SobookError(f"{sets[0].name} {sets[0].split}: {error}") from None


def prepare(run: Run, processes: Processes) -> tuple[Data, Trainer]:
    """Everything that a run needs before its first step; `SobookError` for what would stop it.

    The run gets the batch size that its data allow.
    """
    config = run.config
    torch.manual_seed(config.seed)  # the same start on every process
    encoder = Encoder.create(config.encoder, dim=config.dim, **config.encoder_options)
    if config.gradient_checkpointing:
        encoder.backbone.set_grad_checkpointing()
    if config.chunk_size and any(isinstance(part, _BatchNorm) for part in encoder.modules()):
        raise SobookError(
            f"chunk_size is {config.chunk_size}, but {config.encoder} has batch normalization, "
            "which would see chunks and not batches: use gradient_checkpointing."
        )
    if config.compile:
        encoder.backbone.compile()  # in place: names of the weights stay
    data = Data.check(config, run.sets, hold_out=config.selection == "validation")
    run.config = config = config.replace(batch_size=data.batch_size)
    loss = SoftOrthogonalProxyAnchor(data.train.num_classes, encoder.dim, **config.loss_settings)
    rates = [
        (encoder.backbone.parameters(), config.lr),
        (encoder.head.parameters(), config.head_lr),
        *loss_rates(loss, config),
    ]
    steps = config.epochs * data.batches
    return data, Trainer(encoder, loss, rates, config, steps=steps, processes=processes)


def _train(
    run: Run,
    data: Data,
    trainer: Trainer,
    facts: dict[str, Any],
    progress: bool,
    after_epoch: AfterEpoch | None,
) -> None:
    """All epochs that are still to come, then the evaluation on the test classes."""
    config, encoder, processes = run.config, trainer.model, trainer.processes
    side = round(1.5 * encoder.image_size)  # a crop of a fifth of the area is not enlarged much
    source = pixels.decode(
        data.train, side, enlarge=False, budget=pixels.RAW_BUDGET, progress=False
    )
    facts |= {
        "class_names": list(data.train.class_names),
        "validation_classes": list(data.validation.class_names) if data.validation else [],
        "test_classes": list(data.test[0].class_names),
        "train_images": len(data.train),
        "notes": list(data.notes),
        "device": str(processes.device),
        "processes": processes.count,
    }
    names = ("batch_size", "images_per_class", "crop_scale", "seed")
    settings: dict[str, Any] = {name: getattr(config, name) for name in names}
    settings["image_size"] = encoder.image_size
    settings["local_slice"] = processes.local_slice(config.batch_size)
    done = (max(run.progress.epoch, 1) - 1) * data.batches + run.progress.batch
    bar = tqdm(
        total=config.epochs * data.batches * config.batch_size,
        initial=done * config.batch_size,
        desc=run.path.name[:40],
        unit="img",
        disable=None if progress else True,
    )
    if run.writes:
        run.track = _tracker(config, run.path)
    few = data.validation is not None and data.validation.num_classes < FEWEST_TO_SELECT
    with bar:
        for epoch in range(run.progress.epoch, config.epochs + 1):
            losses = {}
            if epoch > 0:  # epoch 0 is the state before training
                batches = loader.TrainingBatches(source, data.train.labels, epoch=epoch, **settings)
                losses = _train_epoch(run, trainer, batches, epoch, bar)
            recall = _select(run, data, trainer)
            run.save(epoch, trainer, recall=recall, keep=few, losses=losses, facts=facts)
            if after_epoch is not None:
                after_epoch(epoch, encoder)
    processes.wait()
    best = run.encoder().to(processes.device)
    result = evaluate_run(config, best, processes, sets=run.sets, progress=progress)
    kept = run.progress.best_epoch
    notes = [*data.notes, f"epoch {kept} of {config.epochs} was kept"]
    if run.progress.tied and not few and kept == config.epochs:
        notes[-1] += ": an earlier one has the same Recall@1 on the classes that select"
    if left_out := set(wanted_ks(config.dataset)) - set(result.ks):
        fewer = ", ".join(map(str, sorted(left_out)))
        notes.append(f"no Recall@K for K = {fewer}: a query can find fewer images")
    if config.selection == "test":
        notes.append("peeking: the epoch was chosen on the test classes")
    if source.as_jpeg:
        notes.append("trained on pixels kept as JPEG of quality 95, for their size")
    run.finish(result, notes)


def _train_epoch(
    run: Run, trainer: Trainer, batches: loader.TrainingBatches, epoch: int, bar: tqdm
) -> dict[str, float]:
    """One pass over the images, from the batch at which the run resumes.

    Returns:
        Speed, and means over all batches of the epoch, those before an interruption included.
    """
    config, at, count = run.config, run.progress, len(batches)
    trainer.model.train()
    # Warming up, only head and proxies learn.
    trainer.model.backbone.requires_grad_(epoch > config.warmup_epochs)
    began, start, saved = time.perf_counter(), at.batch, time.monotonic()
    ahead = loader.training_loader(batches, workers=config.workers, start=start)
    for batch, (images, labels) in enumerate(ahead, start=start):
        step = (epoch - 1) * count + batch
        # Dropout and the like depend on the step, not on what was drawn before it.
        torch.manual_seed(loader.mix_seeds(config.seed, step, trainer.processes.rank))
        losses = trainer.step(step, images, labels)
        run.log({"kind": "step", "epoch": epoch, "step": step, **losses})
        at.batch = batch + 1
        for name, value in losses.items():
            at.sums[name] = at.sums.get(name, 0.0) + value
        text = f"PA {losses['proxy_anchor']:.2f} SO {losses['soft_orthogonality']:.4f}"
        if at.best_recall is not None:
            text += f" R@1 {at.best_recall:.3f}"
        bar.set_postfix_str(text, refresh=False)
        bar.update(config.batch_size)
        if time.monotonic() - saved >= 60 * config.checkpoint_minutes:
            run.save_resume(trainer)
            saved = time.monotonic()
    seconds = time.perf_counter() - began
    speed = (count - start) * config.batch_size / max(seconds, 1e-3)
    means = {name: total / count for name, total in at.sums.items()}
    return {"seconds": round(seconds, 3), "images_per_second": round(speed, 1), **means}


def _select(run: Run, data: Data, trainer: Trainer) -> float | None:
    """Recall@1 that selects the epoch, in float32 as at the end; None: keep the last epoch."""
    encoder, processes = trainer.model, trainer.processes
    if run.config.selection == "test":
        return evaluate_run(run.config, encoder, processes, sets=run.sets, cache=False).recall[1]
    if data.validation is None:
        return None
    rows = processes.embed(encoder, data.validation, cache=False)
    return evaluate(rows, data.validation.labels, ks=(1,)).recall[1]


def _tracker(config: TrainConfig, path: Path) -> Callable[[dict, int], object] | None:
    """A function of numbers by name, and their step, that sends them to the chosen tracker."""
    if config.tracker == "wandb":
        import wandb

        return wandb.init(project="sobook", name=path.name, config=config.to_dict()).log
    if config.tracker == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(path / "tensorboard"))
        atexit.register(writer.close)

        def track(values: dict[str, float], step: int) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        return track
    return None


def evaluate_run(
    config: TrainConfig,
    encoder: Encoder,
    processes: Processes | None = None,
    *,
    sets: dict[str, ImageSet] | None = None,
    cache: bool = True,
    progress: bool = False,
) -> Retrieval:
    """Evaluate an encoder on the test classes of a config's data set.

    Of the Ks that the literature reports there, those that fit are reported.

    Args:
        config: which data.
        encoder: on its device.
        processes: those that share the embedding; None: this one alone.
        sets: all parts of the data set; None: they are loaded.
        cache, progress: as for `sobook.embed`.
    """
    sets = sets or image_sets.load_splits(config.dataset, **config.load_options)
    processes = processes or Processes(encoder.mean.device)
    test = [sets[name] for name in image_sets.test_splits(config.dataset)]
    ks = check_retrievable(test, wanted_ks(config.dataset))  # before they are embedded
    rows = [processes.embed(encoder, part, cache=cache, progress=progress) for part in test]
    if len(test) == 1:
        return evaluate(rows[0], test[0].labels, ks=ks)
    labels, gallery_labels = (part.labels for part in test)  # numbered alike
    return evaluate(rows[0], labels, gallery=rows[1], gallery_labels=gallery_labels, ks=ks)


def check(config: TrainConfig) -> None:
    """Refuse what would stop `fit`: device, encoder or data."""
    prepare(Run.open(config), Processes(choose_device(config.device)))


def dry_run(config: TrainConfig) -> str:
    """Describe a run, and time three steps of it; writes nothing.

    Reading pictures and evaluating are not timed.

    Raises:
        SobookError: what would stop the run, e.g. a batch that does not fit into memory.
    """
    run = Run.open(config)
    if run.finished:
        return f"{run.path} is finished: it will be opened, not trained."
    processes = Processes(choose_device(config.device))
    data, trainer = prepare(run, processes)
    config = run.config
    for group in trainer.optimizer.param_groups:
        group["initial_lr"] = 0.0  # random pixels teach nothing
    encoder, size = trainer.model, config.batch_size
    if processes.device.type != "cuda":  # time grows with the batch: time a part of a large one
        size = min(size, max(2, 8 * 224**2 // encoder.image_size**2))
    shape = (size, 3, encoder.image_size, encoder.image_size)
    images, labels = torch.randint(256, shape, dtype=torch.uint8), torch.arange(size)
    times = []
    for _ in range(4):  # the first warms up
        times.append(time.perf_counter())
        trainer.step(0, images, labels % data.train.num_classes)
    seconds = (time.perf_counter() - times[1]) / 3 * config.batch_size / size
    steps = config.epochs * data.batches
    weights = sum(weight.numel() for weight in encoder.parameters()) / 1e6
    return (
        f"{data}\nencoder: {encoder.name}, {weights:.1f} million weights, {encoder.image_size} "
        f"pixels, {encoder.dim} dimensions\nrun folder: {run.path}\n{steps:,} steps with batches "
        f"of {config.batch_size} on {processes.device}: about {steps * seconds // 60 + 1:,.0f} min"
    )
