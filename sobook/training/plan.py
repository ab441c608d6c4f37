"""What a run will do, and whether it can: all that is known before the first picture is decoded.

`Data.load` checks image sets against batches, hold-out and Ks, for fine-tuning and for heads alike;
`make_plan` adds encoder, tracker, compiler, folders, disk and memory. What cannot work is one
sentence. Of Ks the rule is: those that somebody names must fit; of the usual ones, those that do
are reported.
"""

import contextlib
import copy
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sobook import files, retrieval
from sobook.data import image_sets, loader
from sobook.data.image_sets import ImageSet
from sobook.encoder import Encoder
from sobook.errors import SobookError
from sobook.training import mirror, tracker
from sobook.training.config import BaseConfig, TrainConfig

_COMPILERS = {"cpu": ("c++", "g++", "clang++"), "cuda": ("cc", "gcc", "clang")}


@dataclass(frozen=True)
class Data:
    """The image sets of a run, checked against its settings.

    Attributes:
        train: what is trained on, without the validation classes.
        validation: what selects the epoch or setting, if anything does.
        test: the test images; of In-Shop query and gallery.
        ks: the Ks of Recall@K that will be reported on the test images.
        batches: per epoch.
    """

    train: ImageSet
    validation: ImageSet | None
    test: tuple[ImageSet, ...]
    ks: tuple[int, ...]
    batches: int

    @classmethod
    def load(cls, config: BaseConfig, *, hold_out: bool, most_per_class: int | None = None):
        """Read the image sets of a run.

        Args:
            config: its settings.
            hold_out: whether some of the training classes are held out for validation.
            most_per_class: images of each class that are trained on; None: all.

        Raises:
            SobookError: data that are not there, or too few for these settings.
        """
        train = image_sets.load(config.dataset, "train", **config.load_options)
        names = image_sets.test_splits(config.dataset)
        test = tuple(image_sets.load(config.dataset, n, **config.load_options) for n in names)
        validation = None
        if hold_out:
            train, validation = image_sets.hold_out(
                train, config.validation_fraction, config.seed, at_least=2
            )
            check_retrievable(validation, ks=(1,))
        if train.num_classes < 2:
            raise SobookError(
                f"{train.name} train has {train.num_classes} class: training needs at least 2."
            )
        ks = check_retrievable(*test, ks=wanted_ks(config.dataset))
        labels = train.labels
        if most_per_class is not None:
            labels = np.concatenate([labels[labels == c][:most_per_class] for c in set(labels)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # said when the batches are made
            rng = np.random.default_rng(0)
            try:
                plan = loader.batch_plan(rng, labels, config.batch_size, config.images_per_class)
            except SobookError as error:
                raise SobookError(
                    f"{error} Beside test and validation, {train.num_classes} classes are left to "
                    "train on: add pictures, or set a smaller batch_size (--batch-size)."
                ) from None
        return cls(train, validation, test, ks, len(plan))


def wanted_ks(dataset: str) -> tuple[int, ...]:
    """The Ks that the literature reports on a data set; those that fit are reported."""
    return {"sop": (1, 10, 100, 1000), "inshop": (1, 10, 20, 30)}.get(dataset, retrieval.KS)


def check_retrievable(*sets: ImageSet, ks: tuple[int, ...]) -> tuple[int, ...]:
    """Those of the Ks that fit, where retrieval can be measured at all.

    Args:
        sets: one, whose images search each other, or query and gallery.
        ks: what would be reported.

    Raises:
        SobookError: fewer than two classes, or no two images of one.
    """
    queries = sets[0]
    available = len(sets[-1]) - (len(sets) == 1)
    try:
        labels = [part.labels for part in sets]
        return retrieval.check_labels(*labels, ks=retrieval.fitting(ks, available))[0]
    except SobookError as error:
        remedy = ', or select nothing on them (selection="last", --selection last)'
        raise SobookError(
            f"retrieval cannot be measured on {queries.name} {queries.split}, {len(queries)} "
            f"image(s) of {queries.num_classes} class(es): {error} It takes two classes, and two "
            f"images of one{remedy if queries.split == 'validation' else ''}."
        ) from None


@dataclass(frozen=True)
class Plan:
    """What a run will do; made by `make_plan`.

    Attributes:
        config: its settings.
        data: its image sets.
        encoder: before training, on the CPU.
        disk: bytes that it will write, by folder.
        memory: bytes that a training step takes, roughly.
    """

    config: TrainConfig
    data: Data
    encoder: Encoder
    disk: dict[Path, int]
    memory: int

    def __str__(self) -> str:
        config, data, encoder = self.config, self.data, self.encoder
        parts = [part for part in (data.train, data.validation, *data.test) if part is not None]
        steps = config.epochs * data.batches
        weights = sum(weight.numel() for weight in encoder.parameters())
        kept = {"validation": "the best on validation classes", "last": "the last"}
        lines = [
            *(f"{p.split}: {len(p):,} images of {p.num_classes:,} classes" for p in parts),
            f"encoder: {encoder.name}, {weights / 1e6:.1f} million weights, "
            f"{encoder.image_size} pixels, {encoder.dim} dimensions",
            f"training: {steps:,} steps (epochs: {config.epochs}, batches of {config.batch_size} "
            f"in each: {data.batches:,})",
            f"epoch kept: {kept.get(config.selection, 'the best on the test classes (peeking)')}",
            f"report: Recall@K for K = {', '.join(map(str, data.ks))}",
            *(f"disk: about {_in_words(size)} in {where}" for where, size in self.disk.items()),
            f"memory: about {_in_words(self.memory)} for a training step",
        ]
        return "\n".join(lines)


def make_plan(config: TrainConfig, device: torch.device) -> Plan:
    """Check all that can be known before a run, and say what it will do.

    The encoder is made as training starts: its head is drawn from torch's generator.

    Raises:
        SobookError: what would stop the run later.
    """
    root, folder = files.data_root(), config.folder()
    for where in (root, folder):
        check_writable(where)
    mirror.check_mounted()
    if config.tracker:
        tracker.check_installed(config.tracker)
    if config.compile:
        _check_compiler(device)
    encoder = make_encoder(config)  # before the data: reading those can take long
    data = Data.load(config, hold_out=config.selection == "validation")
    disk = {
        root / "cache": sum(_room_for_pixels(encoder, data)),
        folder: _run_folder_bytes(config, encoder, data),
    }
    _check_disk(disk)
    at_once = min(config.batch_size, config.chunk_size or config.batch_size)
    memory = step_bytes(config, encoder, data.train.num_classes, at_once)
    _check_memory(memory, device)
    return Plan(config, data, encoder, disk, memory)


def make_encoder(config: TrainConfig) -> Encoder:
    """The encoder of a run, before training."""
    encoder = Encoder.create(config.encoder, dim=config.dim, **config.encoder_options)
    if config.gradient_checkpointing:
        encoder.backbone.set_grad_checkpointing()
    normalizing = any(isinstance(part, _BatchNorm) for part in encoder.modules())
    if config.chunk_size and normalizing:
        raise SobookError(
            f"chunk_size is {config.chunk_size}, but {config.encoder} has batch normalization, "
            "which would see chunks and not batches: use gradient_checkpointing."
        )
    if config.compile:
        encoder.backbone.compile()  # in place: names of the weights stay
    return encoder


def training_side(encoder: Encoder) -> int:
    """Shorter side of the pixels that are trained on.

    Larger than a crop, so that a crop of a fifth of the area is not enlarged much.
    """
    return round(1.5 * encoder.image_size)


def _check_compiler(device: torch.device) -> None:
    names = [os.environ.get("CXX" if device.type == "cpu" else "CC")]
    names += _COMPILERS.get(device.type, ())
    if device.type in _COMPILERS and not any(name and shutil.which(name) for name in names):
        raise SobookError(
            f"compile needs a compiler, and none of {', '.join(filter(None, names))} is installed: "
            "install one, or leave compile out."
        )


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made or written, as far as that can be seen before."""
    there = _nearest(folder)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise SobookError(
            f"{folder} cannot be written ({there} is "
            f"{'read-only' if there.is_dir() else 'a file'}): choose a folder with write "
            "permission (SOBOOK_DATA names that of data, caches and runs)."
        )


def _in_words(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(size / 1e6, 1):.0f} MB"


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def _room_for_pixels(encoder: Encoder, data: Data) -> Iterator[int]:
    yield 0


def _run_folder_bytes(config: TrainConfig, encoder: Encoder, data: Data) -> int:
    """Weights in float32: a checkpoint, all that resuming needs, and a copy while it is written."""
    proxies = data.train.num_classes * encoder.dim
    weights = sum(tensor.numel() for tensor in encoder.state_dict().values()) + proxies
    history = 2 * proxies * (config.epochs + 1)  # float16, and a copy while an epoch is added
    return 4 * weights * (1 + 3 + 3) + 2 * history


def _check_disk(disk: dict[Path, int]) -> None:
    for where in disk:
        there = _nearest(where)
        same = [size for other, size in disk.items() if _same_disk(_nearest(other), there)]
        free = shutil.disk_usage(there).free
        if sum(same) > free:
            raise SobookError(
                f"the run needs about {_in_words(sum(same))} on the disk of {where}, where "
                f"{_in_words(free)} are free: make room, choose another run_dir, or set "
                "SOBOOK_DATA to another disk."
            )


def _same_disk(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev


def step_bytes(config: TrainConfig, encoder: Encoder, classes: int, at_once: int) -> int:
    """Memory of a training step, roughly: weights, gradients, AdamW's moments, activations.

    Args:
        config, encoder: of the run.
        classes: C.
        at_once: images embedded at a time.
    """
    weights = sum(weight.numel() for weight in encoder.parameters()) + classes * encoder.dim
    activations = at_once * count_activations(encoder)
    if config.gradient_checkpointing:  # of one block at a time, and one tensor for each
        activations //= max(1, len(getattr(encoder.backbone, "blocks", ())))
    width = 4 if config.precision == "float32" else 2
    return 4 * 4 * weights + width * activations


def count_activations(encoder: Encoder) -> int:
    """Numbers that the layers make of one image, counted on a copy without any memory."""
    count, model = 0, copy.deepcopy(encoder).to("meta")

    def add(_module: nn.Module, _inputs: object, output: object) -> None:
        nonlocal count
        count += output.numel() if isinstance(output, torch.Tensor) else 0

    for module in model.modules():
        if not any(module.children()) and not isinstance(module, nn.Identity | nn.Dropout):
            module.register_forward_hook(add)
    side = encoder.image_size
    # Some models look at values, which a copy without memory has not: then nothing is known.
    with torch.no_grad(), contextlib.suppress(RuntimeError):
        model.eval()(torch.empty(1, 3, side, side, dtype=torch.uint8, device="meta"))
    return count


def _check_memory(needed: int, device: torch.device) -> None:
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory
    else:
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        with contextlib.suppress(OSError, ValueError):  # a container's limit, if it has one
            there = min(there, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    if needed > there:
        raise SobookError(
            f"a training step needs about {_in_words(needed)} of memory, and {device} has "
            f"{_in_words(there)}: set chunk_size (the batch stays) or gradient_checkpointing, or "
            "choose a smaller image_size or encoder."
        )
