"""The training loop: a config in, a run folder out, on one device or on many.

Read `fit`, `_train_epoch`, then `Trainer.step`. A run that was stopped at any moment resumes and
ends with the weights of one that was never stopped: batches depend on (seed, epoch, batch) alone,
random numbers and rates on the step alone; `resume.safetensors` holds the rest.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm.auto import tqdm

from sobook.data import image_sets, loader, pixels
from sobook.data.image_sets import ImageSet
from sobook.encoder import Encoder, weights_digest
from sobook.errors import SobookError
from sobook.losses import SoftOrthogonalProxyAnchor
from sobook.retrieval import Retrieval, evaluate
from sobook.training.config import TrainConfig, pictures_digest
from sobook.training.data import Data, evaluation_sets
from sobook.training.processes import Processes, choose_device, join
from sobook.training.run import Run
from sobook.training.trainer import Trainer


def fit(
    config: TrainConfig,
    *,
    progress: bool = True,
    after_epoch: Callable[[int, Encoder], object] | None = None,
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
    made_of = {
        "pictures": pictures_digest(run.sets),
        "weights": weights_digest(trainer.model.backbone),
    }
    facts = {"made_of": made_of, **data.facts()}
    facts |= {"device": str(processes.device), "processes": processes.count}
    progress = progress and run.writes  # of several processes, the main one
    if progress:
        print(data)
    with run.locked():
        processes.wait()
        run.check_made_of(made_of)
        if run.finished:  # trained meanwhile, or restored from its mirror
            return run
        run.resume(trainer)
        processes.wait()  # no process writes until all have read
        side = round(1.5 * trainer.model.image_size)  # a crop of a fifth is not enlarged much
        source = pixels.decode(
            data.train, side, enlarge=False, budget=pixels.RAW_BUDGET, progress=False
        )
        bar = tqdm(
            total=trainer.steps * data.batch_size,
            initial=run.progress.steps(trainer) * data.batch_size,
            desc=run.path.name[:40],
            unit="img",
            disable=None if progress else True,  # None hides it where there is no terminal
        )
        with _tracker(run), bar:
            for epoch in range(run.progress.epoch, run.config.epochs + 1):
                # Epoch 0 is the state before training.
                losses = _train_epoch(run, trainer, data, source, epoch, bar) if epoch else {}
                recall = _select(run, data, trainer)
                run.save(epoch, trainer, losses, facts, recall=recall, keep=not data.can_select)
                if after_epoch is not None:
                    after_epoch(epoch, trainer.model)
        processes.wait()
        best = run.encoder().to(processes.device)
        result = evaluate_run(run.config, best, processes, sets=run.sets, progress=progress)
        notes = [*data.notes, f"epoch {run.progress.best_epoch} of {config.epochs} was kept"]
        if run.progress.tied and run.progress.best_epoch == config.epochs:
            notes[-1] += ": an earlier one has the same Recall@1 on the classes that select"
        if config.selection == "test":
            notes.append("peeking: the epoch was chosen on the test classes")
        if source.as_jpeg:
            notes.append("trained on pixels kept as JPEG of quality 95, for their size")
        run.finish(result, notes)
        processes.wait()  # nobody leaves before the main process has written
    return run


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
    rates = [(encoder.backbone, config.lr), (encoder.head, config.head_lr)]
    steps = config.epochs * data.batches
    return data, Trainer(encoder, loss, rates, config, steps=steps, processes=processes)


def _train_epoch(
    run: Run, trainer: Trainer, data: Data, source: pixels.Pixels, epoch: int, bar: tqdm
) -> dict[str, float]:
    """One pass over the images, from the batch at which the run resumes.

    Returns:
        Speed, and means over all batches of the epoch, those before an interruption included.
    """
    config, at, processes = run.config, run.progress, trainer.processes
    batches = loader.TrainingBatches(
        source,
        data.train.labels,
        image_size=trainer.model.image_size,
        batch_size=config.batch_size,
        images_per_class=config.images_per_class,
        crop_scale=config.crop_scale,
        seed=config.seed,
        epoch=epoch,
        local_slice=processes.local_slice(config.batch_size),
    )
    trainer.model.train()
    # Warming up, only head and proxies learn.
    trainer.model.backbone.requires_grad_(epoch > config.warmup_epochs)
    began, start, saved = time.perf_counter(), at.batch, time.monotonic()
    ahead = loader.training_loader(batches, workers=config.workers, start=start)
    for batch, (images, labels) in enumerate(ahead, start=start):
        step = (epoch - 1) * data.batches + batch
        # Dropout and the like depend on the step, not on what was drawn before it.
        torch.manual_seed(loader.mix_seeds(config.seed, step, processes.rank))
        losses = trainer.step(step, images, labels)
        run.log({"kind": "step", "epoch": epoch, "step": step, **losses}, step)
        at.batch = batch + 1
        at.sums = {name: at.sums.get(name, 0.0) + value for name, value in losses.items()}
        text = f"PA {losses['proxy_anchor']:.2f} SO {losses['soft_orthogonality']:.4f}"
        if at.best_recall is not None:
            text += f" R@1 {at.best_recall:.3f}"
        bar.set_postfix_str(text, refresh=False)
        bar.update(config.batch_size)
        if time.monotonic() - saved >= 60 * config.checkpoint_minutes:
            run.save_resume(trainer)
            saved = time.monotonic()
    seconds = time.perf_counter() - began
    speed = (data.batches - start) * config.batch_size / max(seconds, 1e-3)
    means = {name: total / data.batches for name, total in at.sums.items()}
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


@contextlib.contextmanager
def _tracker(run: Run) -> Iterator[None]:
    """Let a run send what it logs to the experiment tracker that its settings name."""
    if run.writes and run.config.tracker == "wandb":
        import wandb

        settings = run.config.to_dict()
        with wandb.init(project="sobook", name=run.path.name, config=settings) as tracked:
            run.track = tracked.log
            yield
    elif run.writes and run.config.tracker == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(run.path / "tensorboard")) as writer:
            run.track = lambda values, step: [
                writer.add_scalar(name, value, step) for name, value in values.items()
            ]
            yield
    else:
        yield


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
    test, ks = evaluation_sets(config.dataset, sets)  # checked before they are embedded
    rows = [processes.embed(encoder, part, cache=cache, progress=progress) for part in test]
    gallery = {"gallery": rows[1], "gallery_labels": test[1].labels} if len(test) == 2 else {}
    return evaluate(rows[0], test[0].labels, ks=ks, **gallery)  # both are numbered alike


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
    encoder, side, size = trainer.model, trainer.model.image_size, data.batch_size
    if processes.device.type != "cuda":  # time grows with the batch: time a part of a large one
        size = min(size, max(2, 8 * 224**2 // side**2))
    images = torch.randint(256, (size, 3, side, side), dtype=torch.uint8)
    labels = torch.arange(size) % data.train.num_classes
    trainer.step(0, images, labels)  # warms up
    began = time.perf_counter()
    for _ in range(3):
        trainer.step(0, images, labels)
    minutes = (time.perf_counter() - began) / 3 * data.batch_size / size * trainer.steps // 60 + 1
    weights = sum(weight.numel() for weight in encoder.parameters()) / 1e6
    return (
        f"{data}\nencoder: {encoder.name}, {weights:.1f} million weights, {side} pixels, "
        f"{encoder.dim} dimensions\nrun folder: {run.path}\n{trainer.steps:,} steps with batches "
        f"of {data.batch_size} on {processes.device}: about {minutes:,.0f} min"
    )
